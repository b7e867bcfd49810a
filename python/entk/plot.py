"""Pictures of kernels. Every function draws into an Axes and returns it; none shows or saves."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from entk import _dense, _targets, dynamics
from entk._dense import Float, Matrix
from entk._errors import InputError
from entk.linalg import eigvalsh

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAR = 100.0  # a noise floor this far below the smallest eigenvalue would only push it out of sight
PIXELS = 1000  # a picture shows no more rows than this; larger kernels are averaged


def spectrum(K: Any, *, ax: Axes | None = None, label: str | None = None) -> Axes:
    """Draw the eigenvalues of a kernel, largest first, and its noise floor.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Symmetric.
    ax : matplotlib Axes, optional
        Where to draw; None makes a new figure. Several spectra may share one.
    label : str, optional
        Name in the legend.

    Returns
    -------
    matplotlib Axes
        Log-log. Eigenvalues below the floor are rounding and drawn pale; those not above zero
        cannot be drawn and are counted in the legend. A floor far below the smallest eigenvalue is
        named in the legend and lies outside the picture.

    Notes
    -----
    **Cost.** All eigenvalues: ``4 n^3 / 3`` flops.

    Examples
    --------
    >>> import numpy as np
    >>> from entk import plot
    >>> plot.spectrum(np.diag([3.0, 2.0, 1.0])).get_xscale()
    'log'
    """
    values = eigvalsh(K)
    heights = np.asarray(values)[::-1]
    ranks = np.arange(1, len(heights) + 1)
    ax = _axes(ax)
    trusted, pale = heights > values.floor, (heights > 0) & (heights <= values.floor)
    (line,) = ax.plot(ranks[trusted], heights[trusted], marker=".", label=_named(label, values))
    colour = line.get_color()
    ax.plot(ranks[pale], heights[pale], marker=".", linestyle="", color=colour, alpha=0.25)
    if len(heights):
        floor = ax.axhline(values.floor, color=colour, linestyle=":", linewidth=1)
        floor.set(label=f"noise floor {values.floor:.1e}", gid="floor")
    ax.set(xscale="log", yscale="log", xlabel="index", ylabel="eigenvalue")
    _cut_below(ax)
    _plain_numbers(ax)
    ax.grid(visible=True, which="major", linewidth=0.3)
    ax.legend()
    return ax


def _cut_below(ax: Axes) -> None:
    """Let the eigenvalues fill the picture: floors far below them are left to the legend."""
    lines = [line for line in ax.get_lines() if len(np.atleast_1d(line.get_ydata()))]
    drawn = [float(np.min(line.get_ydata())) for line in lines if line.get_gid() != "floor"]
    floors = [float(np.min(line.get_ydata())) for line in lines if line.get_gid() == "floor"]
    if drawn:
        lowest = min(drawn)
        near = [floor for floor in floors if lowest / FAR < floor]
        ax.set_ylim(bottom=min([lowest, *near]) / 2.0)


def _plain_numbers(ax: Axes) -> None:
    """Write counts on a logarithmic axis as 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _named(label: str | None, values: Any) -> str:
    lost = int(np.sum(np.asarray(values) <= 0))
    text = label or f"{len(values):,} eigenvalues"
    return f"{text} ({lost:,} not above 0)" if lost else text


def heatmap(
    K: Any,
    labels: ArrayLike | None = None,
    *,
    scale: Literal["cosine", "kernel"] = "cosine",
    ax: Axes | None = None,
) -> Axes:
    """Draw a kernel as a picture, sorted by class if labels are given.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Symmetric; more than 1,000 rows are averaged down to that.
    labels : array, shape (N,), optional
        Class of each sample: rows are sorted by it, lines drawn between classes. A block kernel has
        a multiple of N rows.
    scale : {"cosine", "kernel"}
        Divide by ``sqrt(K_ii K_jj)``, the cosine of two gradients; or show the entries.
    ax : matplotlib Axes, optional
        Where to draw; None makes a new figure.

    Returns
    -------
    matplotlib Axes
        Colours span the entries off the diagonal but for the outer hundredth.

    Raises
    ------
    InputError
        If the labels do not fit the rows, or `scale` is another word.

    Examples
    --------
    >>> import numpy as np
    >>> from entk import plot
    >>> plot.heatmap(np.eye(4), ["b", "a", "b", "a"]).get_xlabel()
    'class'
    """
    if scale not in ("cosine", "kernel"):
        raise InputError(f"scale={scale!r}; expected 'cosine' or 'kernel'")
    matrix = _dense.read(K)
    order, names, edges = _sorted(labels, matrix.n)
    shown = _averaged(matrix, order, scale)
    ax = _axes(ax)
    extent = (-0.5, matrix.n - 0.5, matrix.n - 0.5, -0.5)
    low, high = _range(shown)
    image = ax.imshow(shown, extent=extent, vmin=low, vmax=high, interpolation="antialiased")
    for edge in edges[1:-1]:
        ax.axhline(edge - 0.5, color="white", linewidth=0.5)
        ax.axvline(edge - 0.5, color="white", linewidth=0.5)
    if names is not None:
        middle = (edges[1:] + edges[:-1]) / 2 - 0.5
        ax.set_xticks(middle, names)
        ax.set_yticks(middle, names)
        ax.tick_params(length=0)
    word = "sample" if names is None else "class"
    ax.set(xlabel=word, ylabel=word)
    bar = ax.figure.colorbar(image, ax=ax, extend="both")
    bar.set_label("cosine of the gradients" if scale == "cosine" else "kernel")
    return ax


def _range(shown: Float) -> tuple[float, float]:
    """Return the range of colours: all but a hundredth of the entries off the diagonal.

    With the diagonal in it, nearly everything else would be dark.
    """
    off = shown[~np.eye(len(shown), dtype=bool)] if len(shown) > 1 else shown
    if not off.size:
        return 0.0, 1.0
    low, high = np.quantile(off, [0.005, 0.995])
    return float(low), float(high)


def _sorted(labels: ArrayLike | None, rows: int) -> tuple[Any, list[str] | None, Any]:
    """Return the order of rows, the names of the classes, and where each begins."""
    if labels is None:
        return np.arange(rows), None, np.empty(0)
    given = np.asarray(labels)
    if given.ndim != 1 or len(given) == 0 or rows % len(given):
        raise InputError(f"labels have shape {given.shape}, but the kernel has {rows} rows")
    each = np.repeat(given, rows // len(given))
    names, code = np.unique(each, return_inverse=True)
    order = np.argsort(code, kind="stable")
    edges = np.searchsorted(code[order], np.arange(len(names) + 1))
    return order, [str(name) for name in names], edges


def _averaged(matrix: Matrix, order: Any, scale: str) -> Float:
    """Return the sorted kernel in at most PIXELS rows, each the mean of several."""
    n = matrix.n
    size = np.sqrt(np.abs(matrix.diag[order])) if scale == "cosine" else np.ones(n)
    size[size == 0] = 1.0
    cuts = np.linspace(0, n, min(n, PIXELS) + 1).astype(int)
    out = np.empty((len(cuts) - 1, len(cuts) - 1))
    for i, (start, stop) in enumerate(pairwise(cuts)):
        rows = matrix.rows(order[start:stop])[:, order] / size[start:stop, None] / size
        out[i] = np.add.reduceat(rows.mean(axis=0), cuts[:-1]) / np.diff(cuts)
    return out


def learning_curve(
    K: Any,
    y: ArrayLike,
    *,
    ridge: float | None = None,
    sizes: ArrayLike | None = None,
    repeats: int = 5,
    seed: int = 0,
    ax: Axes | None = None,
    label: str | None = None,
) -> Axes:
    """Draw the held-out error of kernel ridge regression against the number of training samples.

    Parameters
    ----------
    K : array or `entk.Kernel`, shape (N, N)
        Kernel of all samples, one row each.
    y : array, shape (N,) or (N, C)
        Targets (mean squared error), or class labels: integers or strings (share of errors).
    ridge : float or None
        In units of the kernel; None is a thousandth of the mean diagonal. The axis says which.
    sizes : array of int, optional
        Numbers of training samples; None takes seven from N/64 to N/2.
    repeats : int
        Random splits for each; the band is one standard deviation over them.
    seed : int
        Of the splits.
    ax : matplotlib Axes, optional
        Where to draw; None makes a new figure.
    label : str, optional
        Name in the legend.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    InputError
        If a size leaves nothing to test on, or `y` does not fit.

    Notes
    -----
    **Cost.** One factorisation of each size and split.

    Examples
    --------
    >>> import numpy as np
    >>> from entk import plot
    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> ax = plot.learning_curve(x @ x.T + 1, x[:, 0], sizes=[5, 20])
    >>> ax.get_ylabel()
    'mean squared error'
    """
    matrix = _dense.read(K)
    n = matrix.n
    columns, classes = _curve_targets(y, n)
    counts = _sizes(sizes, n)
    shift = 1e-3 * float(np.mean(matrix.diag)) if ridge is None else float(ridge)
    rng = np.random.default_rng(seed)
    errors = np.array(
        [[_held_out(matrix, columns, shift, c, rng, classes=classes) for _ in range(repeats)]
         for c in counts]
    )  # fmt: skip
    ax = _axes(ax)
    mean, spread = errors.mean(axis=1), errors.std(axis=1)
    (line,) = ax.plot(counts, mean, marker="o", label=label or f"ridge {shift:.2g}")
    ax.fill_between(counts, mean - spread, mean + spread, alpha=0.2, color=line.get_color())
    ax.set_xscale("log")
    _plain_numbers(ax)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("training samples")
    ax.set_ylabel("share of errors" if classes else "mean squared error")
    ax.grid(visible=True, which="major", linewidth=0.3)
    ax.legend()
    return ax


def _curve_targets(y: ArrayLike, n: int) -> tuple[Float, bool]:
    values = np.asarray(y)
    if values.ndim == 1 and values.dtype.kind in "iuUSOb":
        names, code = np.unique(values, return_inverse=True)
        values = np.eye(len(names))[code] - 1.0 / len(names)
        return _targets.targets(values, n).columns, True
    return _targets.targets(values, n).columns, False


def _sizes(sizes: ArrayLike | None, n: int) -> list[int]:
    if sizes is None:
        return sorted({max(1, n // 2**p) for p in range(1, 7)})
    counts = [int(s) for s in np.atleast_1d(np.asarray(sizes))]
    if not counts or min(counts) < 1 or max(counts) >= n:
        raise InputError(
            f"sizes must lie between 1 and {n - 1}, the samples less one (got {counts})"
        )
    return counts


def _held_out(
    matrix: Matrix, columns: Float, ridge: float, count: int, rng: Any, *, classes: bool
) -> float:
    from entk.linalg import solve

    order = rng.permutation(matrix.n)
    train, test = order[:count], order[count:]
    dual = solve(matrix.pairs(train, train), columns[train], ridge)
    predicted = matrix.pairs(test, train) @ dual
    if classes:
        wrong = np.argmax(predicted, axis=1) != np.argmax(columns[test], axis=1)
        return float(np.mean(wrong))
    return float(np.mean(np.square(predicted - columns[test])))


def training(
    K: Any,
    y: ArrayLike,
    learning_rate: float,
    *,
    times: ArrayLike | None = None,
    K_star: Any = None,
    y_star: ArrayLike | None = None,
    f0: ArrayLike = 0.0,
    f0_star: ArrayLike | None = None,
    ax: Axes | None = None,
    label: str | None = None,
) -> Axes:
    """Draw the loss of the linearised network against training time.

    Parameters
    ----------
    K, y, learning_rate, K_star, f0, f0_star
        As in `entk.dynamics.gradient_flow`.
    times : array, optional
        Times to draw; None takes sixty, from a tenth of the fastest mode's to ten times that of
        the slowest mode above the noise floor.
    y_star : array, optional
        Targets of the test points; with `K_star`, their loss is drawn too.
    ax : matplotlib Axes, optional
        Where to draw; None makes a new figure.
    label : str, optional
        Name in the legend.

    Returns
    -------
    matplotlib Axes
        Log-log, mean squared error against time.

    Examples
    --------
    >>> import numpy as np
    >>> from entk import plot
    >>> plot.training(np.diag([1.0, 0.1]), [1.0, -1.0], 1.0).get_xlabel()
    'training time'
    """
    if times is None:
        ends = dynamics.modes(K, y, learning_rate, f0).times
        ends = ends[np.isfinite(ends)]
        low, high = (float(ends.min()), float(ends.max())) if len(ends) else (1.0, 1.0)
        times = np.geomspace(0.1 * low, 10.0 * high, 60)
    flow = dynamics.gradient_flow(K, y, times, learning_rate, f0, K_star, f0_star)
    pair = flow if isinstance(flow, tuple) else (flow,)
    ax = _axes(ax)
    name = f"{label}, " if label else ""
    for part, truth, word in zip(pair, (y, y_star), ("training", "test"), strict=False):
        if truth is None:
            continue
        off = np.square(part - np.asarray(truth, dtype=np.float64))
        loss = off.reshape(len(off), -1).mean(axis=1)
        ax.plot(np.asarray(times), loss, label=f"{name}{word}")
    ax.set(xscale="log", yscale="log", xlabel="training time", ylabel="mean squared error")
    ax.grid(visible=True, which="major", linewidth=0.3)
    ax.legend()
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('entk.plot needs matplotlib: pip install "entk[plot]"') from error
    # Not through pyplot: nothing to close, no window system needed.
    figure = Figure(figsize=(6.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()
