"""Whether the examples of a batch are independent, seen on a few real ones.

`f` on a batch is compared with `f` on each of its examples alone. They differ where examples depend
on each other (batch statistics) or on their position (a random key fixed for the batch). Such a
network has no gradient per example, and is refused.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entk._errors import ModelError
from entk.jax._culprit import culprit
from entk.jax._witness import Witness

_EXPONENT = 0.6
"""Outputs of a batch and of single examples may differ by `eps ** 0.6` of the largest output: 7e-5
in float32. Other summation orders cause about `eps`; batch statistics cause much more."""


def check_independence(witness: Witness, x: Any, eps: float) -> bool:
    """Refuse a network whose output for an example depends on the rest of the batch.

    `eps` is that of the coarsest arithmetic of the network. Returns whether the examples could have
    shown it: equal examples cannot.
    """
    together, alone = witness.outputs(x)
    gap = np.abs(together - alone)
    scale = np.max(np.abs(alone), initial=0, where=np.isfinite(alone))
    wrong = np.argwhere((gap > eps**_EXPONENT * scale) | (np.isnan(together) != np.isnan(alone)))
    if wrong.size:
        example, output = wrong[0]
        place = culprit(witness.network, x, witness.n, eps**_EXPONENT)
        raise ModelError(
            "the examples of a batch depend on each other or on their position: output"
            f" {output} of an example is {together[example, output]:.7g} in a batch of"
            f" {len(alone)} but {alone[example, output]:.7g} alone{place}. Usual"
            " causes: BatchNorm in training mode (use running statistics:"
            " use_running_average=True), dropout (switch it off: deterministic=True), a random key"
            " fixed outside f, centring by the batch mean, a custom_vmap rule or a callback that"
            " treats batches differently"
        )
    return bool(gap.size) and bool((alone != alone[:1]).any())


def at_least_two(x: Any) -> Any:
    """Give a lone example a neighbour: itself with its numbers moved round."""
    if np.shape(jax.tree.leaves(x)[0])[0] > 1:
        return x
    return jax.tree.map(_with_neighbour, x)


def _with_neighbour(a: Any) -> Any:
    if isinstance(a, np.ndarray):
        return np.concatenate([a, np.roll(a, 1)])
    moved = a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.roll(a, 1)
    return jnp.concatenate([a, moved])
