"""Networks written as plain functions."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jax_networks import Numbers, ids, network


@network
def mlp(dtype):
    new = Numbers(dtype)
    p = {"w1": new(5, 8), "b1": new(8), "w2": new(8, 4), "b2": new(4)}

    def f(p, x):
        return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    return f, p, new(5, 5), {"w1": "Outer", "b1": "Dense", "w2": "Outer", "b2": "Dense"}


@network
def shared_weight(dtype):
    new = Numbers(dtype)

    def f(p, x):
        for _ in range(2):
            x = jnp.tanh(x @ p["W"])
        return x @ p["R"]

    return f, {"W": new(6, 6), "R": new(6, 3)}, new(3, 6), {"W": "Outer", "R": "Outer"}


@network
def fused_qkv(dtype):
    new = Numbers(dtype)

    def f(p, x):
        q, k, v = jnp.split(p["qkv"], 3, axis=1)
        weights = jax.nn.softmax((x @ q) @ (x @ k).swapaxes(1, 2))
        return (weights @ (x @ v)).mean(1) @ p["out"].T

    kinds = dict.fromkeys(["qkv[0]", "qkv[1]", "qkv[2]", "out"], "Outer")
    return f, {"qkv": new(8, 24, scale=0.4), "out": new(3, 8)}, new(3, 2, 8), kinds


@network
def heads(dtype):
    """A weight per head, as a batched product: blocks."""
    new = Numbers(dtype)

    def f(p, x):
        return jnp.tanh(jnp.einsum("nhd,hde->nhe", x, p["H"])).sum(1)

    return f, {"H": new(3, 6, 5)}, new(3, 3, 6), {"H": "Outer"}


@network
def tied_table(dtype):
    """Embedding and readout share one table: cross terms."""
    new = Numbers(dtype)

    def f(p, tokens):
        hidden = jnp.tanh(p["E"][tokens].mean(1) @ p["W"])
        return hidden @ p["E"].T

    p = {"E": new(13, 4), "W": new(4, 4)}
    return f, p, ids(3, 5, below=13), {"E": "Tied", "W": "Outer"}


@network
def tied_weights(dtype):
    """An auto-encoder with one matrix, used straight and transposed."""
    new = Numbers(dtype)

    def f(p, x):
        return jnp.tanh(x @ p["W"]) @ p["W"].T

    return f, {"W": new(7, 5)}, new(3, 7), {"W": "Tied"}


@network
def parameters_only(dtype):
    """Weight norm, a low-rank product, a pruned weight: expressions of parameters alone."""
    new = Numbers(dtype)

    def f(p, x):
        x = x @ (p["g"] * p["V"] / jnp.linalg.norm(p["V"], axis=0))
        x = jnp.tanh(x + x @ (p["A"] @ p["B"]))
        return x @ jnp.where(p["P"] > 0, p["P"], 0)

    p = {"A": new(6, 2), "B": new(2, 6), "P": new(6, 3), "V": new(5, 6), "g": new(6)}
    return f, p, new(3, 5), dict.fromkeys(p, "Dense")


@network
def low_rank_adapter(dtype):
    new = Numbers(dtype)

    def f(p, x):
        return x @ jax.lax.stop_gradient(p["W"]) + (x @ p["A"]) @ p["B"]

    p = {"A": new(6, 3), "B": new(3, 6), "W": new(6, 6)}
    return f, p, new(3, 6), {"A": "Outer", "B": "Outer", "W": "Dense"}


@network
def scaled_weight(dtype):
    """NTK parametrisation, written on the weight: still a product with structure."""
    new = Numbers(dtype)

    def f(p, x):
        x = jnp.tanh(x @ (p["W"] / jnp.sqrt(jnp.asarray(6, dtype))))
        return x @ (-0.5 * p["R"].T * x.dtype.type(2))

    return f, {"W": new(6, 8), "R": new(3, 8)}, new(3, 6), {"W": "Outer", "R": "Outer"}


@network
def false_rule(dtype):
    """A custom_jvp whose rule is not the derivative: the rule is what counts."""

    @jax.custom_jvp
    def layer(x, w):
        return jnp.sin(x @ w)

    @layer.defjvp
    def _(primals, tangents):
        (x, w), (dx, dw) = primals, tangents
        return layer(x, w), 2 * jnp.cos(x @ w) * (dx @ w + x @ dw)

    new = Numbers(dtype)

    def f(p, x):
        return layer(jnp.tanh(x @ p["W"]), p["C"])

    return f, {"W": new(5, 6), "C": new(6, 3)}, new(3, 5), {"W": "Outer", "C": "Dense"}


@network
def mixture_of_experts(dtype):
    new = Numbers(dtype)

    def f(p, x):
        gates = jax.nn.softmax(x @ p["gate"])
        hidden = jnp.tanh(jnp.einsum("nd,edh->neh", x, p["up"]))
        return jnp.einsum("ne,neh,eho->no", gates, hidden, p["down"])

    p = {"gate": new(6, 3), "up": new(3, 6, 7), "down": new(3, 7, 4)}
    return f, p, new(3, 6), dict.fromkeys(p, "Outer")


@network
def branches(dtype):
    """A branch taken by data."""
    new = Numbers(dtype)

    def one(p, x):
        hidden = x @ p["W"]
        taken = jax.lax.cond(x[0] > 0, lambda: hidden @ p["A"], lambda: hidden @ p["B"])
        return jnp.tanh(taken) @ p["R"]

    p = {"A": new(6, 6), "B": new(6, 6), "R": new(6, 3), "W": new(5, 6)}
    kinds = {"A": "Outer", "B": "Outer", "R": "Outer", "W": "Outer"}
    return jax.vmap(one, in_axes=(None, 0)), p, new(4, 5), kinds


@network
def spectra(dtype):
    """Complex numbers on the way."""
    new = Numbers(dtype)

    def f(p, x):
        return jnp.abs(jnp.fft.fft(x @ p["W"]) * p["filter"]) ** 2

    return f, {"W": new(5, 6), "filter": new(6)}, new(3, 5), {"W": "Outer", "filter": "Dense"}


@network
def ragged_experts(dtype):
    new = Numbers(dtype)
    sizes = jnp.array([2, 1], jnp.int32)

    def f(p, x):
        return jax.lax.map(lambda one: jax.lax.ragged_dot(jnp.tanh(one), p["W"], sizes).sum(0), x)

    return f, {"W": new(2, 4, 3)}, new(3, 3, 4), {"W": "Outer"}


@network
def routed_experts(dtype):
    """Tokens sorted by the expert that they choose; the last of them goes to none."""
    new = Numbers(dtype)

    def one(p, tokens):
        scores = jax.nn.softmax(tokens @ p["router"])
        chosen = scores.argmax(-1).at[-1].set(len(p["up"]))
        order = chosen.argsort()
        sizes = jnp.bincount(chosen, length=len(p["up"])).astype(jnp.int32)
        hidden = jnp.tanh(jax.lax.ragged_dot(tokens[order], 2 * p["up"], sizes))
        down = jnp.stack(p["down"])
        mixed = jax.lax.ragged_dot(hidden, down, sizes)[order.argsort()]
        return (mixed * scores.max(-1, keepdims=True)).sum(0)

    def f(p, x):
        return jax.lax.map(lambda tokens: one(p, tokens), x)

    params = {"router": new(6, 3), "up": new(3, 6, 8), "down": [new(8, 5) for _ in range(3)]}
    return f, params, new(4, 4, 6), {"router": "Outer", "up": "Outer", "down.2": "Outer"}


@network
def lookups(dtype):
    """Every way to read rows: filled, clipped, promised, windows, two indices, columns."""
    new = Numbers(dtype)

    def f(p, tokens):
        filled = jnp.nan_to_num(jnp.take(p["fill"], tokens, axis=0))
        clipped = jnp.take(p["clip"], tokens, axis=0, mode="clip")
        columns = p["columns"][:, tokens % 9].transpose(1, 2, 0)
        pair = p["pair"][tokens % 4, tokens % 3]
        window = jax.vmap(lambda t: jax.lax.dynamic_slice_in_dim(p["window"], t, 3))(tokens[:, 0])
        return jnp.tanh(filled + clipped + columns + pair + window).sum(1)

    p = {
        "clip": new(9, 4),
        "columns": new(4, 9),
        "fill": new(9, 4),
        "pair": new(4, 3, 4),
        "window": new(11, 4),
    }
    tokens = jnp.array([[0, 9, -7], [4, 4, 2], [-12, 8, 30]])
    return f, p, tokens, dict.fromkeys(p, "Lookup")


@dataclass
class Pair:
    """A parameter container that is no dict."""

    left: object
    right: object
    count: int = field(metadata={"static": True}, default=2)


jax.tree_util.register_dataclass(Pair, ["left", "right"], ["count"])


@network
def trees_in_and_out(dtype):
    """Dataclass parameters with None and integers, a dict of inputs, a tuple of outputs."""
    new = Numbers(dtype)

    def f(p, x):
        hidden = jnp.tanh(x["a"] @ p.left["W"] + x["b"][:, None])
        return {"z": hidden @ p.right[0], "y": (hidden.sum(1), hidden[:, :, None] * p.right[1])}

    p = Pair({"W": new(5, 4), "no": None}, (new(4, 2), jnp.arange(3)))
    x = {"a": new(3, 5), "b": new(3)}
    return f, p, x, {"left.W": "Outer", "right.0": "Outer"}
