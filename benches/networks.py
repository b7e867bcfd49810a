"""The networks and images of the benches that compare kernels: an MLP, a CNN, and digits.

Parameters are drawn by He's rule; `width` is the number of hidden units or channels. The CNN writes
its convolutions as matrix products of patches: XLA's own reach 7 GFLOP/s backwards on a CPU, and
a sweep over widths would take an hour instead of minutes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

CLASSES = 10


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images (count, 8, 8, 1), centred and of unit variance, and their labels."""
    images, labels = load_digits(return_X_y=True)
    images = images - images.mean(axis=0)
    images /= images.std()
    chosen = np.random.default_rng(seed).permutation(len(labels))[:count]
    return images[chosen].astype(np.float32).reshape(-1, 8, 8, 1), labels[chosen]


def _layer(key: jax.Array, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    fan_in = int(np.prod(shape[:-1]))
    return {"w": jax.random.normal(key, shape) * np.sqrt(2.0 / fan_in), "b": jnp.zeros(shape[-1])}


def mlp_init(key: jax.Array, width: int) -> list[Any]:
    sides = [(64, width), (width, width), (width, CLASSES)]
    return [_layer(k, s) for k, s in zip(jax.random.split(key, 3), sides, strict=True)]


def mlp(params: list[Any], x: jax.Array) -> jax.Array:
    h = x.reshape(len(x), -1)
    for p in params[:-1]:
        h = jax.nn.relu(h @ p["w"] + p["b"])
    return h @ params[-1]["w"] + params[-1]["b"]


def cnn_init(key: jax.Array, width: int) -> list[Any]:
    shapes = [(3, 3, 1, width), (3, 3, width, width), (width, CLASSES)]
    return [_layer(k, s) for k, s in zip(jax.random.split(key, 3), shapes, strict=True)]


def cnn(params: list[Any], x: jax.Array) -> jax.Array:
    first, second, head = params
    h = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h = jax.nn.relu(_convolve(h, first))
    h = h.reshape(len(h), 4, 2, 4, 2, -1).mean(axis=(2, 4))
    h = jax.nn.relu(_convolve(h, second))
    return h.mean(axis=(1, 2)) @ head["w"] + head["b"]


def _convolve(h: jax.Array, p: dict[str, jax.Array]) -> jax.Array:
    """Return the 3 x 3 convolution without padding, plus its bias."""
    side = h.shape[1] - 2
    patches = [h[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, axis=3) @ p["w"].reshape(-1, p["w"].shape[3]) + p["b"]


NETWORKS = {"MLP": (mlp, mlp_init), "CNN": (cnn, cnn_init)}


@partial(jax.jit, static_argnums=(0, 4))
def train(network: Any, params: Any, x: jax.Array, labels: jax.Array, steps: int) -> Any:
    """Fit to labels by full-batch Adam on the cross-entropy."""

    def loss(p: Any) -> jax.Array:
        scores = jax.nn.log_softmax(network(p, x))
        return -jnp.mean(jnp.take_along_axis(scores, labels[:, None], axis=1))

    def step(state: Any, t: jax.Array) -> tuple[Any, None]:
        p, m, v = state
        g = jax.grad(loss)(p)
        m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, m, g)
        v = jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b * b, v, g)
        low, high = 1.0 - 0.9**t, 1.0 - 0.999**t
        p = jax.tree.map(
            lambda a, b, c: a - 1e-3 * (b / low) / (jnp.sqrt(c / high) + 1e-8), p, m, v
        )
        return (p, m, v), None

    zero = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(step, (params, zero, zero), jnp.arange(1.0, steps + 1.0))[0][0]
