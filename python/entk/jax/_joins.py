"""Weights joined from several parameters: `jnp.concatenate([q, k, v])` before one product.

The joined weight is a view of a parameter that does not exist, the parts laid one after the other.
Its table at a site falls into boxes, one for each part: some of its steps and blocks, some of its
rows, some of its columns. The gradient of a part is made of these of the site's factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, TypeAlias

import numpy as np

from entk.jax._compat import Array
from entk.jax._index import Index, regular
from entk.jax._views import View

Box: TypeAlias = tuple[slice, ...]
"""Which part of a table: a range of every axis (loops..., G, d_in, d_out)."""


@dataclass(frozen=True)
class Joined(View):
    """A tensor joined from views of parameters; `leaf` is none of them.

    `index` counts through the parts, laid one after the other from `starts`.
    """

    parts: tuple[View, ...] = ()
    starts: tuple[int, ...] = ()

    @property
    def leaves(self) -> tuple[int, ...]:
        """The parameters that the tensor shows."""
        return tuple(part.leaf for part in self.parts)


def joined(eqn: Any, operands: Sequence[Any], out: Array) -> Joined | None:
    """Return the output of an equation as a view, if it joins parameters and nothing else."""
    axis = _axis(eqn)
    if axis is None or not all(type(value) is View and value.scale is None for value in operands):
        return None
    parts: tuple[View, ...] = tuple(operands)
    loops = parts[0].loops
    if any(part.loops != loops for part in parts):
        return None
    sizes = [prod(part.index.shape) for part in parts]
    starts = tuple(accumulate(sizes, initial=0))[:-1]
    numbered = [
        start + np.arange(size, dtype=np.int64).reshape(part.index.shape)
        for part, size, start in zip(parts, sizes, starts, strict=True)
    ]
    join = np.concatenate if eqn.primitive.name == "concatenate" else np.stack
    index = regular(join(numbered, axis=len(loops) + axis))
    return Joined(-1, out, index, loops=loops, parts=parts, starts=starts)


def _axis(eqn: Any) -> int | None:
    names = {"concatenate": "dimension", "stack": "axis"}
    name = names.get(eqn.primitive.name)
    return None if name is None else int(eqn.params[name])


def tables(view: View, table: Index) -> list[tuple[int, Index, Box | None]] | None:
    """Return the leaves in a table of a view, each with its positions and its box.

    None if the parts of a joined view are no boxes of the table.
    """
    if not isinstance(view, Joined):
        return [(view.leaf, table, None)]
    positions = table.positions()
    found: list[tuple[int, Index, Box | None]] = []
    for part, start in zip(view.parts, view.starts, strict=True):
        own = part.index.positions().reshape(-1)
        box = _box((positions >= start) & (positions < start + own.size))
        if box is None:
            return None
        found.append((part.leaf, regular(own[positions[box] - start]), box))
    return found


def _box(mask: np.ndarray[Any, Any]) -> Box | None:
    """Return the ranges of the axes that a mask fills, if it fills a box."""
    if not mask.any():
        return None
    sides = mask.nonzero()
    box = tuple(slice(int(side.min()), int(side.max()) + 1) for side in sides)
    return box if bool(mask[box].all()) else None
