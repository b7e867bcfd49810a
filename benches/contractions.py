"""The third contraction of Novak et al.: one side expanded, beside what `entk` does.

With T positions and R outputs a pair of examples costs ``T^2 (d_in + R^2 d_out)`` multiply-adds
from factors (A), ``R^2 d_in d_out`` with both gradients expanded (B), and ``T R d_in d_out + R^2 T
d_out`` with one of them expanded (D). D treats the two examples differently, so K(n, m) and K(m, n)
are rounded differently: not for the fused engine, whose bits are promised. This shows the price.

    python benches/contractions.py [--rounds 3] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import record

import entk

N, OUTPUTS, POSITIONS, WIDTH = 16, 100, 16, 256
AGREE = 512 * 2.0**-24  # of sqrt(K_ii K_jj)


def one_side_expanded(acts, cots):
    """Assemble the lower half by D with the BLAS of NumPy, and mirror it."""
    n, r, t, d_out = cots.shape
    kernel = np.empty((n, r, n, r), np.float32)
    flat = np.ascontiguousarray(cots.transpose(0, 2, 1, 3))  # examples, positions, outputs, d_out
    sides = cots.reshape(n, r, t * d_out)
    for m in range(n):
        gradient = acts[m].T @ flat[m].reshape(t, r * d_out)
        seen = acts[m:].reshape(-1, acts.shape[-1]) @ gradient
        seen = seen.reshape(n - m, t, r, d_out).transpose(0, 1, 3, 2).reshape(n - m, t * d_out, r)
        block = sides[m:] @ seen
        kernel[m:, :, m, :] = block
        kernel[m, :, m:, :] = block.transpose(2, 0, 1)
    return kernel.reshape(n * r, n * r)


def main():
    """Time the fused engine, the BLAS engine and D in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    acts = rng.standard_normal((N, POSITIONS, WIDTH), dtype=np.float32)
    cots = rng.standard_normal((N, OUTPUTS, POSITIONS, WIDTH), dtype=np.float32)
    factors = entk.Factors({"w": entk.Outer(acts, cots)}, outputs="full")
    runs = {
        "fused": lambda: entk.assemble(factors),
        "blas": lambda: entk.assemble(factors, engine="blas"),
        "one side expanded": lambda: one_side_expanded(acts, cots),
    }
    results = {name: run() for name, run in runs.items()}
    scale = np.sqrt(np.diagonal(results["fused"]))
    for name, got in results.items():
        error = np.abs((got - results["fused"]) / scale / scale[:, None]).max()
        if not error <= AGREE:
            sys.exit(f"{name} differs from the fused engine by {error:.2e} of sqrt(K_ii K_jj)")
    seconds = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, found in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(found, seconds["fused"], strict=True))
        row = {"method": name, "n": N, "outputs": OUTPUTS, "positions": POSITIONS, "width": WIDTH}
        row |= {"seconds": f"{statistics.median(found):.3f}", "ratio_to_fused": f"{ratio:.3f}"}
        rows.append(row)
    record.write("contractions", rows, record=options.record)


if __name__ == "__main__":
    main()
