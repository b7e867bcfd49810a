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


@network
def branches_of_a_loop(dtype):
    """Layers that take turns, one of them with a loop of its own, and a table read by one."""
    new = Numbers(dtype)

    def f(p, tokens):
        def plain(h, own):
            return jnp.tanh(h @ p["A"] + h @ own)

        def looped(h, own):
            return jax.lax.fori_loop(0, 2, lambda _, g: jnp.tanh(g @ p["B"] + g @ own), h)

        def reading(h, own):
            return h + p["E"][tokens[:, 0]] @ own

        def layer(h, now):
            step, own = now
            return jax.lax.switch(step % 3, [plain, looped, reading], h, own), None

        start = jnp.tanh(p["E"][tokens]).sum(1)
        return jax.lax.scan(layer, start, (jnp.arange(5), p["W"]))[0]

    p = {"A": new(6, 6), "B": new(6, 6), "E": new(9, 6), "W": new(5, 6, 6)}
    kinds = {"A": "Outer", "B": "Outer", "E": "Lookup", "W": "Outer"}
    return f, p, ids(3, 2, below=9), kinds


@network
def a_branch_for_all(dtype):
    """A switch that does not depend on the example, and a branch that gives a parameter back."""
    new = Numbers(dtype)

    def f(p, x):
        hidden = jax.lax.cond(
            p["on"] > 0,
            lambda h, w: jnp.tanh(h @ jnp.concatenate([w, p["B"]], 1)),
            lambda h, w: jnp.tanh(h @ jnp.concatenate([p["B"], w], 1)) * 0,
            x,
            p["A"],
        )
        return hidden @ jax.lax.cond(p["on"] > 0, lambda w: w, lambda w: -w, p["R"])

    p = {"A": new(8, 3), "B": new(8, 3), "R": new(6, 2), "on": jnp.array(1)}
    return f, p, new(4, 8), {"A": "Outer", "B": "Outer", "R": "Dense"}
