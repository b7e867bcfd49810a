"""Weights joined from several parameters: `torch.cat([q, k, v])` before one product.

The table of the joined weight falls into boxes, one for each parameter: some of its rows, some of
its columns. The gradient of a box is made of these columns of the factors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from entk.torch._sites import Use
from entk.torch._views import Step, View

_NAMES = ["cat", "concat", "concatenate", "stack", "hstack", "vstack", "row_stack"]
JOINS = {getattr(torch, name) for name in _NAMES if hasattr(torch, name)}

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Fused:
    """A tensor joined from parameters.

    Attributes
    ----------
    views : tuple of View
        What is known of the parts.
    shapes : tuple of torch.Size
        Their shapes.
    join : callable
        Makes the tensor of its parts.
    """

    views: tuple[View, ...]
    shapes: tuple[torch.Size, ...]
    join: Callable[[Sequence[Tensor]], Tensor]

    @property
    def leaves(self) -> tuple[str, ...]:
        """The parameters that the tensor shows."""
        return tuple(view.leaf for view in self.views)

    def then(self, step: Step) -> Fused:
        """Return the tensor after one more step."""
        join = self.join
        return replace(self, join=lambda parts: step(join(parts)))

    def times(self, scale: float) -> Fused:
        """Return the tensor scaled."""
        return replace(self, views=tuple(view.times(scale) for view in self.views))

    def uses(self, use: Use) -> list[tuple[View, Use]] | None:
        """Return the uses of the parts in a use of the whole; None where they are no boxes."""
        if use.kind == "lookup":
            return None
        numbers = [torch.full(shape, k, device="cpu") for k, shape in enumerate(self.shapes)]
        labels = use.table(self.join(numbers))
        found = []
        for k, view in enumerate(self.views):
            box = _box(labels == k)
            if box is None:
                return None
            found.append((view, self._within(use, k, box)))
        return found

    def _within(self, use: Use, k: int, box: Box) -> Use:
        blocks, rows, columns = box

        def table(part: Tensor) -> Tensor:
            parts = [part if i == k else part.new_zeros(s) for i, s in enumerate(self.shapes)]
            return use.table(self.join(parts))[box]

        return Use(
            use.weight,
            use.acts[blocks, :, rows],
            lambda d: use.cots(d)[blocks, :, columns],
            table,
        )


def fused(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    view_of: Callable[[Tensor], Any],
) -> Fused | None:
    """Return the tag of the result of a join, if all its parts are parameters."""
    parts = args[0] if args else kwargs.get("tensors")
    if not isinstance(parts, list | tuple):
        return None
    views = [view_of(part) for part in parts]
    if not all(isinstance(view, View) for view in views):
        return None
    rest, named = args[1:], {k: v for k, v in kwargs.items() if k != "tensors"}

    def join(tensors: Sequence[Tensor]) -> Tensor:
        whole: Tensor = func(list(tensors), *rest, **named)
        return whole

    return Fused(tuple(views), tuple(part.shape for part in parts), join)


def _box(mask: Tensor) -> Box | None:
    """Return the ranges of blocks, rows and columns that a mask fills, if it fills a box."""
    sides = [mask.any(i).any(j) for i, j in ((2, 1), (2, 0), (1, 0))]
    ranges = [_range(side.nonzero()[:, 0].tolist()) for side in sides]
    first, second, third = ranges
    if first is None or second is None or third is None:
        return None
    box = (first, second, third)
    return box if bool(mask[box].all()) else None


def _range(numbers: Iterable[int]) -> slice | None:
    numbers = list(numbers)
    if any(b != a + 1 for a, b in itertools.pairwise(numbers)) or not numbers:
        return None
    return slice(numbers[0], numbers[-1] + 1)
