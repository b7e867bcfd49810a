"""The planner's choice between the three contractions of a leaf with positions, timed.

By multiply-adds for a pair of examples, A takes ``T^2 (d_in + R^2 d_out)`` (pairs of positions), B
``R^2 d_in d_out`` (both gradients expanded) and D ``T R d_in d_out + R^2 T d_out`` (one of them, by
``engine="blas"`` only). The planner goes by these counts, from shapes alone. Here the shapes just
before and just after its turning point are timed; what the contraction that was not taken would
have cost there follows from its count. Where ``taken / other`` is below one, the choice is right.

A last part times D itself at R = 100, T = 16, d = 256 beside both engines and NumPy.

    python benches/contractions.py [--rounds 3] [--only WORD] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import record

import entk

AGREE = 512 * 2.0**-24  # of sqrt(K_ii K_jj)
RNG = np.random.default_rng(0)
POSITIONS = {  # d, R: examples. Turning points between A and B, over T.
    (32, 1): 8192,
    (64, 1): 6144,
    (128, 1): 3072,
    (256, 1): 2048,
    (64, 10): 384,
}
OUTPUTS = {(64, 8): 256, (128, 8): 128, (256, 16): 64}  # d, T: examples. Between B and D, over R.


def leaf(n, t, width, rows):
    acts = RNG.standard_normal((n, t, width), dtype=np.float32)
    cots = RNG.standard_normal((n, rows, t, width), dtype=np.float32)
    return entk.Factors({"w": entk.Outer(acts, cots)}, outputs="full")


def plan_of(engine, t, width, rows):
    leaves = entk.plan(leaf(1, t, width, rows), engine=engine).leaves
    return leaves[0].contraction[0]


def count(plan, t, width, rows):
    """Count the multiply-adds of a contraction for a pair of examples."""
    pairs = rows * rows
    return {
        "A": t * t * width * (1 + pairs),
        "B": pairs * width * width,
        "D": t * rows * width * (width + rows),
    }[plan]


def turning_point(engine, shapes):
    """Return the first two neighbours among shapes whose contractions differ."""
    plans = [plan_of(engine, *shape) for shape in shapes]
    turns = (i for i in range(1, len(plans)) if plans[i] != plans[i - 1])
    at = next(turns, None)
    if at is None:
        sys.exit(f"no turning point between {shapes[0]} and {shapes[-1]}")
    return [(shapes[i], plans[i]) for i in (at - 1, at)]


def crossing(engine, shapes, n, rounds):
    """Time the last shape of one contraction and the first of the next, in turn."""
    sides = turning_point(engine, shapes)
    factors = [leaf(n, *shape) for shape, _ in sides]
    for part in factors:
        entk.assemble(part, engine=engine)
    seconds = [[], []]
    for _ in range(rounds):
        for part, found in zip(factors, seconds, strict=True):
            started = time.perf_counter()
            entk.assemble(part, engine=engine)
            found.append(time.perf_counter() - started)
    medians = [statistics.median(found) for found in seconds]
    rows = []
    for here, there in ((0, 1), (1, 0)):
        (shape, taken), (elsewhere, other) = sides[here], sides[there]
        estimate = medians[there] * count(other, *shape) / count(other, *elsewhere)
        t, width, outputs = shape
        rows.append(
            {
                "engine": engine,
                "n": n,
                "width": width,
                "positions": t,
                "outputs": outputs,
                "taken": taken,
                "seconds": f"{medians[here]:.3f}",
                "other": other,
                "taken / other": f"{medians[here] / estimate:.2f}",
            }
        )
    return rows


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


def third(rounds, n=48, t=16, width=256, outputs=100):
    """Time both engines and NumPy where D gains most."""
    factors = leaf(n, t, width, outputs)
    acts, cots = factors["w"].acts, factors["w"].cots
    runs = {
        "fused": lambda: entk.assemble(factors),
        "blas": lambda: entk.assemble(factors, engine="blas"),
        "D in NumPy": lambda: one_side_expanded(acts, cots),
    }
    results = {name: run() for name, run in runs.items()}
    scale = np.sqrt(np.diagonal(results["fused"]))
    for name, got in results.items():
        error = np.abs((got - results["fused"]) / scale / scale[:, None]).max()
        if not error <= AGREE:
            sys.exit(f"{name} differs from the fused engine by {error:.2e} of sqrt(K_ii K_jj)")
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    shape = {"n": n, "width": width, "positions": t, "outputs": outputs}
    taken = {"fused": plan_of("fused", t, width, outputs), "blas": "D", "D in NumPy": "D"}
    rows = []
    for name, found in seconds.items():
        row = {"engine": name, **shape, "taken": taken[name]}
        row |= {"seconds": f"{statistics.median(found):.3f}", "other": "fused"}
        rows.append(row | {"taken / other": f"{ratio(found, seconds['fused']):.2f}"})
    return rows


def ratio(found, beside):
    return statistics.median(a / b for a, b in zip(found, beside, strict=True))


def main():
    """Time every turning point, and D."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="positions, outputs or third")
    parser.add_argument("--record", action="store_true", help="keep the figures in records/")
    options = parser.parse_args()
    rows = []
    if "positions".startswith(options.only):
        for (width, outputs), n in POSITIONS.items():
            shapes = [(t, width, outputs) for t in range(2, 65)]
            rows += crossing("fused", shapes, n, options.rounds)
    if "outputs".startswith(options.only):
        for (width, t), n in OUTPUTS.items():
            shapes = [(t, width, outputs) for outputs in range(4, 101)]
            rows += crossing("blas", shapes, n, options.rounds)
    if "third".startswith(options.only):
        rows += third(options.rounds)
    record.write("contractions", rows, record=options.record)


if __name__ == "__main__":
    main()
