"""A walk over a jaxpr that finds the sites of parameters, or perturbs their outputs.

The same walk does both. Looking for sites (`Taps(eps=None)`), it runs under `jax.eval_shape` and
collects them. Taking factors, it adds `eps[k]` (zeros) to the output of site k, so that the
derivative with respect to `eps[k]` is the cotangent there, and keeps the site's record.

Only calls that merely wrap a body are inlined. `custom_jvp` and `custom_vjp` are run as they are:
their derivative is what their author says it is, and inlining would lose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp

from entk.jax._branches import walk_cond
from entk.jax._compat import INLINE, Array, bind, is_literal, opened
from entk.jax._joins import joined
from entk.jax._scan import walk_scan
from entk.jax._sites import use_at
from entk.jax._taps import Taps
from entk.jax._views import View, follow, gated, raw, scaled, spreads


def walk(jaxpr: Any, consts: Sequence[Array], operands: Sequence[Any], taps: Taps) -> list[Any]:
    """Run a jaxpr on arrays and views; return arrays and views."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, operands, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if is_literal(atom) else env[atom]

    for eqn in jaxpr.eqns:
        outs = _step(eqn, [read(atom) for atom in eqn.invars], taps)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _step(eqn: Any, operands: list[Any], taps: Taps) -> list[Any]:
    views = [value for value in operands if isinstance(value, View)]
    if not views:
        outs = bind(eqn, operands)
        if spreads(eqn, operands):
            taps.spread[id(outs[0])] = (outs[0], operands[0])
        return outs
    taps.used.update(leaf for view in views for leaf in view.leaves)
    if eqn.primitive in INLINE:
        jaxpr, consts = opened(eqn.params[INLINE[eqn.primitive]])
        return walk(jaxpr, consts, operands, taps)
    if eqn.primitive.name == "scan":
        return walk_scan(eqn, operands, taps, walk)
    if eqn.primitive.name == "cond":
        return walk_cond(eqn, operands, taps, walk)
    outs = bind(eqn, [raw(value) for value in operands])
    if eqn.primitive.name == "optimization_barrier":
        return [_beside(value, out) for value, out in zip(operands, outs, strict=True)]
    if not _carries_gradient(eqn, outs):
        return outs
    whole = joined(eqn, operands, outs[0])
    if whole is not None:
        return [whole]
    if len(views) == 1 and (kept := _structured(eqn, operands, views[0], outs, taps)) is not None:
        return kept
    taps.make_dense(views, f"used by {_operation(eqn)}, which keeps no structure")
    return outs


def _structured(
    eqn: Any, operands: list[Any], view: View, outs: list[Array], taps: Taps
) -> list[Any] | None:
    """Return the outputs where the one view among the operands stays a view or meets a site."""
    followed = follow(eqn, view, outs)
    if followed is not None:
        return list(followed)
    product = scaled(eqn, operands, outs[0]) or gated(eqn, operands, outs[0], taps.spread)
    if product is not None:
        return [product]
    which = next(k for k, value in enumerate(operands) if value is view)
    use = use_at(eqn, operands, which)
    return None if use is None else taps.at(use, view, outs[0])


def _beside(value: Any, out: Array) -> Any:
    return replace(value, value=out) if isinstance(value, View) else out


def _carries_gradient(eqn: Any, outs: Sequence[Array]) -> bool:
    inexact = any(jnp.issubdtype(out.dtype, jnp.inexact) for out in outs)
    return inexact and eqn.primitive.name not in _FLAT


_FLAT = {"stop_gradient", "sign", "round", "floor", "ceil"}
"""Operations whose derivative JAX takes to be zero everywhere."""


def _operation(eqn: Any) -> str:
    name = str(eqn.primitive.name)
    words = {
        "custom_jvp_call": "a custom_jvp function",
        "custom_vjp_call": "a custom_vjp function",
        "while": "a while loop",
    }
    return words.get(name, f"`{name}`")
