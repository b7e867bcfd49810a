"""Products with `entk.KernelOperator`: what fraction of GEMM's rate.

For each width of leaf, type of accumulation and number of vectors: useful flops, ``4 N P`` a
vector (two products of matrices), over the rate by the clock on the wall that NumPy's GEMM of the
same type reaches with the same threads just before, on 2,048 x 2,048 matrices. Converting and
packing factors, scaling them by the vectors and adding up count as time, not as flops. Where the
operator computes entries instead, as that takes fewer operations, the fraction exceeds 1.

    python benches/products.py [--fast] [--rounds 5] [--threads 1 2] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import cache

import numpy as np
import record

import entk
from entk._bench import random_factors
from entk._blas_threads import blas_threads
from entk._options import thread_count

# Widths of leaves, and examples.
SIZES = ((64, 16384), (256, 2048), (256, 12288), (1024, 256))
VECTORS = (1, 32)
SQUARE = 2048
# Threads of OpenBLAS look for work for some 25 ms after a product, on cores that are timed next.
SETTLE_SECONDS = 0.1
# Of GEMM, for 32 vectors, by the clock on the wall.
FLOOR = 0.7
AGREE = 2.0**-40  # of the largest entry of a product in float64


def clock(function):
    """Time one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@cache
def square(dtype):
    """Return two square matrices."""
    return np.random.default_rng(0).standard_normal((2, SQUARE, SQUARE)).astype(dtype)


def gemm_rate(dtype, threads):
    """Return the flops a second of a square GEMM."""
    a, b = square(dtype)
    with blas_threads(threads):
        a[:256] @ b
        return 2 * SQUARE**3 / clock(lambda: a @ b)


def check(op, factors):
    """Refuse to time what is not the kernel."""
    few = slice(0, 8)
    unit = np.zeros((factors.n, 8), op.dtype)
    unit[np.arange(8), np.arange(8)] = 1.0
    want = entk.assemble(factors.take(few), accumulate="float64", dtype="float64")
    error = np.abs((op @ unit)[few] - want).max() / np.abs(want).max()
    limit = AGREE if op.dtype == np.float64 else 512 * 2.0**-24
    if not error <= limit:
        sys.exit(f"the operator differs from the kernel by {error:.2e}")


def run_case(width, n, accumulate, rounds, threads):
    """Time products with one vector and with a block of them; one row each."""
    factors = random_factors(n, width, 2 * width)
    op = entk.KernelOperator(factors, accumulate=accumulate, threads=threads)
    check(op, factors)
    rng = np.random.default_rng(1)
    parameters = sum(factors[name].acts.shape[1] * factors[name].cots.shape[1] for name in factors)
    rows = []
    for k in VECTORS:
        v = rng.standard_normal((n, k)).astype(op.dtype)
        op @ v
        walls, rates, fractions = [], [], []
        for _ in range(rounds):
            rates.append(gemm_rate(accumulate, threads))
            time.sleep(SETTLE_SECONDS)
            walls.append(clock(lambda v=v: op @ v))
            fractions.append(4 * n * parameters * k / walls[-1] / rates[-1])
        rows.append(
            {
                "case": f"outer d={width}",
                "n": n,
                "parameters": parameters,
                "accumulate": accumulate,
                "vectors": k,
                "threads": threads,
                "way": "jacobians" if op._multiplication.ways(k)[0] is None else "entries",
                "seconds": round(statistics.median(walls), 4),
                "gflops": round(4 * n * parameters * k / statistics.median(walls) / 1e9, 1),
                "gemm_gflops": round(statistics.median(rates) / 1e9, 1),
                "of_gemm": round(statistics.median(fractions), 3),
            }
        )
    return rows


def main():
    """Run all cases, print CSV, and fail below the floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="one width, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, thread_count(None)])
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    sizes, rounds = (((256, 2048),), 2) if args.fast else (SIZES, args.rounds)
    rows = []
    for threads in sorted(set(args.threads)):
        for width, n in sizes:
            for accumulate in ("float32", "float64"):
                rows += run_case(width, n, accumulate, rounds, threads)
    record.write("products", rows, record=args.record)
    if any(row["of_gemm"] < FLOOR for row in rows if row["vectors"] == max(VECTORS)):
        sys.exit(f"below {FLOOR} of GEMM")


if __name__ == "__main__":
    main()
