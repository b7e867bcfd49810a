"""Checks on a few real examples: that examples are independent, that factors give the gradient.

**Independence.** `f` on a batch of a few examples is compared with `f` on each of them alone. They
differ where examples depend on each other (batch statistics) or on their position (a fixed random
key): then there is no per-example gradient, and the network is refused.

**Gradient.** Each leaf's gradient rebuilt from its factors is compared with `jax.grad` of `f` for
one example. A leaf that fails is taken dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from entk._errors import ModelError
from entk.jax._compat import Array, machine_eps
from entk.jax._network import Network
from entk.jax._plan import Group, Part
from entk.jax._program import cached, full_precision, trace
from entk.jax._taps import Taps
from entk.jax._trace import walk

EXAMPLES = 3
"""How many examples a check looks at."""

_EXPONENT = 0.6
"""Outputs of a batch and of single examples may differ by `eps ** 0.6` of the largest output: 7e-5
in float32. Other summation orders cause about `eps`; batch statistics cause much more."""


def picks(n: int) -> list[int]:
    """Return a few examples spread over n."""
    return sorted(set(np.linspace(0, n - 1, min(n, EXAMPLES)).astype(int).tolist()))


def check_independence(network: Network, x: Any) -> None:
    """Refuse a network whose output for an example depends on the rest of the batch."""
    x = _at_least_two(x)
    n = jax.tree.leaves(x)[0].shape[0]

    def both(leaves: Sequence[Array], x: Any) -> tuple[Array, Array]:
        together = network.many(leaves, x, n)
        return together, lax.map(lambda one: network.one(leaves, one), x)

    traced = trace(both, network.leaves, x)
    run = cached(network.f, ("independence", traced.text), lambda: _runner(traced.jaxpr))
    with full_precision():
        together, alone = (np.asarray(a, np.float64) for a in run(traced.consts, network.leaves, x))
    eps = machine_eps(traced.out.dtype)
    gap = np.abs(together - alone)
    scale = np.max(np.abs(alone), initial=0, where=np.isfinite(alone))
    wrong = np.argwhere((gap > eps**_EXPONENT * scale) | (np.isnan(together) != np.isnan(alone)))
    if wrong.size:
        example, output = wrong[0]
        raise ModelError(
            "the examples of a batch depend on each other or on their position: output"
            f" {output} of an example is {together[example, output]:.7g} in a batch of {n} but"
            f" {alone[example, output]:.7g} alone. Usual causes: BatchNorm in training mode (use"
            " running statistics: use_running_average=True), dropout (switch it off:"
            " deterministic=True), a random key fixed outside f, centring by the batch mean"
        )


def gradient_of(network: Network, x: Any, row: Array) -> list[np.ndarray[Any, Any]]:
    """Return `jax.grad` of `row . f(params, x)` for one example, in float64."""

    def loss(leaves: Sequence[Array], x: Any, row: Array) -> Array:
        return jnp.dot(row, network.one(leaves, x))

    traced = trace(jax.grad(loss), network.leaves, x, row)
    run = cached(network.f, ("gradient", traced.text), lambda: _runner(traced.jaxpr))
    with full_precision():
        return [
            np.asarray(g).astype(np.float64) for g in run(traced.consts, network.leaves, x, row)
        ]


def failing(
    network: Network,
    parts: Sequence[Part],
    arrays: Sequence[Sequence[np.ndarray[Any, Any]]],
    gradients: Sequence[np.ndarray[Any, Any]],
    weights: np.ndarray[Any, Any],
) -> list[int]:
    """Return the numbers of the parameters whose factors do not give the gradient.

    `arrays` are the factors of one example, `weights` (R,) the direction the gradients are of.
    """
    whole = sqrt(sum(float((g**2).sum()) for g in gradients))
    wrong = []
    for k, gradient in enumerate(gradients):
        mine = [(part, a) for part, a in zip(parts, arrays, strict=True) if part.leaf == k]
        left = gradient.reshape(-1).copy()
        terms = sum(_subtract(part, a, weights, left) for part, a in mine)
        eps = machine_eps(network.leaves[k].dtype)
        size = float(np.linalg.norm(gradient)) + 0.1 * whole
        if not float(np.linalg.norm(left)) <= sqrt(eps) * size + 8 * eps * terms:
            wrong.append(k)
    return wrong


def _subtract(
    part: Part,
    arrays: Sequence[np.ndarray[Any, Any]],
    weights: np.ndarray[Any, Any],
    left: np.ndarray[Any, Any],
) -> float:
    """Subtract what a part says of a gradient; return the sum of the sizes of its terms."""
    if part.form == "zero":
        return 0.0
    wide = [np.asarray(a).astype(np.float64) if a.dtype.kind != "i" else a for a in arrays]
    if part.form in ("dense", "expand"):
        jac = np.tensordot(weights, wide[0], 1)
        left[_order(part, left.size)] -= jac
        return float(np.linalg.norm(jac))
    table = np.zeros(part.table.shape)  # type: ignore[union-attr]
    terms = 0.0
    for group, acts, cots in zip(part.groups, wide[::2], wide[1::2], strict=True):
        terms += _add(group, acts, np.tensordot(weights, cots, 1), table)
    left[part.table.positions()] -= table  # type: ignore[union-attr]
    return terms


def _order(part: Part, size: int) -> Any:
    """Return where in the parameter the elements of a dense gradient belong."""
    if part.table is None or part.table.leaf_order(size) is not None:
        return slice(None)
    return part.table.positions().reshape(-1)


def _add(group: Group, acts: Any, cots: Any, table: np.ndarray[Any, Any]) -> float:
    """Add a group's gradient to its table (G, d_in, d_out)."""
    sizes = np.linalg.norm(cots, axis=-1)
    if group.kind == "lookup":
        np.add.at(table[0], acts[acts >= 0], cots[acts >= 0])
        return float(sizes.sum())
    product = np.einsum("gti,gto->gio", acts, cots, optimize=True)
    table += product.transpose(0, 2, 1) if group.transposed else product
    return float((np.linalg.norm(acts, axis=-1) * sizes).sum())


def _at_least_two(x: Any) -> Any:
    """Give a lone example a neighbour: itself with its numbers moved round."""
    if jax.tree.leaves(x)[0].shape[0] > 1:
        return x
    return jax.tree.map(_with_neighbour, x)


def _with_neighbour(a: Array) -> Array:
    moved = a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else jnp.roll(a, 1)
    return jnp.concatenate([a, moved])


def _runner(jaxpr: Any) -> Any:
    def run(consts: Sequence[Array], *args: Any) -> Any:
        return walk(jaxpr, consts, jax.tree.leaves(args), Taps())

    return jax.jit(run)
