"""What running a network on one example takes, from the shapes in its jaxpr."""

from __future__ import annotations

from typing import Any

import numpy as np

from entk.jax._compat import INLINE, is_literal, nested, opened


def intermediate_bytes(jaxpr: Any, shared: int) -> int:
    """Return the bytes of all results on the way that differ from example to example.

    The first `shared` inputs, the parameters, and what is made of them alone are the same for all
    examples of a batch. Results of loops count at every step.
    """
    return _count(jaxpr, set(jaxpr.invars[shared:]))


def nbytes(aval: Any) -> int:
    """Return the bytes of an array of this shape and type."""
    if not hasattr(aval, "shape"):
        return 0
    itemsize = getattr(aval.dtype, "itemsize", 4)
    return int(np.prod(aval.shape, dtype=np.int64)) * itemsize


def _count(jaxpr: Any, moving: set[Any]) -> int:
    """Count results that depend on `moving`, and add them to it."""
    total = 0
    for eqn in jaxpr.eqns:
        if not any(not is_literal(atom) and atom in moving for atom in eqn.invars):
            continue
        moving.update(eqn.outvars)
        total += sum(nbytes(atom.aval) for atom in eqn.outvars)
        for value in eqn.params.values():
            for body in nested(value):
                total += _count_body(eqn, opened(body)[0], moving)
    return total


def _count_body(eqn: Any, body: Any, moving: set[Any]) -> int:
    """Count the results of a body: of a mere call by its operands, of others all of them."""
    if eqn.primitive in INLINE:
        pairs = zip(eqn.invars, body.invars, strict=True)
        inside = {inner for outer, inner in pairs if not is_literal(outer) and outer in moving}
        return _count(body, inside)
    return _count(body, {*body.invars}) * int(eqn.params.get("length", 1))
