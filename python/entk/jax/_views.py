"""Values that are a re-indexing of one parameter, and the operations that keep them so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax.numpy as jnp

from entk.jax._compat import Array
from entk.jax._index import Index


@dataclass(frozen=True)
class View:
    """Elements of parameter `leaf`, times `scale`.

    Inside a loop the index has one leading axis for every loop that slices the parameter (stacked
    layers); `loops` numbers these loops from the outside in.
    """

    leaf: int
    value: Array
    index: Index
    scale: Array | None = None
    loops: tuple[int, ...] = ()

    @property
    def leaves(self) -> tuple[int, ...]:
        """The parameters that the value shows."""
        return (self.leaf,)


Spread: TypeAlias = dict[int, tuple[Array, Array]]
"""By identity: arrays that hold one value, themselves and that value."""


def raw(value: Any) -> Array:
    """Return the array behind a value that may be a view."""
    return value.value if isinstance(value, View) else value


def follow(eqn: Any, view: View, outs: Sequence[Array]) -> list[View] | None:
    """Return the outputs of an equation as views, if it only re-indexes or scales its operand."""
    rule = _REINDEX.get(eqn.primitive.name)
    if rule is None or not _keeps_floats(outs):
        return None
    indices = rule(eqn.params, view.index, len(view.loops))
    if indices is None:
        return None
    return [replace(view, value=o, index=i) for o, i in zip(outs, indices, strict=True)]


def scaled(eqn: Any, operands: Sequence[Any], out: Array) -> View | None:
    """Return `view * s`, `s * view`, `view / s` or `-view` as a view, for a scalar s."""
    name, (first, *rest) = eqn.primitive.name, operands
    if name == "neg":
        return _times(first, jnp.ones((), out.dtype), -1, out)
    if name not in ("mul", "div") or (name == "div" and not isinstance(first, View)):
        return None
    view, factor = (first, rest[0]) if isinstance(first, View) else (rest[0], first)
    if jnp.ndim(factor) or not jnp.ndim(view.value):
        return None
    return _times(view, factor, 1, out) if name == "mul" else _times(view, 1 / factor, 1, out)


def gated(eqn: Any, operands: Sequence[Any], out: Array, spread: Spread) -> View | None:
    """Return ``select_n(which, ..., view, ...)`` as a view, where one answer is for all of it.

    That is how `jax.vmap` writes `lax.cond`: each branch reads ``where(taken, w, stopped(w))``,
    which is `w` in any case, and has its gradient if the branch is taken.
    """
    if eqn.primitive.name != "select_n":
        return None
    which, *cases = operands
    answer = which if jnp.ndim(which) == 0 else spread.get(id(which), (None, None))[1]
    if answer is None:
        return None
    number, view = next((k, c) for k, c in enumerate(cases) if isinstance(c, View))
    taken = jnp.reshape(answer, ()).astype(jnp.int32) == number
    return _times(view, taken.astype(out.dtype), 1, out)


def spreads(eqn: Any, operands: Sequence[Array]) -> bool:
    """Tell whether an equation fills an array with one value."""
    return eqn.primitive.name == "broadcast_in_dim" and jnp.size(operands[0]) == 1


def _times(view: View, factor: Array, sign: int, out: Array) -> View:
    total = sign * factor if view.scale is None else sign * factor * view.scale
    return replace(view, value=out, scale=total)


def _keeps_floats(outs: Sequence[Array]) -> bool:
    return all(jnp.issubdtype(out.dtype, jnp.floating) for out in outs)


# Each rule: the equation's parameters, the operand's index, its number of leading loop axes -> the
# outputs' indices, or None where it has no such form.
Rule = Callable[[dict[str, Any], Index, int], list[Index] | None]


def _same(params: dict[str, Any], index: Index, lead: int) -> list[Index]:
    return [index]


def _reshape(params: dict[str, Any], index: Index, lead: int) -> list[Index] | None:
    if params.get("dimensions") is not None:
        return None
    return [index.reshape((*index.shape[:lead], *params["new_sizes"]))]


def _transpose(params: dict[str, Any], index: Index, lead: int) -> list[Index]:
    return [index.transpose((*range(lead), *(lead + k for k in params["permutation"])))]


def _squeeze(params: dict[str, Any], index: Index, lead: int) -> list[Index]:
    gone = {lead + k for k in params["dimensions"]}
    return [index.reshape([n for k, n in enumerate(index.shape) if k not in gone])]


def _broadcast(params: dict[str, Any], index: Index, lead: int) -> list[Index]:
    shape = (*index.shape[:lead], *params["shape"])
    axes = (*range(lead), *(lead + k for k in params["broadcast_dimensions"]))
    return [index.broadcast(shape, axes)]


def _slice(params: dict[str, Any], index: Index, lead: int) -> list[Index]:
    starts, limits = params["start_indices"], params["limit_indices"]
    steps = params["strides"] or [1] * len(starts)
    cuts = [slice(*piece) for piece in zip(starts, limits, steps, strict=True)]
    return [index.cut([slice(None)] * lead + cuts)]


def _rev(params: dict[str, Any], index: Index, lead: int) -> list[Index]:
    turned = {lead + k for k in params["dimensions"]}
    return [index.cut([slice(None, None, -1 if k in turned else 1) for k in _axes(index)])]


def _split(params: dict[str, Any], index: Index, lead: int) -> list[Index]:
    axis, start, out = lead + params["axis"], 0, []
    for size in params["sizes"]:
        piece = slice(start, start + size)
        out.append(index.cut([piece if k == axis else slice(None) for k in _axes(index)]))
        start += size
    return out


def _unstack(params: dict[str, Any], index: Index, lead: int) -> list[Index]:
    axis = lead + params["axis"]
    shape = [n for k, n in enumerate(index.shape) if k != axis]
    pieces = _split({"axis": params["axis"], "sizes": [1] * index.shape[axis]}, index, lead)
    return [piece.reshape(shape) for piece in pieces]


def _axes(index: Index) -> range:
    return range(len(index.shape))


_REINDEX: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _same,
    "copy": _same,
    "copy_p": _same,
    "name": _same,
    "reshape": _reshape,
    "rev": _rev,
    "sharding_constraint": _same,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "unstack": _unstack,
}
