"""Networks whose weights are joined, chosen between or stacked before they are used."""

import jax
import jax.numpy as jnp

from jax_networks import Numbers, ids, network


@network
def joined_projections(dtype):
    """Three projections in one product, and their biases with them."""
    new = Numbers(dtype)

    def f(p, x):
        both = x @ jnp.concatenate([p["q"], p["k"], p["v"]], 1)
        q, k, v = jnp.split(both + jnp.concatenate([p["a"], p["b"], p["c"]]), 3, -1)
        return (jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v).mean(1) @ p["o"]

    p = {name: new(8, 8, scale=0.4) for name in "qkv"} | {name: new(8) for name in "abc"}
    kinds = dict.fromkeys("qkvo", "Outer") | dict.fromkeys("abc", "Dense")
    return f, p | {"o": new(8, 3)}, new(3, 2, 8), kinds


@network
def joined_along_the_input(dtype):
    """Of two inputs side by side, transposed and scaled after the join."""
    new = Numbers(dtype)

    def f(p, x):
        weight = -2 * jnp.concatenate([p["near"].T, p["far"]], 0).T
        return jnp.tanh(weight @ x.T).T @ jnp.stack([p["r"], p["r"] * 0 + 1], 0)[0]

    p = {"far": new(5, 6), "near": new(6, 7), "r": new(6, 3)}
    return f, p, new(3, 12), {"far": "Outer", "near": "Outer", "r": "Dense"}


@network
def joined_with_itself(dtype):
    """One matrix twice in a join: twice as many positions."""
    new = Numbers(dtype)

    def f(p, x):
        return jnp.tanh(x @ jnp.concatenate([p["W"], p["R"], p["W"]], 1))

    return f, {"R": new(8, 4), "W": new(8, 7)}, new(3, 8), {"R": "Outer", "W": "Outer"}


@network
def pieces_joined_again(dtype):
    new = Numbers(dtype)

    def f(p, x):
        first, second = jnp.split(p["W"], 2, 1)
        return jnp.tanh(x @ jnp.concatenate([second, p["V"], first], 1))

    p = {"V": new(8, 5), "W": new(8, 8)}
    return f, p, new(3, 8), {"V": "Outer", "W[0]": "Outer", "W[1]": "Outer"}


@network
def joined_no_boxes(dtype):
    """A join whose parts are no boxes of the matrix that is used, and one that is looked up."""
    new = Numbers(dtype)

    def f(p, tokens):
        table = jnp.concatenate([p["E"], p["F"]])
        mixed = jnp.concatenate([p["a"], p["b"]], 0).reshape(4, 6)
        return jnp.tanh(table[tokens].mean(1) @ mixed)

    p = {"E": new(9, 4), "F": new(2, 4), "a": new(3, 3), "b": new(5, 3)}
    return f, p, ids(3, 4, below=11), dict.fromkeys(p, "Dense")


@network
def layers_joined_for_a_loop(dtype):
    """Stacked layers, some from one parameter and some from another; single ones stacked."""
    new = Numbers(dtype)

    def f(p, x):
        def layer(h, w):
            return jnp.tanh(h @ w["now"] + h @ w["too"]), None

        now = jnp.concatenate([p["first"], p["last"]])
        too = jnp.stack([p["one"], p["two"], p["three"]])
        return jax.lax.scan(layer, x, {"now": now, "too": too})[0]

    p = {name: new(6, 6) for name in ("one", "two", "three")}
    p |= {"first": new(2, 6, 6), "last": new(1, 6, 6)}
    return f, p, new(3, 6), dict.fromkeys(p, "Outer")


@network
def gates_of_a_cell(dtype):
    """The gates of a recurrent cell joined inside its loop, and blocks joined into one weight."""
    new = Numbers(dtype)

    def f(p, x):
        def step(h, now):
            both = now @ jnp.concatenate([p["i"], p["g"]], 1) + h @ jnp.hstack([p["hi"], p["hg"]])
            gate, new = jnp.split(both, 2, -1)
            return jnp.tanh(new) * jax.nn.sigmoid(gate), None

        start = jnp.zeros((x.shape[0], 12), dtype)
        h = jax.lax.scan(step, start, x.swapaxes(0, 1))[0].reshape(-1, 2, 6)
        heads = jnp.stack([p["left"], p["right"]])
        return jnp.einsum("nhd,hde->nhe", h, heads)

    p = {name: new(8, 12) for name in "ig"} | {"h" + name: new(12, 12) for name in "ig"}
    p |= {name: new(6, 5) for name in ("left", "right")}
    return f, p, new(3, 3, 8), dict.fromkeys(p, "Outer")


@network
def chosen_branches(dtype):
    """One of three layers for each example, by `cond` and `switch`."""
    new = Numbers(dtype)

    def one(p, x):
        def layer(k):
            return lambda h: jnp.tanh(h @ p["W"][k])

        x = jax.lax.cond(x.sum() > 0, lambda h: h @ p["A"], lambda h: -h, x)
        x = jax.lax.switch(jnp.argmax(x[:3]), [layer(k) for k in range(3)], x)
        some = jnp.where(x.sum() > 0, p["V"], 0.5).T @ x
        return jnp.where(x.sum() > 0, p["R"], p["R"]).T @ x + some

    p = {"A": new(6, 6), "R": new(6, 3), "V": new(6, 3), "W": new(3, 6, 6)}
    kinds = {"A": "Outer", "R": "Dense", "V": "Outer"} | {f"W[{k}]": "Outer" for k in range(3)}
    return jax.vmap(one, in_axes=(None, 0)), p, new(6, 6), kinds


@network
def straight_through(dtype):
    """Signs of weights, whose derivative is zero, beside the weights themselves."""
    new = Numbers(dtype)

    def f(p, x):
        hidden = jnp.tanh(x @ jnp.sign(p["W"]) + x @ p["W"])
        return hidden @ jnp.round(p["R"]) + jnp.floor(p["b"])

    p = {"R": new(6, 3), "W": new(5, 6), "b": new(3)}
    return f, p, new(3, 5), {"R": "Dense", "W": "Outer", "b": "Dense"}


@network
def a_table_for_each_place(dtype):
    """Rows read by place: a gather with batching dimensions."""
    new = Numbers(dtype)

    def f(p, tokens):
        def one(table, token):
            return table[token]

        rows = jax.vmap(jax.vmap(one), (None, 0))(p["E"], tokens)
        return jnp.tanh(rows).sum(1) + jax.vmap(lambda t: p["same"][0, t])(tokens[:, 0])

    p = {"E": new(3, 9, 4), "same": new(1, 9, 4)}
    return f, p, ids(3, 3, below=9), {"E": "Lookup", "same": "Lookup"}
