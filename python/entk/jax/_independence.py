"""Whether the examples of a batch are independent, seen on a few real ones.

`f` on a batch is compared with `f` on each of its examples alone. They differ where examples depend
on each other (batch statistics) or on their position (a random key fixed for the batch). Such a
network has no gradient per example, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from entk._errors import ModelError
from entk.jax._compat import Array
from entk.jax._network import Network
from entk.jax._program import cached, full_precision, runner, trace

_EXPONENT = 0.6
"""Outputs of a batch and of single examples may differ by `eps ** 0.6` of the largest output: 7e-5
in float32. Other summation orders cause about `eps`; batch statistics cause much more."""


def check_independence(network: Network, x: Any) -> bool:
    """Refuse a network whose output for an example depends on the rest of the batch.

    Returns whether the examples could have shown it: equal examples cannot.
    """
    x = _at_least_two(x)
    n = jax.tree.leaves(x)[0].shape[0]

    def both(leaves: Sequence[Array], x: Any) -> tuple[Array, Array]:
        together = network.many(leaves, x, n)
        return together, lax.map(lambda one: network.one(leaves, one), x)

    traced = trace(both, network.leaves, x)
    run = cached(network.f, ("independence", traced.text), lambda: runner(traced.jaxpr))
    with full_precision():
        together, alone = (np.asarray(a, np.float64) for a in run(traced.consts, network.leaves, x))
    gap = np.abs(together - alone)
    scale = np.max(np.abs(alone), initial=0, where=np.isfinite(alone))
    wrong = np.argwhere(
        (gap > traced.eps**_EXPONENT * scale) | (np.isnan(together) != np.isnan(alone))
    )
    if wrong.size:
        example, output = wrong[0]
        raise ModelError(
            "the examples of a batch depend on each other or on their position: output"
            f" {output} of an example is {together[example, output]:.7g} in a batch of {n} but"
            f" {alone[example, output]:.7g} alone. Usual causes: BatchNorm in training mode (use"
            " running statistics: use_running_average=True), dropout (switch it off:"
            " deterministic=True), a random key fixed outside f, centring by the batch mean"
        )
    return bool(gap.size) and bool((alone != alone[:1]).any())


def _at_least_two(x: Any) -> Any:
    """Give a lone example a neighbour: itself with its numbers moved round."""
    if jax.tree.leaves(x)[0].shape[0] > 1:
        return x
    return jax.tree.map(_with_neighbour, x)


def _with_neighbour(a: Array) -> Array:
    moved = a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.roll(a, 1)
    return jnp.concatenate([a, moved])
