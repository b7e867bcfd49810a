"""Time `entk.jax.factors` in forward passes of the same jitted batch.

    python benches/extraction.py [--examples 1024] [--repeat 5]

Prints CSV: network, what, milliseconds, forward passes, megabytes of factors. `raw` is the compiled
program alone, `factors` the whole call (tracing, checks, copies to the host), `dense` the usual
`vmap(grad)`. Forward and program are timed alternately; the ratio is that of the medians.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import entk.jax
from entk.jax._extraction import prepare

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


def milliseconds(functions, repeat):
    """Return the median time of each function, all run in turn."""
    times = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(repeat):
        for function, mine in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            mine.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


def measure(build, n, repeat):
    f, params, x = build(n)
    forward = jax.jit(f)
    work = prepare(f, params, x, n, "sum")
    program = work.program()
    dense = jax.jit(jax.vmap(jax.grad(lambda p, one: f(p, one[None]).sum()), in_axes=(None, 0)))
    few = min(n, 64)
    base, raw, whole, slow = milliseconds(
        [
            lambda: jax.block_until_ready(forward(params, x)),
            lambda: jax.block_until_ready(work.run(program, x, work.meant.rows)),
            lambda: entk.jax.factors(f, params, x, batch_size=n),
            lambda: jax.block_until_ready(dense(params, x[:few])),
        ],
        repeat,
    )
    size = n * program.result_bytes / 1e6
    for what, spent in [("forward", base), ("raw", raw), ("factors", whole)]:
        print(f"{build.__name__},{what},{spent:.2f},{spent / base:.2f},{size:.1f}")
    print(f"{build.__name__},dense,{slow * n / few:.2f},{slow * n / few / base:.2f},")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=5)
    given = parser.parse_args()
    print("network,what,milliseconds,forward_passes,megabytes")
    for build, share in [(mlp, 1), (cnn, 4), (transformer, 4)]:
        measure(build, given.examples // share, given.repeat)


if __name__ == "__main__":
    main()
