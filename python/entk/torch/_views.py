"""Which entries of a parameter a tensor shows: tags that follow `.T`, `chunk`, slices and casts.

A weight is seldom used as it is stored. A `View` remembers the steps from the parameter to the
tensor in hand; replaying them on a tensor without storage gives an `IndexMap`, the place of every
entry in the flat parameter, as an offset and strides. Two uses of one parameter are then told
apart by arithmetic: the same entries, the same ones transposed, disjoint ones, or none of these.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]


def _named(words: str) -> Iterator[Any]:
    """Yield the functions and methods of these names, as far as they exist."""
    for word, home in itertools.product(words.split(), (torch, Tensor)):
        if hasattr(home, word):
            yield getattr(home, word)


def _getters(words: str) -> Iterator[Any]:
    for word in words.split():
        yield getattr(Tensor, word).__get__


_RESHAPES = """
    t transpose permute reshape view unsqueeze squeeze flatten unflatten chunk split unbind select
    narrow movedim moveaxis swapaxes swapdims expand tensor_split split_with_sizes diagonal hsplit
    vsplit __getitem__ __iter__ repeat tile flip fliplr flipud rot90 roll
"""
_TAKE_A_SHAPE = """
    zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty
    new_full new_tensor expand_as view_as reshape_as
"""
VIEWS = {*_named(_RESHAPES), *_getters("T mT")}
COPIES = set(_named("clone contiguous float double half bfloat16 to cpu cuda type_as"))
DETACHED = {*_named("detach"), *_getters("data")}
TIMES = set(_named("mul multiply __mul__ __rmul__"))
OVER = set(_named("div true_divide __truediv__"))
MINUS = set(_named("neg negative __neg__"))
# They take a shape or a type from a tensor, not its values.
VALUELESS = set(_named(_TAKE_A_SHAPE))


@dataclass(frozen=True)
class View:
    """A tensor made of entries of one parameter, each times `scale`."""

    leaf: str
    steps: tuple[Step, ...] = ()
    scale: float = 1.0

    @property
    def leaves(self) -> tuple[str, ...]:
        """The parameters that the tensor shows."""
        return (self.leaf,)

    def then(self, step: Step) -> View:
        """Return the view after one more step."""
        return replace(self, steps=(*self.steps, step))

    def times(self, scale: float) -> View:
        """Return the view with its entries scaled."""
        return replace(self, scale=self.scale * scale)

    def index_map(self, shape: torch.Size, table: Step) -> IndexMap:
        """Return the places in a parameter of `shape` that ``table(view)`` shows."""
        steps = (*self.steps, table)
        root = torch.empty(shape, device="meta")
        shown = _replay(root, steps)
        if shown is root or shown._base is root:
            return IndexMap(tuple(shown.shape), int(shown.storage_offset()), shown.stride())
        places = torch.arange(math.prod(shape), device="cpu").reshape(shape)
        return IndexMap(tuple(shown.shape), places=_replay(places, steps).contiguous())


def _replay(tensor: Tensor, steps: tuple[Step, ...]) -> Tensor:
    for step in steps:
        tensor = step(tensor)
    return tensor


@dataclass(frozen=True)
class IndexMap:
    """The place in a flat parameter of every entry of a table.

    Strided where the table is a view of the parameter, else spelled out in `places`.
    """

    shape: tuple[int, ...]
    offset: int = 0
    strides: tuple[int, ...] = ()
    places: Tensor | None = field(default=None, compare=False)

    def same(self, other: IndexMap) -> bool:
        """Whether both tables show the same entries at the same positions."""
        if self.shape != other.shape:
            return False
        if self.places is None and other.places is None:
            return self.offset == other.offset and self._steps() == other._steps()
        return torch.equal(self.spelled(), other.spelled())

    def _steps(self) -> tuple[int, ...]:
        """Return the strides; an axis of length 1 has none that matters."""
        return tuple(0 if n == 1 else s for n, s in zip(self.shape, self.strides, strict=True))

    def is_whole(self, size: int) -> bool:
        """Whether the table is all of a parameter of `size` entries, as it is stored."""
        whole = IndexMap(self.shape, 0, torch.empty(self.shape, device="meta").stride())
        return math.prod(self.shape) == size and self.places is None and self.same(whole)

    def transposed(self) -> IndexMap:
        """Return the map of the table with its last two axes exchanged."""
        *head, rows, columns = self.shape
        if self.places is not None:
            return IndexMap((*head, columns, rows), places=self.places.mT)
        *steps, down, right = self.strides
        return IndexMap((*head, columns, rows), self.offset, (*steps, right, down))

    def dropped(self, axis: int) -> IndexMap:
        """Return the map without an axis of length 1."""
        shape = self.shape[:axis] + self.shape[axis + 1 :]
        if self.places is not None:
            return IndexMap(shape, places=self.places.squeeze(axis))
        return IndexMap(shape, self.offset, self.strides[:axis] + self.strides[axis + 1 :])

    def spelled(self) -> Tensor:
        """Return the places as an int64 tensor of `shape`."""
        if self.places is not None:
            return self.places
        places = torch.full((), self.offset, dtype=torch.int64, device="cpu")
        for n, step in zip(self.shape, self.strides, strict=True):
            places = places[..., None] + torch.arange(n, device="cpu") * step
        return places

    def repeats(self) -> bool:
        """Whether an entry is shown twice."""
        if self.places is not None:
            return bool((self.places.reshape(-1).sort().values.diff() == 0).any())
        return any(n > 1 and s == 0 for n, s in zip(self.shape, self.strides, strict=True))

    def disjoint(self, other: IndexMap) -> bool:
        """Whether no entry is in both tables."""
        (a0, a1), (b0, b1) = self._range(), other._range()
        if a1 < b0 or b1 < a0:
            return True
        seen = torch.zeros(max(a1, b1) + 1, dtype=torch.bool, device="cpu")
        seen[self.spelled()] = True
        return not bool(seen[other.spelled()].any())

    def _range(self) -> tuple[int, int]:
        if self.places is not None:
            return int(self.places.min()), int(self.places.max())
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset, self.offset + sum((n - 1) * s for n, s in steps)

    def add(self, jac: Tensor, table: Tensor) -> None:
        """Add a table ``(b, R, *shape)`` to its places in a Jacobian ``(b, R, P)``."""
        b, r, p = jac.shape
        if self.places is None:
            shown = jac.as_strided((b, r, *self.shape), (r * p, p, *self.strides), self.offset)
            shown += table
        else:
            places = self.places.reshape(-1).to(jac.device)
            jac.index_add_(2, places, table.reshape(b, r, -1))
