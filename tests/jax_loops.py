"""Networks with loops written as plain functions."""

import jax
import jax.numpy as jnp

from jax_networks import Numbers, ids, network


@network
def carried_parameters(dtype):
    """Parameters that travel unchanged in the carry of a reverse scan."""
    new = Numbers(dtype)

    def f(p, x):
        def step(carry, now):
            p, h = carry
            return (p, jnp.tanh(h @ p["U"] + now @ p["V"])), None

        start = jnp.zeros((x.shape[0], 6), dtype)
        (_, h), _ = jax.lax.scan(step, (p, start), x.swapaxes(0, 1), reverse=True)
        return h @ p["R"]

    p = {"R": new(6, 3), "U": new(6, 6), "V": new(4, 6)}
    return f, p, new(3, 4, 4), dict.fromkeys(p, "Outer")


@network
def nested_loops(dtype):
    """Stacked layers, each a loop over time: slices are blocks, steps are positions."""
    new = Numbers(dtype)

    def f(p, x):
        def layer(h, own):
            def step(c, now):
                c = jnp.tanh(c @ own["a"] + jax.jit(jnp.dot)(now, p["shared"]) + own["bias"])
                return c, c

            return jax.lax.scan(step, p["start"] + jnp.zeros_like(h[0]), h)[1], None

        return jax.lax.scan(layer, x.swapaxes(0, 1), p["layers"])[0][-1]

    layers = {"a": new(3, 6, 6), "bias": new(3, 6)}
    p = {"layers": layers, "shared": new(6, 6), "start": new(6)}
    kinds = {"layers.a": "Outer", "layers.bias": "Dense", "shared": "Outer", "start": "Dense"}
    return f, p, new(3, 3, 6), kinds


@network
def stacked_tables(dtype):
    """A table a layer, read inside the loop over layers."""
    new = Numbers(dtype)

    def f(p, tokens):
        def layer(h, table):
            return h + jnp.tanh(table[tokens]).mean(1), None

        start = jnp.zeros((tokens.shape[0], 4), dtype)
        return jax.lax.scan(layer, start, p["E"])[0]

    return f, {"E": new(3, 11, 4)}, ids(3, 4, below=11), {"E": "Lookup"}


@network
def counted_loop(dtype):
    new = Numbers(dtype)

    def f(p, x):
        return jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p), x)

    return f, new(6, 6), new(3, 6), {"params": "Outer"}
