"""Time `entk.jax.factors` in forward passes of the same jitted batch.

    python benches/extraction.py [--examples 1024] [--rounds 7] [--record]

Prints CSV: network, what, milliseconds, forward passes, the same by core seconds, megabytes of
factors. `sum` and `full` are whole calls (tracing, checks, copies to the host), after a first one
that compiles; `in_turn` is `sum` with ENTK_NUM_THREADS=1, one batch after the other; `dense` is the
usual `vmap(grad)`, of 64 examples and counted up. Rounds are interleaved; milliseconds are the
median, passes the median of the ratios within a round. `flops` are those of the compiled program,
also in forward passes: more than `LIMIT` for outputs="sum" fail the bench. Seconds depend on bytes
as well: a convolution's factors are its patches. `memory` is what writing as many bytes as "sum"
returns takes, once, into fresh memory; `gradient` is one ordinary gradient of the whole batch, and
`input` the gradient with respect to real inputs, which is nothing but the passes forward and back
that "sum" cannot do without.
"""

import argparse
import os
import statistics
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import record

import entk
import entk.jax
from entk.jax._extraction import prepare

LIMIT = 2.2
AGREE = 512 * 2.0**-24  # of the largest entry of a kernel in float32
RNG = np.random.default_rng(0)


def new(*shape):
    return jnp.asarray(RNG.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)


def mlp(n):
    params = [(new(a, b), new(b)) for a, b in [(512, 512), (512, 512), (512, 512), (512, 10)]]

    def f(params, x):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    return f, params, new(n, 512)


def cnn(n):
    params = [new(9, c, d).reshape(3, 3, c, d) for c, d in [(3, 32), (32, 64), (64, 128)]]
    params.append(new(128, 10))

    def f(params, x):
        for w in params[:-1]:
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=layout)
            x = jax.nn.relu(x)
        return x.mean((1, 2)) @ params[-1]

    return f, params, new(n, 32, 32, 3)


def transformer(n, d=128, t=32):
    block = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    blocks = [{name: new(*shape) for name, shape in block.items()} for _ in range(2)]
    params = {"blocks": blocks, "table": new(512, d), "head": new(d, 10)}

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)

    def f(params, tokens):
        x = params["table"][tokens]
        for p in params["blocks"]:
            q, k, v = jnp.split((norm(x) @ p["qkv"]).reshape(*x.shape[:2], 4, -1), 3, axis=-1)
            scores = jnp.einsum("nshd,nthd->nhst", q, k) / np.sqrt(d // 4)
            mixed = jnp.einsum("nhst,nthd->nshd", jax.nn.softmax(scores), v)
            x = x + mixed.reshape(x.shape) @ p["out"]
            x = x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]
        return x.mean(1) @ params["head"]

    return f, params, jnp.asarray(RNG.integers(0, 512, (n, t)), jnp.int32)


def clock(function):
    """Time one call: seconds on the wall, and of all cores together."""
    wall, cores = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cores


def in_turn(case):
    """Return a case that runs with one thread for batches."""

    def run():
        with mock.patch.dict(os.environ, ENTK_NUM_THREADS="1"):
            return case()

    return run


def check(factors, gradients):
    """Refuse to time what is not the kernel of the explicit gradients."""
    flat = np.concatenate(
        [np.asarray(g, np.float64).reshape(len(g), -1) for g in jax.tree.leaves(gradients)], 1
    )
    want = flat @ flat.T
    got = entk.assemble(factors.take(slice(0, len(want))), dtype="float64")
    error = np.abs(got - want).max() / np.abs(want).max()
    if not error <= AGREE:
        sys.exit(f"the factors differ from the gradients by {error:.2e}")


def flops(f, params, x, outputs):
    """Return the flops of the program that makes the factors, in those of a forward pass."""
    work = prepare(f, params, x, len(x), outputs)
    args = (work.traced.consts, work.network.leaves, [x], work.meant.rows.astype(np.float32))
    programs = jax.jit(f).lower(params, x), work.program().run.lower(*args)
    forward, taken = (program.compile().cost_analysis()["flops"] for program in programs)
    return taken / forward


def measure(build, n, rounds):
    """Return the rows of one network."""
    f, params, x = build(n)
    forward = jax.jit(f)
    few = min(n, 64)
    scaled = jax.grad(lambda p, one: f(p, one[None]).sum() / np.sqrt(f(p, one[None]).size))
    dense = jax.jit(jax.vmap(scaled, in_axes=(None, 0)))
    check(entk.jax.factors(f, params, x), dense(params, x[:few]))
    cases = {
        "forward": lambda: jax.block_until_ready(forward(params, x)),
        "sum": lambda: entk.jax.factors(f, params, x),
        "in_turn": in_turn(lambda: entk.jax.factors(f, params, x)),
        "full": lambda: entk.jax.factors(f, params, x, outputs="full"),
        "dense": lambda: jax.block_until_ready(dense(params, x[:few])),
    }
    sizes = {what: cases[what]().nbytes for what in ("sum", "full")}
    counts = {what: f"{flops(f, params, x, what):.2f}" for what in sizes}
    sizes["in_turn"] = sizes["memory"] = sizes["sum"]
    # What the bytes of "sum" take alone: memory that was not there before, written once.
    cases["memory"] = lambda: np.full(sizes["sum"], 1, np.uint8)
    loss = jax.jit(jax.grad(lambda p, x: f(p, x).sum()))
    cases["gradient"] = lambda: jax.block_until_ready(loss(params, x))
    if jnp.issubdtype(x.dtype, jnp.floating):
        back = jax.jit(jax.grad(lambda x, p: f(p, x).sum()))
        cases["input"] = lambda: jax.block_until_ready(back(x, params))
        cases["input"]()
    cases["gradient"]()
    cases["forward"]()
    spent = [{what: clock(case) for what, case in cases.items()} for _ in range(rounds)]
    rows = []
    for what in cases:
        times = n // few if what == "dense" else 1
        ratios = [[times * now[what][k] / now["forward"][k] for now in spent] for k in range(2)]
        passes, by_cores = (statistics.median(ratio) for ratio in ratios)
        rows.append(
            {
                "network": build.__name__,
                "examples": n,
                "what": what,
                "milliseconds": f"{1e3 * times * statistics.median(s[what][0] for s in spent):.2f}",
                "forward_passes": f"{passes:.2f}",
                "by_core_seconds": f"{by_cores:.2f}",
                "flops": counts.get(what, ""),
                "megabytes": f"{sizes.get(what, 0) / 1e6:.1f}",
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    rows = []
    for build, share in [(mlp, 1), (cnn, 4), (transformer, 4)]:
        rows += measure(build, given.examples // share, given.rounds)
    record.write("extraction", rows, record=given.record)
    slow = [row["network"] for row in rows if row["what"] == "sum" and float(row["flops"]) > LIMIT]
    if slow:
        sys.exit(f"{', '.join(slow)}: the flops of more than {LIMIT} passes for outputs='sum'")


if __name__ == "__main__":
    main()
