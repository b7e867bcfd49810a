"""The data and the two networks of the demonstration, in plain JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Network = Callable[[Any, Any], jax.Array]

TRAIN = 1347  # of 1,797 images; the other 450 are held out
CLASSES = 10
BATCH = 64
LEARNING_RATE = 3e-3
BETA_MEAN, BETA_SQUARE, ADAM_EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Digits:
    """Images ``(N, 8, 8, 1)`` in [0, 1] and labels, shuffled; the first `TRAIN` train."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def load() -> Digits:
    """Load scikit-learn's digits: 1,797 scanned figures of 43 writers, 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    pixels = np.asarray(images[order] / 16.0, dtype=np.float32)
    return Digits(pixels.reshape(-1, 8, 8, 1), np.asarray(labels[order], dtype=np.int64))


def dense(key: jax.Array, d_in: int, d_out: int) -> dict[str, jax.Array]:
    """Draw a dense layer by He's rule."""
    kernel = jax.random.normal(key, (d_in, d_out)) * jnp.sqrt(2.0 / d_in)
    return {"kernel": kernel, "bias": jnp.zeros(d_out)}


def conv(key: jax.Array, d_in: int, d_out: int) -> dict[str, jax.Array]:
    """Draw a 3 x 3 convolution by He's rule."""
    kernel = jax.random.normal(key, (3, 3, d_in, d_out)) * jnp.sqrt(2.0 / (9 * d_in))
    return {"kernel": kernel, "bias": jnp.zeros(d_out)}


def mlp_init(key: jax.Array) -> dict[str, Any]:
    """Draw the parameters of `mlp`."""
    keys = jax.random.split(key, 3)
    sides = [(64, 128), (128, 128), (128, CLASSES)]
    names = ("hidden1", "hidden2", "head")
    return {name: dense(k, *side) for name, k, side in zip(names, keys, sides, strict=True)}


def mlp(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Map images to logits by two hidden layers of width 128."""
    h = x.reshape(x.shape[0], -1)
    for name in ("hidden1", "hidden2"):
        h = jax.nn.relu(h @ params[name]["kernel"] + params[name]["bias"])
    logits: jax.Array = h @ params["head"]["kernel"] + params["head"]["bias"]
    return logits


def cnn_init(key: jax.Array) -> dict[str, Any]:
    """Draw the parameters of `cnn`."""
    keys = jax.random.split(key, 3)
    return {
        "conv1": conv(keys[0], 1, 16),
        "conv2": conv(keys[1], 16, 32),
        "head": dense(keys[2], 4 * 4 * 32, CLASSES),
    }


def cnn(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Map images to logits by two convolutions, the second with stride 2."""
    h = x
    for name, stride in (("conv1", 1), ("conv2", 2)):
        h = jax.lax.conv_general_dilated(
            h,
            params[name]["kernel"],
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        h = jax.nn.relu(h + params[name]["bias"])
    flat = h.reshape(h.shape[0], -1)
    logits: jax.Array = flat @ params["head"]["kernel"] + params["head"]["bias"]
    return logits


NETWORKS: dict[str, tuple[Callable[[jax.Array], Any], Network]] = {
    "MLP": (mlp_init, mlp),
    "CNN": (cnn_init, cnn),
}


def train(network: Network, params: Any, digits: Digits, epochs: int) -> Any:
    """Train by Adam on the cross-entropy; one compiled loop."""
    steps = TRAIN // BATCH
    x, y = jnp.asarray(digits.images[:TRAIN]), jnp.asarray(digits.labels[:TRAIN])

    def loss(theta: Any, rows: jax.Array) -> jax.Array:
        logits = network(theta, x[rows])
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(BATCH), y[rows]])

    def step(state: Any, rows: jax.Array) -> tuple[Any, None]:
        theta, mean, square, count = state
        gradient = jax.grad(loss)(theta, rows)
        mean = jax.tree.map(lambda m, g: BETA_MEAN * m + (1 - BETA_MEAN) * g, mean, gradient)
        square = jax.tree.map(
            lambda s, g: BETA_SQUARE * s + (1 - BETA_SQUARE) * g * g, square, gradient
        )
        count = count + 1
        size = LEARNING_RATE * jnp.sqrt(1 - BETA_SQUARE**count) / (1 - BETA_MEAN**count)
        theta = jax.tree.map(
            lambda p, m, s: p - size * m / (jnp.sqrt(s) + ADAM_EPSILON), theta, mean, square
        )
        return (theta, mean, square, count), None

    @jax.jit
    def loop(theta: Any, order: jax.Array) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, theta)
        state, _ = jax.lax.scan(step, (theta, zeros, zeros, 0.0), order)
        return state[0]

    rng = np.random.default_rng(1)
    batches = [rng.permutation(TRAIN)[: steps * BATCH] for _ in range(epochs)]
    order = jnp.asarray(np.concatenate(batches).reshape(-1, BATCH))
    trained = loop(params, order)
    for leaf in jax.tree.leaves(trained):
        leaf.block_until_ready()  # so that a clock around this call measures the training
    return trained


def accuracy(logits: object, labels: NDArray[np.int64]) -> float:
    """Return the share of examples whose largest logit is that of their label."""
    return float(np.mean(np.argmax(np.asarray(logits), axis=-1) == labels))
