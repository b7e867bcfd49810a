"""Networks of Flax linen, Flax NNX, Equinox and Haiku."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
from flax import nnx

from jax_networks import Numbers, ids, network, shaken


@network
def linen_cnn(dtype):
    kind = {"dtype": dtype, "param_dtype": dtype}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), **kind)(x))
            x = nn.LayerNorm(**kind)(x)
            x = nn.gelu(
                nn.Conv(
                    16,
                    (3, 3),
                    feature_group_count=2,
                    strides=(3, 4),
                    kernel_dilation=(1, 2),
                    padding=((1, 0), (2, 3)),
                    **kind,
                )(x)
            )
            x = nn.GroupNorm(num_groups=2, **kind)(x)
            x = nn.ConvTranspose(12, (2, 2), strides=(2, 2), padding="VALID", **kind)(x[:, :1, :2])
            x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
            return nn.Dense(3, **kind)(nn.remat(nn.Dense)(6, **kind)(x))

    x = Numbers(dtype)(3, 6, 7, 2)
    net = Net()
    kinds = {
        "params.CheckpointDense_0.kernel": "Outer",
        "params.ConvTranspose_0.kernel": "Outer",
        "params.Conv_0.kernel": "Dense",
        "params.Conv_1.kernel": "Outer",
        "params.Dense_0.kernel": "Outer",
        "params.LayerNorm_0.scale": "Dense",
        "params.GroupNorm_0.scale": "Dense",
    }
    return net.apply, shaken(jax.jit(net.init)(jax.random.key(0), x), dtype), x, kinds


@network
def linen_attention(dtype):
    kind = {"dtype": dtype, "param_dtype": dtype}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8, **kind)(
                nn.RMSNorm(**kind)(x)
            )
            return nn.Dense(3, **kind)(x.mean(1))

    x = Numbers(dtype)(3, 2, 8)
    net = Net()
    where = "params.MultiHeadDotProductAttention_0"
    kinds = {f"{where}.{part}.kernel": "Outer" for part in ("query", "key", "value", "out")}
    kinds["params.RMSNorm_0.scale"] = "Dense"
    return net.apply, shaken(jax.jit(net.init)(jax.random.key(0), x), dtype), x, kinds


def _recurrent(cell, dtype, kinds):
    kind = {"dtype": dtype, "param_dtype": dtype}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, **kind)(nn.RNN(cell(4, **kind))(x)[:, -1])

    x = Numbers(dtype)(3, 4, 3)
    net = Net()
    return net.apply, shaken(jax.jit(net.init)(jax.random.key(0), x), dtype), x, kinds


@network
def linen_lstm(dtype):
    gates = [f"{side}{gate}" for side in "hi" for gate in "fgio"]
    kinds = {f"params.LSTMCell_0.{gate}.kernel": "Outer" for gate in gates}
    return _recurrent(nn.LSTMCell, dtype, kinds | {"params.LSTMCell_0.hf.bias": "Dense"})


@network
def linen_optimised_lstm(dtype):
    """A cell that joins the kernels of its gates before it multiplies."""
    gates = [f"{side}{gate}" for side in "hi" for gate in "fgio"]
    kinds = {f"params.OptimizedLSTMCell_0.{gate}.kernel": "Outer" for gate in gates}
    kinds["params.OptimizedLSTMCell_0.hf.bias"] = "Dense"
    return _recurrent(nn.OptimizedLSTMCell, dtype, kinds)


@network
def linen_gru(dtype):
    gates = [f"{side}{gate}" for side in "hi" for gate in "nrz"]
    kinds = {f"params.GRUCell_0.{gate}.kernel": "Outer" for gate in gates}
    return _recurrent(nn.GRUCell, dtype, kinds)


@network
def linen_scan_over_layers(dtype):
    kind = {"dtype": dtype, "param_dtype": dtype}

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(6, **kind)(nn.tanh(nn.Dense(8, **kind)(x))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            blocks = nn.scan(nn.remat(Block), length=4, **axes)()
            return nn.Dense(2, **kind)(blocks(x, None)[0])

    x = Numbers(dtype)(3, 6)
    net = Net()
    params = shaken(jax.jit(net.init)(jax.random.key(0), x), dtype)
    where = "params.ScanCheckpointBlock_0"
    kinds = {f"{where}.Dense_{k}.kernel": "Outer" for k in range(2)}
    return net.apply, params, x, kinds | {f"{where}.Dense_0.bias": "Dense"}


@network
def nnx_mlp(dtype):
    kind = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}

    class Net(nnx.Module):
        def __init__(self):
            self.table = nnx.Embed(11, 4, **kind)
            self.norm = nnx.BatchNorm(4, use_running_average=True, **kind)
            self.out = nnx.Linear(4, 6, **kind)

        def __call__(self, tokens):
            return self.out(nnx.relu(self.norm(self.table(tokens).mean(1))))

    graph, params, rest = nnx.split(Net(), nnx.Param, ...)

    def f(params, tokens):
        return nnx.merge(graph, params, rest)(tokens)

    kinds = {"table.embedding": "Lookup", "norm.scale": "Dense", "out.kernel": "Outer"}
    named = {f"{name}.value": kind for name, kind in kinds.items()}
    return f, shaken(params, dtype), ids(3, 4, below=11), named


@network
def equinox_block(dtype):
    class Net(eqx.Module):
        table: eqx.nn.Embedding
        norm: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        mlp: eqx.nn.MLP

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.table = eqx.nn.Embedding(23, 8, key=keys[0])
            self.norm = eqx.nn.LayerNorm(8)
            self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
            self.mlp = eqx.nn.MLP(8, 3, 16, 1, key=keys[2])

        def __call__(self, tokens):
            x = jax.vmap(self.table)(tokens)
            h = jax.vmap(self.norm)(x)
            return jax.vmap(self.mlp)(x + self.attention(h, h, h)).mean(0)

    params, static = eqx.partition(Net(jax.random.key(0)), eqx.is_inexact_array)

    def f(params, tokens):
        return jax.vmap(eqx.combine(params, static))(tokens)

    kinds = {
        "table.weight": "Lookup",
        "norm.weight": "Dense",
        "attention.query_proj.weight": "Outer",
        "mlp.layers.0.weight": "Outer",
    }
    return f, shaken(params, dtype), ids(3, 2, below=23), kinds


@network
def haiku_conv(dtype):
    def run(x):
        x = hk.Conv2D(8, 3, stride=3)(x)
        x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        return hk.nets.MLP([5, 3])(x.reshape(x.shape[0], -1))

    net = hk.without_apply_rng(hk.transform(run))
    x = Numbers(dtype)(3, 6, 6, 4)
    kinds = {"conv2_d.w": "Outer", "layer_norm.scale": "Dense", "mlp/~/linear_0.w": "Outer"}
    return net.apply, shaken(jax.jit(net.init)(jax.random.key(0), x), dtype), x, kinds
