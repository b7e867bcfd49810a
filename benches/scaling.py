"""Throughput against width of leaves, number of examples and threads, beside the roofline.

The roof is the lower of the FMA peak and of what memory can feed: the factors of each example read
once and the result written once, at the rate of a copy. Everything is measured in this run.

    python benches/scaling.py [--fast] [--record] [--plot scaling.png]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import record

import entk
from entk._bench import fma_peak, random_factors
from entk._options import thread_count

WIDTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
SIZES = (512, 1024, 2048, 4096, 8192)
SUM_OF_WIDTHS = 2048
COPY = 1 << 26  # elements


def copy_rate():
    """Measure the bytes a second that one thread reads and writes."""
    source, target = np.ones(COPY, np.float32), np.empty(COPY, np.float32)
    np.copyto(target, source)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def point(axis, n, width, threads, rounds):
    """Time one problem; its row."""
    factors = random_factors(n, width, SUM_OF_WIDTHS)
    flops = entk.plan(factors).flops
    entk.assemble(factors, threads=threads)
    seconds, peaks = [], []
    for _ in range(rounds):
        peaks.append(fma_peak(threads))
        started = time.perf_counter()
        entk.assemble(factors, threads=threads)
        seconds.append(time.perf_counter() - started)
    median, peak = statistics.median(seconds), statistics.median(peaks)
    traffic = 4 * n * (n + SUM_OF_WIDTHS)
    return {
        "axis": axis,
        "n": n,
        "d": width,
        "threads": threads,
        "seconds": f"{median:.4f}",
        "gflops": f"{flops / median / 1e9:.1f}",
        "peak_gflops": f"{peak / 1e9:.1f}",
        "flops_per_byte": f"{flops / traffic:.0f}",
        "fraction_of_peak": f"{flops / median / peak:.3f}",
    }


def measure(rounds, cores):
    """Yield a row for every point of the three axes."""
    for width in WIDTHS:
        yield point("d", 4096, width, cores, rounds)
    for n in SIZES:
        yield point("n", n, 256, cores, rounds)
    for threads in range(1, cores + 1):
        yield point("threads", 4096, 256, threads, rounds)


def draw(rows, copied, path):
    """Draw throughput and roof along each axis."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
    labels = {"d": "d_in = d_out of a leaf", "n": "examples", "threads": "threads"}
    for axes, (axis, label) in zip(panels, labels.items(), strict=True):
        found = [row for row in rows if row["axis"] == axis]
        x = [row[axis] for row in found]
        roof = [
            min(float(row["peak_gflops"]), copied / 1e9 * float(row["flops_per_byte"]))
            for row in found
        ]
        axes.plot(x, roof, "k--", label="roof: FMA peak or memory")
        axes.plot(x, [float(row["gflops"]) for row in found], "o-", label="entk.assemble")
        axes.set_xlabel(label)
        if axis != "threads":
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(value) for value in x])
        else:
            axes.set_xticks(x)
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("GF/s, float32")
    panels[0].legend(loc="lower right")
    figure.savefig(path, dpi=150)


def main():
    """Measure, print, keep and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true", help="one round")
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    parser.add_argument("--plot", metavar="FILE")
    options = parser.parse_args()
    rows = list(measure(1 if options.fast else 5, thread_count(None)))
    record.write("scaling", rows, record=options.record)
    if options.plot:
        draw(rows, copy_rate(), options.plot)


if __name__ == "__main__":
    main()
