"""The speed of the core, line by line, each against what is asked of it: one run, one table.

A fraction of peak is the flops of `entk.plan` (half the entries of a symmetric kernel; packing,
expansion, scan, mirror and write-out are time and not flops) over seconds on the wall, over the FMA
rate of the same cores and instruction set measured in the same round. A ratio is that of two calls
of one round. Both are medians over rounds; all results are fresh arrays in RAM. `from_cores` gives
the fraction by core seconds, which other work moves less; `into_array` that of a call
into an array that has been written before, for what the pages of a fresh one cost.

    python benches/core.py [--fast] [--rounds 5] [--only WORD] [--record]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import peers
import record

import entk
from entk import _core
from entk._bench import random_factors
from entk._options import thread_count

SIZE, SUM_OF_WIDTHS = 6144, 2048
PEAK_SECONDS = 0.1
# Peers' threads go on spinning after a call, on the cores of the next one.
SETTLE_SECONDS = 0.3
# Under this share of what is asked a line has lost its code generation, not a few per cent.
BROKEN = 0.5
RNG = np.random.default_rng(0)


@dataclass
class Call:
    """One assembly: what to call, and how its rate is counted."""

    factors: entk.Factors
    options: dict = field(default_factory=dict)
    isa: str | None = None

    def __call__(self, out=None):
        with forced(self.isa):
            return entk.assemble(self.factors, out=out, **self.options)

    @property
    def flops(self):
        options = {name: value for name, value in self.options.items() if name != "threads"}
        return entk.plan(self.factors, **options).flops

    def peak(self, threads):
        double = self.options.get("accumulate") == "float64"
        isa = self.isa or os.environ.get("ENTK_ISA") or None
        return _core.fma_peak(double=double, threads=threads, isa=isa, seconds=PEAK_SECONDS)


@dataclass
class Line:
    """A line of the table: the fraction of peak of a call, or the seconds of another over its."""

    name: str
    call: Call
    least: float | None = None
    most: float | None = None
    other: object = None
    beside: str = ""
    repeat: int = 1


@contextmanager
def forced(isa):
    """Hold ENTK_ISA."""
    before = os.environ.get("ENTK_ISA")
    if isa:
        os.environ["ENTK_ISA"] = isa
    try:
        yield
    finally:
        if isa:
            os.environ.pop("ENTK_ISA")
            if before is not None:
                os.environ["ENTK_ISA"] = before


def draw(*shape):
    return RNG.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))


def outer(n, width, t=None, rows=None):
    acts = draw(n, width) if t is None else draw(n, t, width)
    cots = draw(n, *([rows] if rows else []), *([t] if t else []), width)
    return entk.Outer(acts, cots)


def widths(n):
    """Yield the lines of products of narrow and wide leaves, alone and against every peer."""
    against = {
        "torch tiles": {64: 1.6, 256: 1.35, 1024: 1.15},
        "jax tiles": {64: 3},
        "numpy one-liner": {16: 15, 64: 10},
    }
    for width in (16, 64, 256, 1024):
        factors = random_factors(n, width, SUM_OF_WIDTHS)
        call = Call(factors)
        yield Line(f"d={width}", call, least=0.80 if width == 16 else 0.88)
        if width > 16:
            if "avx2" in _core.instruction_sets():
                yield Line(f"d={width} avx2", Call(factors, isa="avx2"), least=0.85)
            double = Call(factors, {"accumulate": "float64"})
            yield Line(f"d={width} accumulate=float64", double, least=0.86)
        for peer, asked in against.items():
            package = peer.split()[0]
            if width in asked and importlib.util.find_spec(package):
                # The one-liner takes tens of seconds for what takes one: half the examples will do.
                part = factors.take(slice(0, n // 2)) if package == "numpy" else factors
                leaves = [(part[name].acts, part[name].cots) for name in part]
                other = peers.FACTOR_PEERS[peer](leaves)
                yield Line(f"d={width}", Call(part), asked[width], other=other, beside=peer)


def shapes(n):
    """Yield the lines of dense leaves, positions and several outputs."""
    jac = draw(n, 4096)
    dense = Call(entk.Factors({"weight": entk.Dense(jac)}))
    yield Line("dense P=4096", dense, 1.0, other=peers.scipy_syrk(jac), beside="scipy ssyrk")
    yield Line("dense P=4096", dense)
    del jac, dense
    half = n // 2
    yield Line("T=4 d=256 (pairs)", Call(entk.Factors({"w": outer(half, 256, t=4)})), 0.85)
    yield Line("T=32 d=64 (expand)", Call(entk.Factors({"w": outer(n, 64, t=32)})), 0.80)
    several = entk.Factors({"w": outer(half, 1024, rows=10)}, outputs="full")
    yield Line("R=10 trace d=1024", Call(several, {"outputs": "trace"}), 0.85)
    several = several.take(slice(0, half // 2))
    yield Line("R=10 full d=1024", Call(several, {"outputs": "full"}), 0.85)


def shared(n):
    """Yield the lines of leaves that share an array, and of threads."""
    acts, cots = draw(n, 256), [draw(n, 256) for _ in range(3)]
    same = entk.Factors({f"qkv{i}": entk.Outer(acts, x) for i, x in enumerate(cots)})
    apart = entk.Factors({f"qkv{i}": entk.Outer(draw(n, 256), x) for i, x in enumerate(cots)})
    yield Line(
        "q, k, v of one input", Call(same), 1.4, other=Call(apart), beside="three inputs", repeat=5
    )
    weight = {"weight": entk.Outer(acts, cots[0])}
    bias = {"bias": entk.Dense(cots[0])}
    alone, both = Call(entk.Factors(weight)), Call(entk.Factors(weight | bias))
    yield Line("cost of a bias", alone, most=1.03, other=both, beside="with it", repeat=5)
    if thread_count(None) > 1:
        factors = random_factors(n, 256, SUM_OF_WIDTHS)
        one, two = (Call(factors, {"threads": count}) for count in (1, 2))
        yield Line("2 threads", two, 1.9, other=one, beside="1 thread")


def clock(function):
    """Time one call: seconds on the wall, and of all cores together."""
    wall, cores = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cores


def measure(line, rounds, threads):
    """Run a line's calls in turn; its row of the table."""
    kept = line.call()
    if line.other is not None:
        kept = None
        line.other()
    values, by_cores, in_place, seconds = [], [], [], []
    for _ in range(rounds * line.repeat):
        if line.other is None:
            peak = line.call.peak(threads)
            wall, cores = clock(line.call)
            values.append(line.call.flops / wall / peak)
            by_cores.append(line.call.flops / cores / (peak / threads))
            in_place.append(line.call.flops / clock(lambda: line.call(kept))[0] / peak)
        else:
            if not isinstance(line.other, Call):
                time.sleep(SETTLE_SECONDS)
            wall, _ = clock(line.call)
            values.append(clock(line.other)[0] / wall)
        seconds.append(wall)
    value = statistics.median(values)
    asked = f">= {line.least}" if line.least else f"<= {line.most}" if line.most else ""
    good = value >= (line.least or 0) and value <= (line.most or np.inf)
    return {
        "line": line.name,
        "measured": f"times {line.beside}" if line.beside else "fraction of peak",
        "n": line.call.factors.n,
        "value": f"{value:.3f}",
        "lowest": f"{min(values):.3f}",
        "highest": f"{max(values):.3f}",
        "from_cores": f"{statistics.median(by_cores):.3f}" if by_cores else "",
        "into_array": f"{statistics.median(in_place):.3f}" if in_place else "",
        "asked": asked,
        "met": "" if not asked else "yes" if good else "no",
        "seconds": f"{statistics.median(seconds):.3f}",
        "threads": line.call.options.get("threads", threads),
    }


def show(row):
    print(
        f"{row['line']:<26}{row['measured']:<24}{row['value']:>8}  ({row['lowest']} to "
        f"{row['highest']})  {row['asked']:<8} {row['met']}",
        flush=True,
    )


def main():
    """Measure every line; fail when one is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="N = 3,072, three rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="lines with this word")
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    options = parser.parse_args()
    n, rounds = (SIZE // 2, 3) if options.fast else (SIZE, options.rounds)
    threads = thread_count(None)
    rows, broken = [], []
    for part in (widths, shapes, shared):
        for line in part(n):
            if options.only not in f"{line.name} {line.beside}":
                continue
            row = measure(line, rounds, threads)
            show(row)
            rows.append(row)
            if line.least and float(row["value"]) < BROKEN * line.least:
                broken.append(row["line"])
    record.write("core", rows, record=options.record)
    if broken:
        sys.exit(f"below half of what is asked: {', '.join(broken)}")


if __name__ == "__main__":
    main()
