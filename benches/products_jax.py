"""`entk.KernelOperator` against products by reverse and forward mode in JAX, on the same network.

``K V = J (J^T V)`` for a block of 32 vectors and the gradient of the normalised sum of logits.
JAX's side is jitted, and the best of four: reverse then forward mode for all vectors at once
(`vmap`) or one after another (`lax.map`), each from the parameters or from a linearisation that is
kept. Its residuals and this side's factors are both made before the clock starts. The last network
has so many examples that this side, too, multiplies by Jacobians.

    python benches/products_jax.py [--fast] [--rounds 5] [--record]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import record

import entk
import entk.jax

NETWORKS = (
    ("784-512-512-10", 512),
    ("784-2048-2048-10", 64),
    ("784-512-512-10", 4096),
    ("64-256-256-10", 16384),
)
VECTORS = 32
# Times as fast as the best of JAX, in the median, in float32 on both sides: where entries are
# cheaper, and by Jacobians, where JAX linearised takes about 1.4 times the flops (it also pulls
# back and pushes forward through all layers but the first) at nearly GEMM's rate.
FLOORS = {"entries": 3.0, "jacobians": 1.0}
AGREE = 1e-4


def network(widths, n):
    """Return an MLP of the standard parametrisation, its parameters and inputs."""

    def f(params, x):
        for i, (w, b) in enumerate(params):
            x = (jax.nn.relu(x) if i else x) @ w + b
        return x

    keys = jax.random.split(jax.random.key(0), len(widths))
    shapes = list(itertools.pairwise(widths))
    params = [
        (jax.random.normal(key, shape) * np.sqrt(2 / shape[0]), jnp.zeros(shape[1]))
        for key, shape in zip(keys, shapes, strict=False)
    ]
    return f, params, jax.random.normal(keys[-1], (n, widths[0]))


def candidates(f, params, x):
    """Return JAX's ways to multiply with the kernel; vectors are rows of the block."""

    def scalar(params):
        logits = f(params, x)
        return logits.sum(axis=1) / np.sqrt(logits.shape[1])

    def product(v):
        _, pull = jax.vjp(scalar, params)
        return jax.jvp(scalar, (params,), pull(v))[1]

    _, push = jax.linearize(scalar, params)
    pull = jax.linear_transpose(push, params)
    kept = {
        "vmap, linearised": lambda block: jax.vmap(lambda v: push(*pull(v)))(block),
        "map, linearised": lambda block: jax.lax.map(lambda v: push(*pull(v)), block),
    }
    fresh = {
        "vmap": lambda block: jax.vmap(product)(block),
        "map": lambda block: jax.lax.map(product, block),
    }
    return {name: jax.jit(way) for name, way in {**fresh, **kept}.items()}


def clock(call):
    """Time one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run_case(name, n, rounds):
    """Time all ways, interleaved; return one row."""
    f, params, x = network([int(width) for width in name.split("-")], n)
    block = np.random.default_rng(1).standard_normal((VECTORS, n)).astype(np.float32)
    ways, given = candidates(f, params, x), jnp.asarray(block)
    start = time.perf_counter()
    factors = entk.jax.factors(f, params, x)
    made = time.perf_counter() - start
    ops = {acc: entk.KernelOperator(factors, accumulate=acc) for acc in ("float32", "float64")}
    columns = {acc: np.ascontiguousarray(block.T.astype(acc)) for acc in ops}
    calls = {way: lambda run=run: run(given).block_until_ready() for way, run in ways.items()}
    calls |= {acc: lambda acc=acc: ops[acc] @ columns[acc] for acc in ops}
    exact = ops["float64"] @ columns["float64"]
    for way, run in ways.items():
        error = np.abs(np.asarray(run(given)).T - exact).max() / np.abs(exact).max()
        if not error <= AGREE:
            sys.exit(f"{way} differs from the operator by {error:.1e}")
    entries, _ = ops["float32"]._multiplication.ways(VECTORS)
    times = {key: [] for key in calls}
    for acc in ops:
        calls[acc]()
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(clock(call))
    middle = {key: statistics.median(seconds) for key, seconds in times.items()}
    best = min(ways, key=middle.get)
    ratio = {acc: [a / b for a, b in zip(times[best], times[acc], strict=True)] for acc in ops}
    return {
        "case": f"mlp {name}",
        "n": n,
        "vectors": VECTORS,
        "way": "jacobians" if entries is None else "entries",
        "best_of_jax": best,
        **{f"jax_{way.replace(', ', '_')}": round(middle[way], 4) for way in ways},
        "entk_float32": round(middle["float32"], 4),
        "entk_float64": round(middle["float64"], 4),
        "times_jax_float32": round(statistics.median(ratio["float32"]), 2),
        "times_jax_float64": round(statistics.median(ratio["float64"]), 2),
        "factors_seconds_with_compiling": round(made, 2),
    }


def main():
    """Run all networks, print CSV, and fail below the floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="small, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    cases = [("784-512-512-10", 128)] if args.fast else NETWORKS
    rows = [run_case(name, n, 2 if args.fast else args.rounds) for name, n in cases]
    record.write("products_jax", rows, record=args.record)
    slow = [row for row in rows if row["times_jax_float32"] < FLOORS[row["way"]]]
    if slow and not args.fast:
        sys.exit(f"below {FLOORS} times JAX: {slow}")


if __name__ == "__main__":
    main()
