"""Choose and join examples of leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from entk._errors import InputError
from entk._leaves import Leaf
from entk._part import Part

Index: TypeAlias = slice | np.ndarray[Any, np.dtype[np.intp]]


def positions(index: slice | ArrayLike, n: int) -> Index:
    """Return `index` as a slice or as row numbers from 0 to `n` - 1."""
    if isinstance(index, slice):
        return index
    rows = np.asarray(index)
    if rows.ndim > 1:
        raise InputError(f"index has {rows.ndim} axes; expected a list of examples or a mask")
    if rows.dtype == bool:
        if rows.shape != (n,):
            raise InputError(f"mask has shape {rows.shape}; expected ({n},)")
        return np.flatnonzero(rows)
    if rows.size == 0:
        return np.empty(0, np.intp)
    if rows.dtype.kind not in "iu":
        raise InputError(f"index is {rows.dtype}; expected integers, booleans or a slice")
    low, high = int(rows.min()), int(rows.max())
    if low < -n or high >= n:
        bad = low if low < -n else high
        raise InputError(f"example {bad:,} is out of range for {n:,} examples")
    rows = np.atleast_1d(rows).astype(np.intp)
    return np.where(rows < 0, rows + n, rows)


def taken(leaf: Leaf, rows: Index) -> Leaf:
    """Return `leaf` for some examples."""

    def cut(part: Part) -> object:
        given = part.given()
        return given.view(given.array[rows])

    return leaf._rebuild(cut)


def concatenated(name: str, leaves: Sequence[Leaf]) -> Leaf:
    """Return one leaf with the examples of all `leaves`, which are of one network."""
    columns = zip(*(leaf._parts for leaf in leaves), strict=True)
    # A leaf asks for its parts in the order it lists them, a tied one use by use.
    joined = iter([_joined(name, column) for column in columns])
    return leaves[0]._rebuild(lambda _: next(joined))


def _joined(name: str, column: Sequence[Part]) -> object:
    head = column[0].given()
    for number, part in enumerate(column):
        other = part.given()
        if other.dtype != head.dtype or other.shape[1:] != head.shape[1:]:
            raise InputError(
                f"layer {name!r} {part.word}: {other.shape} {other.dtype} in part {number}, "
                f"but {head.shape} {head.dtype} in part 0; they differ beyond the first axis"
            )
    return head.view(np.concatenate([part.given().array for part in column]))
