"""Training of the linearised network under squared loss, in closed form.

For ``L = 1/2 sum (f - y)^2`` and gradient flow with a rate, the outputs on the training set obey
``df/dt = -rate K (f - y)``, so in the eigenbasis ``K = Q diag(lam) Q^T`` each mode decays alone:

    f(t)      = y + Q exp(-rate lam t) Q^T (f0 - y)
    f_star(t) = f0_star + K_star Q ((1 - exp(-rate lam t)) / lam) Q^T (y - f0)

Lee et al., "Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient Descent",
NeurIPS 2019, equations 8 to 11 (there with a loss divided by N: put ``rate / N``).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entk import _dense, _targets
from entk._dense import Float, Matrix
from entk._errors import InputError, NotPositiveDefiniteError
from entk._targets import Targets
from entk.linalg._eigen import eigh

Method = Literal["flow", "descent"]


class Modes(NamedTuple):
    """Training, one eigenmode of the kernel at a time.

    Attributes
    ----------
    values
        Eigenvalues, ascending, (n,).
    vectors
        Eigenvectors as columns, (n, n).
    times
        ``1 / (rate lam)``, the time in which a mode falls by e; infinity below the floor.
    start
        ``Q^T (f0 - y)``: what is still to be learnt in each mode, (n, C).
    floor
        Noise floor of the kernel; modes below it are taken not to train.
    """

    values: Float
    vectors: Float
    times: Float
    start: Float
    floor: float


def modes(K: Any, y: ArrayLike, learning_rate: float, f0: ArrayLike = 0.0) -> Modes:
    """Split the training error into eigenmodes of the kernel and the time each needs.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Training kernel.
    y : array, shape (N,) or (N, C)
        Targets; a block kernel has ``N*C`` rows.
    learning_rate : float
        Rate of the flow, or step of gradient descent.
    f0 : float or array of the shape of `y`
        Outputs at the start.

    Returns
    -------
    Modes

    Raises
    ------
    InputError
        If shapes disagree or the rate is not positive.
    NotPositiveDefiniteError
        If an eigenvalue is negative beyond the noise floor.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.dynamics import modes
    >>> modes(np.diag([1.0, 4.0]), [1.0, 0.5], learning_rate=0.5).times.tolist()
    [2.0, 0.5]
    """
    matrix = _dense.read(K)
    wanted = _targets.targets(y, matrix.n)
    _check_rate(learning_rate)
    values, vectors, floor = _spectrum(matrix)
    error = _targets.prior(f0, wanted, matrix.n) - wanted.columns
    times = 1.0 / (learning_rate * np.where(values > floor, values, np.nan))
    return Modes(values, vectors, np.nan_to_num(times, nan=np.inf), vectors.T @ error, floor)


def gradient_flow(
    K: Any,
    y: ArrayLike,
    t: ArrayLike,
    learning_rate: float,
    f0: ArrayLike = 0.0,
    K_star: Any = None,
    f0_star: ArrayLike | None = None,
    *,
    method: Method = "flow",
) -> Float | tuple[Float, Float]:
    r"""Compute the outputs of the linearised network after training for the times `t`.

    :math:`f(t) = y + \exp(-\eta K t) (f_0 - y)` for the loss ``1/2 sum (f - y)^2``.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Training kernel: n = N, or ``n = N*C`` rows for a block kernel (sample-major).
    y : array, shape (N,) or (N, C)
        Targets.
    t : float or array of shape (k,)
        Times, ``numpy.inf`` included: training to the end. With ``method="descent"``, numbers of
        steps.
    learning_rate : float
        Rate of the flow, or step of gradient descent.
    f0 : float or array of the shape of `y`
        Outputs at the start.
    K_star : array or `entk.Kernel`, shape (m, n), optional
        Kernel of test points (rows) with training points.
    f0_star : float or array, optional
        Outputs at the start on the test points, (M,) or (M, C); None is 0 when `f0` is a number 0,
        and an error otherwise.
    method : {"flow", "descent"}
        Continuous time, or full-batch gradient descent with step `learning_rate`:
        ``f(t) = y + (I - rate K)^t (f0 - y)``.

    Returns
    -------
    ndarray of float64, or a pair (train, test) if `K_star` is given
        The shape of `y` for one time, ``(k, *y.shape)`` for several.

    Raises
    ------
    InputError
        If shapes disagree, a time is negative or NaN, a number of steps is not whole, or descent
        without end would diverge: the step must stay below ``2 / lambda_max``
        (`max_learning_rate`).
    NotPositiveDefiniteError
        If an eigenvalue is negative beyond the noise floor.

    Notes
    -----
    **Cost.** One eigendecomposition (``9 n^3`` flops), then ``2 n^2 C`` a time.
    **Memory.** ``16 n^2`` bytes. **Precision.** Modes whose eigenvalue is below the noise floor are
    taken not to train at all: their rate is rounding, and at ``t = inf`` it would matter.

    References
    ----------
    .. [1] J. Lee et al., "Wide Neural Networks of Any Depth Evolve as Linear Models Under Gradient
       Descent", NeurIPS 2019, equations 8 to 11.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.dynamics import gradient_flow
    >>> gradient_flow(np.eye(2), [1.0, 2.0], t=np.log(2.0), learning_rate=1.0).round(12).tolist()
    [0.5, 1.0]
    """
    matrix = _dense.read(K)
    wanted = _targets.targets(y, matrix.n)
    _check_rate(learning_rate)
    times = _check_times(t, method)
    start = _targets.prior(f0, wanted, matrix.n)
    values, vectors, floor = _spectrum(matrix)
    rates = np.where(values > floor, values, 0.0)
    if method == "descent":
        _check_step(rates, learning_rate, times)
    left = np.stack([_left(rates, learning_rate, s, method) for s in np.atleast_1d(times)])
    error = vectors.T @ (start - wanted.columns)
    train = wanted.columns + vectors @ (left[:, :, None] * error)
    train = wanted.restore(train if times.ndim else train[0])
    if K_star is None:
        return train
    cross = _dense.read(K_star, "K_star", square=False)
    base = _start_on_test(f0, f0_star, wanted, cross)
    gain = _gain(rates, left, learning_rate, np.atleast_1d(times), method)
    test = base - cross.matmat(vectors) @ (gain[:, :, None] * error)
    return train, wanted.restore(test if times.ndim else test[0])


def max_learning_rate(K: Any) -> float:
    """Return ``2 / lambda_max``, above which gradient descent with this kernel diverges.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Training kernel.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from entk.dynamics import max_learning_rate
    >>> max_learning_rate(np.diag([1.0, 4.0]))
    0.5
    """
    from entk.linalg import eigsh

    return 2.0 / float(eigsh(K, 1, which="LA").values[0])


def _check_rate(rate: float) -> None:
    if not (np.isfinite(rate) and rate > 0):
        raise InputError(f"learning_rate must be > 0 and finite (got {rate})")


def _check_times(t: ArrayLike, method: Method) -> Float:
    times = np.asarray(t, dtype=np.float64)
    if method not in ("flow", "descent"):
        raise InputError(f"method={method!r}; expected 'flow' or 'descent'")
    if times.ndim > 1 or not (times >= 0).all():
        raise InputError(f"t must be a number >= 0 or a vector of them (got {t!r})")
    finite = times[np.isfinite(times)]
    if method == "descent" and (finite != np.floor(finite)).any():
        raise InputError('with method="descent" t counts steps: whole numbers or infinity')
    return times


def _check_step(rates: Float, rate: float, times: Float) -> None:
    top = float(np.max(rates, initial=0.0))
    if np.isinf(times).any() and not rate * top < 2.0:
        raise InputError(
            f"learning_rate {rate:g} diverges: gradient descent needs less than "
            f"2 / lambda_max = {2.0 / top:.6g}"
        )


def _spectrum(matrix: Matrix) -> tuple[Float, Float, float]:
    _dense.check_symmetric(matrix)
    values, vectors = eigh(matrix, None)
    floor = matrix.noise
    if matrix.n and values[0] < -floor:
        raise NotPositiveDefiniteError(
            f"K has the eigenvalue {values[0]:.2g}, negative beyond the noise floor {floor:.1e}: "
            "that mode would grow without bound"
        )
    return values, vectors, floor


def _left(rates: Float, rate: float, time: float, method: Method) -> Float:
    """Return what is left of each mode after `time`: 1 where it does not train."""
    if method == "descent" and np.isfinite(time):
        return np.asarray((1.0 - rate * rates) ** time)
    decay = np.where(rates > 0, np.inf, 0.0) if np.isinf(time) else rate * rates * time
    return np.asarray(np.exp(-decay))


def _gain(rates: Float, left: Float, rate: float, times: Float, method: Method) -> Float:
    """Return ``(1 - left) / rates``, without cancellation for slow modes.

    A mode that does not train contributes nothing: a test point has no kernel with it either.
    """
    trains = rates > 0
    safe = np.where(trains, rates, 1.0)
    lost = 1.0 - left
    if method == "flow":
        decay = rate * safe * times[:, None]
        lost = -np.expm1(-decay)
    return np.asarray(np.where(trains, lost / safe, 0.0))


def _start_on_test(f0: ArrayLike, given: ArrayLike | None, wanted: Targets, cross: Matrix) -> Float:
    if cross.shape[1] != len(wanted.columns):
        raise InputError(
            f"K_star has shape {cross.shape}; expected test points as rows and "
            f"{len(wanted.columns)} columns, as K has rows"
        )
    if given is None and np.any(np.asarray(f0) != 0.0):
        raise InputError("f0 is not zero: f0_star, the start on the test points, is needed too")
    return _targets.prior(0.0 if given is None else given, wanted, cross.shape[0], "f0_star")
