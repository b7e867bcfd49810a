"""A short benchmark for users: what this machine reaches, as a fraction of its own peak."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

from entk._measure import Cost

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from entk import Factors

ROUNDS = 5
PEAK_SECONDS = 0.2


def random_factors(n: int, width: int, sum_of_widths: int, dtype: str = "float32") -> Factors:
    """Draw outer leaves with d_in = d_out = `width` whose widths add up to `sum_of_widths`.

    Scaled by ``1/sqrt(width)`` on each side, so that entries stay near 1 for any width.
    """
    import entk

    rng = np.random.default_rng(0)
    count = max(1, sum_of_widths // (2 * width))

    def draw() -> NDArray[Any]:
        values = rng.standard_normal((n, width), dtype=np.float32) / np.sqrt(width)
        drawn: NDArray[Any] = values.astype(dtype)
        return drawn

    return entk.Factors({f"layer{i}.weight": entk.Outer(draw(), draw()) for i in range(count)})


def useful_flops(factors: Factors) -> int:
    """Count the flops no exact method of this kind can do without: half the matrix, T = 1."""
    import entk

    widths = 0
    for name in factors:
        leaf = factors[name]
        if isinstance(leaf, entk.Outer):
            widths += np.asarray(leaf.acts).shape[-1] + np.asarray(leaf.cots).shape[-1]
        elif isinstance(leaf, entk.Dense):
            widths += np.asarray(leaf.jac).shape[-1]
    return factors.n * (factors.n + 1) * widths


def fma_peak(threads: int) -> float:
    """Measure the float32 multiply-add rate of all `threads` together, in flops a second."""
    from entk import _core
    from entk._options import instruction_set

    return _core.fma_peak(
        double=False, threads=threads, isa=instruction_set(), seconds=PEAK_SECONDS
    )


def measure(
    n: int, width: int, sum_of_widths: int, threads: int | None
) -> tuple[dict[str, object], str]:
    """Time `entk.assemble` and the peak of the same cores, in turn.

    Returns
    -------
    dict, str
        The figures, and the same as a few lines of text.
    """
    import entk
    from entk import _core

    factors = random_factors(n, width, sum_of_widths)
    flops = useful_flops(factors)
    workers = threads or _core.usable_cores()
    out = np.empty((n, n), np.float32)
    entk.assemble(factors, out=out, threads=workers)
    seconds, fractions = [], []
    for _ in range(ROUNDS):
        peak = fma_peak(workers)
        with Cost() as cost:
            entk.assemble(factors, out=out, threads=workers)
        seconds.append(cost.seconds)
        fractions.append(flops / cost.seconds / peak)
    median = statistics.median(seconds)
    data: dict[str, object] = {
        "n": n,
        "leaves": len(factors),
        "width": width,
        "threads": workers,
        "seconds": median,
        "entries_per_second": n * n / median,
        "gflops": flops / median / 1e9,
        "fraction_of_peak": statistics.median(fractions),
    }
    text = (
        f"{n} x {n} float32 from {len(factors)} leaves of {width} x {width}, {workers} threads\n"
        f"{median:.3f} s, {n * n / median:.3g} entries/s, {flops / median / 1e9:.1f} GF/s, "
        f"{100 * statistics.median(fractions):.0f} % of the FMA peak measured in between"
    )
    return data, text
