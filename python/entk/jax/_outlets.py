"""Which results of a traced program are the same numbers in the same order.

A bias has the cotangent of its layer's weight, and q, k and v read one array. Such arrays are made,
copied and kept once, and the assembly computes what they share once. Activations that are the
network's input are not made at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from entk.jax._compat import is_literal

_SAME_ORDER = {"broadcast_in_dim", "copy", "copy_p", "reshape", "squeeze", "expand_dims"}
"""Operations that keep the numbers and their order, if they keep how many there are."""


@dataclass(frozen=True)
class Source:
    """Where a result comes from: a place among the computed ones, or among the inputs."""

    place: int
    of_input: bool = False


@dataclass(frozen=True)
class Outlets:
    """The source of each result, and the numbers of the results that are computed."""

    sources: tuple[Source, ...]
    computed: tuple[int, ...]


def outlets(jaxpr: Any, inputs: Sequence[Any]) -> Outlets:
    """Compare the results of a jaxpr; `inputs` are its variables that need not be made."""
    maker = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
    known = {var: Source(k, of_input=True) for k, var in enumerate(inputs)}
    sources: list[Source] = []
    computed: list[int] = []
    for number, atom in enumerate(jaxpr.outvars):
        root = number if is_literal(atom) else _root(atom, maker)
        if root not in known:
            known[root] = Source(len(computed))
            computed.append(number)
        sources.append(known[root])
    return Outlets(tuple(sources), tuple(computed))


def _root(var: Any, maker: dict[Any, Any]) -> Any:
    """Return the first variable with the same numbers in the same order."""
    while var in maker and _keeps(maker[var]) and not is_literal(maker[var].invars[0]):
        var = maker[var].invars[0]
    return var


def _keeps(eqn: Any) -> bool:
    """Tell whether an equation gives its first operand again, perhaps in another shape."""
    name, params, out = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
    shape = eqn.invars[0].aval.shape if eqn.invars else ()
    if not eqn.invars or eqn.invars[0].aval.dtype != out.dtype or prod(shape) != prod(out.shape):
        return False
    if name == "transpose":
        moved = [k for k in params["permutation"] if shape[k] != 1]
        return moved == sorted(moved)
    if name == "reshape":
        return params.get("dimensions") is None
    # Sums over axes of length 1: that there are as many results as numbers says so.
    return name in _SAME_ORDER or name in ("convert_element_type", "reduce_sum")
