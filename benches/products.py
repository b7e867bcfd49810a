"""Products with `entk.KernelOperator`: what fraction of GEMM's rate, and when assembling wins.

For each width of leaf, type of accumulation and number of vectors: useful flops, ``4 N P`` a
vector, over the rate that NumPy's GEMM of the same type reaches with the same threads between the
rounds. Converting factors, scaling them by the vectors and adding up count as time, not as flops.

    python benches/products.py [--fast] [--rounds 5] [--threads 2] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import record

import entk
from entk._bench import random_factors
from entk._blas_threads import blas_threads
from entk._options import thread_count

WIDTHS = (64, 256, 512)
SUM_OF_WIDTHS = 1024
VECTORS = (1, 32)
SIZE = 2048
SQUARE = 1536
# Of GEMM by core seconds, for 32 vectors and leaves at least 256 wide.
FLOOR = 0.5
AGREE = 2.0**-40  # of the largest entry of a product in float64


def clock(function):
    """Time one call: seconds on the wall, and of all cores together."""
    wall, cores = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cores


def gemm_rate(dtype, threads):
    """Return the flops a second of core time of a square GEMM."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, SQUARE, SQUARE)).astype(dtype)
    with blas_threads(threads):
        a @ b
        return 2 * SQUARE**3 / clock(lambda: a @ b)[1]


def check(op, factors):
    """Refuse to time what is not the kernel."""
    few = slice(0, 64)
    unit = np.zeros((factors.n, 64), op.dtype)
    unit[np.arange(64), np.arange(64)] = 1.0
    want = entk.assemble(factors.take(few), accumulate="float64", dtype="float64")
    error = np.abs((op @ unit)[few] - want).max() / np.abs(want).max()
    limit = AGREE if op.dtype == np.float64 else 512 * 2.0**-24
    if not error <= limit:
        sys.exit(f"the operator differs from the kernel by {error:.2e}")


def run_case(width, n, accumulate, rounds, threads):
    """Time products with one vector and with a block of them; one row each."""
    factors = random_factors(n, width, SUM_OF_WIDTHS)
    op = entk.KernelOperator(factors, accumulate=accumulate, threads=threads)
    check(op, factors)
    rng = np.random.default_rng(1)
    parameters = sum(factors[name].acts.shape[1] * factors[name].cots.shape[1] for name in factors)
    rows = []
    for k in VECTORS:
        v = rng.standard_normal((n, k)).astype(op.dtype)
        op @ v
        walls, fractions = [], []
        for _ in range(rounds):
            rate = gemm_rate(accumulate, threads)
            wall, cores = clock(lambda v=v: op @ v)
            walls.append(wall)
            fractions.append(4 * n * parameters * k / cores / rate)
        rows.append(
            {
                "case": f"outer d={width}",
                "n": n,
                "parameters": parameters,
                "accumulate": accumulate,
                "vectors": k,
                "threads": threads,
                "seconds": round(statistics.median(walls), 4),
                "of_gemm_by_core_seconds": round(statistics.median(fractions), 3),
            }
        )
    return rows


def main():
    """Run all cases, print CSV, and fail below the floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="one width, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=thread_count(None))
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    widths, rounds = ((256,), 2) if args.fast else (WIDTHS, args.rounds)
    rows = []
    for width in widths:
        for accumulate in ("float32", "float64"):
            rows += run_case(width, SIZE, accumulate, rounds, args.threads)
    record.write("products", rows, record=args.record)
    wide = [row for row in rows if row["vectors"] == 32 and row["case"] != "outer d=64"]
    if any(row["of_gemm_by_core_seconds"] < FLOOR for row in wide):
        sys.exit(f"below {FLOOR} of GEMM")


if __name__ == "__main__":
    main()
