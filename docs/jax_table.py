"""Print the table of docs/jax.md: what parameters of common networks become, in which size.

Shapes only: networks are traced and planned, not run, so that a laptop plans GPT-2 in seconds.
"""

from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp

from entk.jax._network import Network, network
from entk.jax._program import make_program, trace

MARK = "<!-- table: python docs/jax_table.py -->"


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(1024)(x))
        return nn.Dense(10)(x)


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (64, 128, 256, 512):
            x = nn.Conv(width, (3, 3), strides=(2, 2))(x)
            x = nn.relu(nn.GroupNorm(num_groups=8)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Block(nn.Module):
    width: int
    causal: bool = False

    @nn.compact
    def __call__(self, x, _=None):
        h = nn.LayerNorm()(x)
        mask = nn.make_causal_mask(h[..., 0]) if self.causal else None
        x = x + nn.MultiHeadDotProductAttention(12)(h, mask=mask)
        h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
        return x + nn.Dense(self.width)(h), None


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(768, (16, 16), strides=(16, 16))(x).reshape(x.shape[0], -1, 768)
        x = x + self.param("positions", nn.initializers.normal(), (1, 196, 768))
        for _ in range(12):
            x, _ = Block(768)(x)
        return nn.Dense(1000)(nn.LayerNorm()(x).mean(1))


class GPT2(nn.Module):
    """Layers in one scan; the table of tokens is also the readout of the last position."""

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(50257, 768)
        x = table(tokens) + self.param(
            "positions", nn.initializers.normal(), (tokens.shape[1], 768)
        )
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=12, **axes)(768, causal=True)(x, None)
        return table.attend(nn.LayerNorm()(x[:, -1]))


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.RNN(nn.LSTMCell(512))(x)[:, -1])


NETWORKS = {
    "MLP 784-1024-1024-1024-10": (MLP(), (784,), jnp.float32),
    "ConvNet, 4 strided 3x3, 32x32 pixels": (ConvNet(), (32, 32, 3), jnp.float32),
    "ViT-B/16, 224x224 pixels": (ViT(), (224, 224, 3), jnp.float32),
    "GPT-2 small, 128 tokens, tied, `nn.scan`": (GPT2(), (128,), jnp.int32),
    "LSTM, width 512, 64 steps": (LSTM(), (64, 128), jnp.float32),
}


def planned(net, shape, dtype):
    """Return parts, bytes of factors and bytes of the dense gradient for one example."""
    x = jax.ShapeDtypeStruct((1, *shape), dtype)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    tiny = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), params)
    leaves = jax.tree.leaves(params)
    named = network(net.apply, tiny)
    taken = Network(net.apply, named.names, leaves, named.rebuild)
    one = jax.ShapeDtypeStruct(shape, dtype)
    traced = trace(taken.one, leaves, one)
    row = jax.ShapeDtypeStruct(traced.out.shape, traced.out.dtype)
    options = {"per_example": False, "structure": True, "demoted": frozenset()}
    program = make_program(taken, traced, [one], row, **options)
    return program.parts, program.result_bytes, sum(4 * prod(leaf.shape) for leaf in leaves)


def megabytes(size):
    return f"{size / 1e6:,.3g} MB"


def table():
    lines = [
        "| network | parameters with structure | dense | factors of an example | dense gradient |",
        "|---|---|---|---|---|",
    ]
    for name, (net, shape, dtype) in NETWORKS.items():
        parts, size, dense = planned(net, shape, dtype)
        forms = [part.form for part in parts]
        counts = {form: forms.count(form) for form in ("outer", "lookup", "tied")}
        kept = ", ".join(f"{count} {form.title()}" for form, count in counts.items() if count)
        rest = len(forms) - sum(counts.values())
        lines.append(f"| {name} | {kept} | {rest} | {megabytes(size)} | {megabytes(dense)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
