"""Kernel assembly against every peer, interleaved, in one process.

N = 6,144 float32, sums of widths 2,048. Absolute seconds drift on shared machines, so the figures
to quote are the ratio to entk within a round and the fraction of the FMA peak that was measured
between the rounds. Every peer's matrix is compared with entk's before anything is timed.

    python benches/assembly.py [--fast] [--rounds 5] [--record] [--plot assembly.png]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import peers
import record

import entk
from entk._bench import fma_peak, random_factors, useful_flops
from entk._options import thread_count

WIDTHS = (16, 64, 256, 1024)
SUM_OF_WIDTHS = 2048
SIZE = 6144
# Of the FMA peak, by core seconds, which other work on the machine moves less than seconds on the
# wall. Below it a change of compiler or code has broken the register tile.
FLOOR = 0.5
AGREE = 512 * 2.0**-24  # of sqrt(K_ii K_jj): two float32 results, 256 roundings each at most


def cases(n):
    """Yield a name, entk's factors, and the peers ready to run."""
    for width in WIDTHS:
        factors = random_factors(n, width, SUM_OF_WIDTHS)
        leaves = [(factors[name].acts, factors[name].cots) for name in factors]
        yield f"outer d={width}", factors, peers.FACTOR_PEERS, leaves
    rng = np.random.default_rng(0)
    jac = rng.standard_normal((n, SUM_OF_WIDTHS), dtype=np.float32)
    factors = entk.Factors({"weight": entk.Dense(jac)})
    yield f"dense P={SUM_OF_WIDTHS}", factors, peers.JACOBIAN_PEERS, jac


def check(name, got, want):
    """Refuse to time what does not compute the same matrix."""
    scale = np.sqrt(np.diagonal(want))
    error = np.abs(got - want)
    error /= scale[:, None]
    error /= scale[None, :]
    if not error.max() <= AGREE:
        sys.exit(f"{name} differs from entk by {error.max():.2e} of sqrt(K_ii K_jj)")


def clock(function):
    """Time one call: seconds on the wall, and of all cores together."""
    wall, cores = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cores


def run_case(name, factors, makers, data, rounds, threads):
    """Time entk and its peers in turn; one row each."""
    runs = {"entk": lambda: entk.assemble(factors, threads=threads)}
    want = runs["entk"]()
    for peer, maker in makers.items():
        runs[peer] = maker(data)
        check(f"{name}: {peer}", runs[peer](), want)
    del want
    seconds = {peer: [] for peer in runs}
    peaks = []
    for _ in range(rounds):
        peaks.append(fma_peak(threads))
        for peer, function in runs.items():
            seconds[peer].append(clock(function))
    flops, peak = useful_flops(factors), statistics.median(peaks)
    rows = []
    for peer, clocked in seconds.items():
        times = [wall for wall, _ in clocked]
        median = statistics.median(times)
        cores = statistics.median(used for _, used in clocked)
        pairs = zip(times, (wall for wall, _ in seconds["entk"]), strict=True)
        rows.append(
            {
                "case": name,
                "n": factors.n,
                "leaves": len(factors),
                "threads": threads,
                "method": peer,
                "seconds": f"{median:.4f}",
                "fastest": f"{min(times):.4f}",
                "slowest": f"{max(times):.4f}",
                "core_seconds": f"{cores:.4f}",
                "ratio_to_entk": f"{statistics.median(a / b for a, b in pairs):.3f}",
                "gflops": f"{flops / median / 1e9:.1f}",
                "peak_gflops": f"{peak / 1e9:.1f}",
                "fraction_of_peak": f"{flops / median / peak:.3f}",
                "by_core_seconds": f"{flops / cores / peak * threads:.3f}",
            }
        )
    return rows


def draw(rows, path):
    """Draw the fraction of peak of every method and case."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["case"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for at, method in enumerate(methods):
        found = {
            row["case"]: float(row["fraction_of_peak"]) for row in rows if row["method"] == method
        }
        places = [
            i + 0.13 * (at - len(methods) / 2) for i, name in enumerate(names) if name in found
        ]
        axes.bar(places, [found[name] for name in names if name in found], 0.12, label=method)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1)
    axes.set_ylabel("fraction of the measured FMA peak")
    axes.legend(ncols=4, fontsize="small")
    figure.savefig(path, dpi=150)


def main():
    """Run all cases; fail when entk falls under the floor."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="N = 4,096, three rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=thread_count(None))
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    parser.add_argument("--plot", metavar="FILE")
    options = parser.parse_args()
    n, rounds = (4096, 3) if options.fast else (SIZE, options.rounds)
    rows = []
    for case in cases(n):
        rows += run_case(*case, rounds, options.threads)
        print(f"done: {case[0]}", file=sys.stderr, flush=True)
    record.write("assembly", rows, record=options.record)
    if options.plot:
        draw(rows, options.plot)
    ours = [float(row["by_core_seconds"]) for row in rows if row["method"] == "entk"]
    if min(ours) < FLOOR:
        sys.exit(f"entk reached {min(ours):.2f} of the FMA peak; the floor is {FLOOR}")


if __name__ == "__main__":
    main()
