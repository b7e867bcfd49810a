"""Where the examples of a batch first depend on each other, for the text of a refusal.

The network is run equation by equation on a few examples together and on each alone. The first
result that differs names the operation, and the layer if the library names its layers.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from entk.jax._compat import INLINE, bind, is_literal, opened
from entk.jax._network import Network
from entk.jax._program import trace

Steps: TypeAlias = Generator[tuple[tuple[str, str], list[Any]], None, list[Any]]
"""Layer and operation of every step with its results; returns the outputs."""


def culprit(network: Network, x: Any, n: int, tolerance: float) -> str:
    """Return words for the first operation that mixes the `n` examples of `x`, or nothing."""
    try:
        found = _first(network, x, n, tolerance)
    except Exception:  # the refusal stands without its place
        return ""
    return f". It begins {found}" if found else ""


def _first(network: Network, x: Any, n: int, tolerance: float) -> str:
    runs = [_steps(network, x, n)]
    for k in range(n):
        runs.append(_steps(network, jax.tree.map(lambda a, k=k: a[k : k + 1], x), 1))
    for (step, together), *alone in zip(*runs, strict=False):
        if any(other != step for other, _ in alone):
            return ""
        for number, whole in enumerate(together):
            if _differs(whole, [outs[number] for _, outs in alone], tolerance):
                layer, operation = step
                return f"in layer '{layer}', at `{operation}`" if layer else f"at `{operation}`"
    return ""


def _steps(network: Network, x: Any, n: int) -> Steps:
    """Yield every step of the network on a batch of n, with its results."""
    traced = trace(lambda leaves, x: network.many(leaves, x, n), network.leaves, x)
    return _walked(traced.jaxpr, traced.consts, [*network.leaves, *jax.tree.leaves(x)])


def _walked(jaxpr: Any, consts: Sequence[Any], operands: Sequence[Any], layer: str = "") -> Steps:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *operands], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if is_literal(atom) else env[atom]

    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        inside = "/".join(filter(None, (layer, str(eqn.source_info.name_stack))))
        if eqn.primitive in INLINE:
            outs = yield from _walked(*opened(eqn.params[INLINE[eqn.primitive]]), given, inside)
        else:
            outs = bind(eqn, given)
            yield (inside, str(eqn.primitive.name)), outs
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _differs(whole: Any, alone: Sequence[Any], tolerance: float) -> bool:
    if not jnp.issubdtype(whole.dtype, jnp.number) or whole.ndim != alone[0].ndim:
        return False
    sizes = zip(whole.shape, alone[0].shape, strict=True)
    axes = [k for k, (many, one) in enumerate(sizes) if many != one]
    if not axes:
        pieces = [whole] * len(alone)
    elif len(axes) == 1 and whole.shape[axes[0]] == len(alone) * alone[0].shape[axes[0]]:
        pieces = np.split(np.asarray(whole), len(alone), axes[0])
    else:
        return False
    for piece, one in zip(pieces, alone, strict=True):
        piece, one = (np.asarray(a).astype(np.complex128) for a in (piece, one))
        scale = np.max(np.abs(one), initial=0.0, where=np.isfinite(one))
        if (np.abs(piece - one) > tolerance * scale).any():
            return True
    return False
