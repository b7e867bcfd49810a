"""The demonstration: two networks on real images, their kernels, and what kernels are worth.

Trains a small MLP and a small CNN with JAX on scikit-learn's digits; assembles the pNTK of all
1,797 images, and the trace and full kernels of a subset with their cross kernels to the held-out
images; regresses with each, the ridge chosen by leave-one-out; prints one table and draws two
pictures.
"""

from __future__ import annotations

import json
import textwrap
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from entk._measure import Cost
from entk._plan import in_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from entk import Certificate, Factors
    from entk._demo_networks import Digits, Network

    Array = NDArray[Any]

RIDGES = np.logspace(-6, -1, 6)  # in units of the kernel's mean diagonal
WIDTH = 100  # columns of a terminal
NOTE = (
    "seconds: factors, compiling included, and kernels (the network: training). peak memory: "
    "growth of the process's peak meanwhile. Kernels of the subset include the cross kernel to the "
    "held-out images; accuracy is on these, the ridge chosen by leave-one-out."
)
COLUMNS = ("", "trained on", "kernel entries", "accuracy", "seconds", "entries/s", "peak memory")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    epochs: int
    subset: int  # training images of the trace and full kernels
    held_out: int  # test images that they predict


FULL = Size(epochs=12, subset=150, held_out=450)
FAST = Size(epochs=6, subset=60, held_out=150)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    method: str
    trained_on: int
    accuracy: float
    seconds: float
    entries: int = 0
    peak_bytes: int = 0

    def cells(self) -> tuple[str, ...]:
        """Format the line."""
        kernel = ("", "", "")
        if self.entries:
            rate = f"{self.entries / self.seconds:,.0f}"
            kernel = (f"{self.entries:,}", rate, in_bytes(self.peak_bytes))
        accuracy, seconds = f"{100 * self.accuracy:.1f} %", f"{self.seconds:.2f}"
        head = (self.method, f"{self.trained_on:,}")
        return *head, kernel[0], accuracy, seconds, kernel[1], kernel[2]


@dataclass(frozen=True)
class Study:
    """What was found for one network."""

    name: str
    rows: list[Row]
    kernels: dict[str, Array]
    certificate: Certificate


def regress(kernel: Array, cross: Array, labels: Array, held_out: Array) -> float:
    """Return the accuracy of kernel ridge regression on one-hot labels.

    The ridge is the one with the smallest leave-one-out error on the training images. A kernel with
    more rows than labels is a block kernel; its targets are read sample-major.
    """
    from entk.regression import KernelRidge

    targets = np.eye(10)[labels] - 0.1
    model = KernelRidge(ridge=RIDGES * np.trace(kernel) / len(kernel)).fit(kernel, targets)
    errors = np.square(np.asarray(model.loo_errors_).reshape(len(RIDGES), -1))
    best = int(np.argmin(np.sum(errors, axis=1)))
    predicted = np.asarray(model.predict(cross))[best].reshape(len(held_out), 10)
    return float(np.mean(np.argmax(predicted, axis=1) == held_out))


def whole(network: Network, params: Any, digits: Digits) -> tuple[Row, Array]:
    """Assemble the pNTK of all images, and regress from the training to the held-out ones."""
    import entk
    import entk.jax
    from entk._demo_networks import TRAIN

    with Cost() as cost:
        kernel = np.asarray(entk.assemble(entk.jax.factors(network, params, digits.images)))
    labels, held_out = digits.labels[:TRAIN], digits.labels[TRAIN:]
    accuracy = regress(kernel[:TRAIN, :TRAIN], kernel[TRAIN:, :TRAIN], labels, held_out)
    row = Row("pNTK, all images", TRAIN, accuracy, cost.seconds, kernel.size, cost.peak_bytes)
    return row, kernel


def parts(
    network: Network, params: Any, digits: Digits, size: Size
) -> tuple[list[Row], dict[str, Array], Certificate]:
    """Assemble pNTK, trace and full kernels of a subset, and their cross kernels."""
    import entk
    import entk.jax
    from entk._demo_networks import TRAIN

    test = slice(TRAIN, TRAIN + size.held_out)
    labels, held_out = digits.labels[: size.subset], digits.labels[test]

    def both(outputs: str) -> tuple[Cost, Factors, Factors]:
        with Cost() as cost:
            near = entk.jax.factors(network, params, digits.images[: size.subset], outputs=outputs)
            far = entk.jax.factors(network, params, digits.images[test], outputs=outputs)
        return cost, near, far

    made = {"sum": both("sum"), "full": both("full")}
    rows, kernels = [], {}
    for word, name in (("sum", "pNTK"), ("trace", "trace"), ("full", "full eNTK")):
        extracted, near, far = made.get(word, made["full"])
        with Cost() as cost:
            kernel = np.asarray(entk.assemble(near, outputs=word))
            cross = np.asarray(entk.assemble(far, near, outputs=word))
        entries, seconds = kernel.size + cross.size, extracted.seconds + cost.seconds
        accuracy = regress(kernel, cross, labels, held_out)
        peak = max(cost.peak_bytes, extracted.peak_bytes)
        rows.append(Row(f"{name}, subset", size.subset, accuracy, seconds, entries, peak))
        kernels[name] = kernel
    return rows, kernels, entk.certify(made["full"][1])


def study(name: str, digits: Digits, size: Size) -> Study:
    """Train one network and find out all about its kernels."""
    import jax

    from entk._demo_networks import NETWORKS, TRAIN, accuracy, train

    init, network = NETWORKS[name]
    with Cost() as cost:
        params = train(network, init(jax.random.key(0)), digits, size.epochs)
    logits = jax.jit(network)(params, digits.images[TRAIN:])
    trained = Row("the network", TRAIN, accuracy(logits, digits.labels[TRAIN:]), cost.seconds)
    row, kernel = whole(network, params, digits)
    rows, kernels, certificate = parts(network, params, digits, size)
    kernels["pNTK, all images"] = kernel
    return Study(name, [trained, row, *rows], kernels, certificate)


# Output -------------------------------------------------------------------------------------------


def lay_out(lines: list[tuple[str, ...]]) -> str:
    """Align the first column to the left and the others to the right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = []
    for line in lines:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        texts.append("  ".join([first, *others]).rstrip())
    return "\n".join(texts)


def table(studies: list[Study]) -> str:
    """Make the one table of all networks and kernels."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    for found in studies:
        lines += [(f"{found.name}: {cells[0]}", *cells[1:]) for cells in map(Row.cells, found.rows)]
    text = lay_out(lines)
    head, _, body = text.partition("\n")
    return f"{head}\n{'-' * max(map(len, text.splitlines()))}\n{body}"


def wrapped(text: str) -> str:
    """Break long lines."""
    lines = text.splitlines()
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def draw(studies: list[Study], digits: Digits, out: Path) -> list[str]:
    """Draw the kernels sorted by class, and the spectra; return the files, or none."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return []
    mpl.use("Agg")
    from entk._demo_pictures import kernels, spectra

    out.mkdir(parents=True, exist_ok=True)
    drawn = {"kernel.png": kernels(studies, digits.labels), "spectrum.png": spectra(studies)}
    for name, figure in drawn.items():
        figure.savefig(out / name, dpi=130)
    return [str(out / name) for name in drawn]


def run(out: Path, *, fast: bool = False, as_json: bool = False) -> int:
    """Run the demonstration; print the table, save the pictures, return an exit status."""
    try:
        import jax  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as missing:
        print(f"entk demo needs {missing.name}: pip install 'entk[jax,sklearn,plot]'")
        return 1
    from entk._demo_networks import NETWORKS, load

    started = time.perf_counter()
    digits, size = load(), FAST if fast else FULL
    studies = []
    for name in NETWORKS:
        if not as_json:
            print(f"{name}: training, factors, kernels, regressions ...", flush=True)
        studies.append(study(name, digits, size))
    files = draw(studies, digits, out)
    seconds = time.perf_counter() - started
    if as_json:
        rows = {found.name: [asdict(row) for row in found.rows] for found in studies}
        print(json.dumps({"networks": rows, "pictures": files, "seconds": seconds}))
        return 0
    print(f"\n{table(studies)}\n\n{wrapped(NOTE)}\n")
    for found in studies:
        print(f"{found.name}: is one small kernel fit to stand for the full one?")
        print(f"{wrapped(str(found.certificate))}\n")
    print(f"pictures: {', '.join(files)}" if files else "matplotlib is missing: no pictures")
    print(f"done in {seconds:.0f} s")
    return 0
