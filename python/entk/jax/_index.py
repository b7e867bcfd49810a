"""Which elements of a parameter a value consists of, without an array of that size.

A view of a parameter (a transpose, a reshape, a slice) is described as NumPy describes its views:
an offset, a shape and strides, in elements of the parameter laid out in C order. A reshape that no
strides can say becomes an explicit array of positions.

Two uses of a parameter are compared through their indices alone. That replaces all bookkeeping of
orientations: transposed weights, fused matrices, heads, weights on the left of a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Positions: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Strided:
    """Positions `offset + sum_k i_k strides_k`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Strided:
        """Return the index of a parameter itself."""
        strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return cls(tuple(shape), tuple(strides))

    def transpose(self, order: Sequence[int]) -> Strided:
        """Permute the axes."""
        shape = tuple(self.shape[k] for k in order)
        return Strided(shape, tuple(self.strides[k] for k in order), self.offset)

    def cut(self, cuts: Sequence[slice]) -> Strided:
        """Slice every axis; negative steps reverse."""
        offset, shape, strides = self.offset, [], []
        for size, stride, piece in zip(self.shape, self.strides, cuts, strict=True):
            start, stop, step = piece.indices(size)
            offset += start * stride
            shape.append(len(range(start, stop, step)))
            strides.append(stride * step)
        return Strided(tuple(shape), tuple(strides), offset)

    def broadcast(self, shape: Sequence[int], axes: Sequence[int]) -> Strided:
        """Put axis k at `axes[k]` of `shape`; elements repeat along the other axes."""
        strides = [0] * len(shape)
        for size, stride, axis in zip(self.shape, self.strides, axes, strict=True):
            strides[axis] = stride if size == shape[axis] else 0
        return Strided(tuple(shape), tuple(strides), self.offset)

    def reshape(self, shape: Sequence[int]) -> Index:
        """Reshape in C order; explicit positions where strides cannot say it."""
        strides, at = [0] * len(shape), 0
        for size, stride in self._runs():
            left = size
            while left > 1:
                if at == len(shape) or shape[at] == 0 or left % shape[at]:
                    return self.explicit().reshape(shape)
                left //= shape[at]
                strides[at] = left * stride
                at += 1
        return Strided(tuple(shape), tuple(strides), self.offset)

    def positions(self) -> Positions:
        """Return the position of every element, as an array of the index's shape."""
        out = np.full(self.shape, self.offset, np.int64)
        for axis, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            steps = np.arange(size, dtype=np.int64) * stride
            out += steps.reshape(-1, *[1] * (len(self.shape) - axis - 1))
        return out

    def explicit(self) -> Explicit:
        """Write the positions out."""
        return Explicit(self.positions())

    def injective(self) -> bool:
        """Tell whether no element occurs twice."""
        reach = 0
        for stride, size in sorted((abs(s), n) for s, n in self._axes()):
            if stride <= reach:
                return self.explicit().injective()
            reach += stride * (size - 1)
        return True

    def key(self) -> tuple[object, ...]:
        """Return what is equal for two indices exactly if they are."""
        strides = (s if n > 1 else 0 for n, s in zip(self.shape, self.strides, strict=True))
        return self.shape, tuple(strides), self.offset

    def bounds(self) -> tuple[int, int]:
        """Return the smallest and the largest position."""
        steps = [s * (n - 1) for n, s in zip(self.shape, self.strides, strict=True)]
        return self.offset + sum(min(0, s) for s in steps), self.offset + sum(
            max(0, s) for s in steps
        )

    def of(self, flat: NDArray[Any]) -> NDArray[Any]:
        """Return the indexed elements of a flat array."""
        view = np.lib.stride_tricks.as_strided
        size = flat.itemsize
        return view(flat[self.offset :], self.shape, tuple(s * size for s in self.strides))

    def leaf_order(self, size: int) -> tuple[int, ...] | None:
        """Return the order of axes that lays the elements out as in the parameter, if any."""
        if prod(self.shape) != size or self.offset or min(self.strides, default=0) < 0:
            return None
        axes = range(len(self.shape))
        order = tuple(sorted(axes, key=lambda k: (-self.strides[k], self.shape[k])))
        laid = self.transpose(order)
        return order if laid.key() == Strided.whole(laid.shape).key() else None

    def _axes(self) -> list[tuple[int, int]]:
        return [(s, n) for n, s in zip(self.shape, self.strides, strict=True) if n > 1]

    def _runs(self) -> list[tuple[int, int]]:
        """Return the axes with neighbours joined where one stride walks both."""
        runs: list[tuple[int, int]] = []
        for stride, size in self._axes():
            if runs and runs[-1][1] == size * stride:
                runs[-1] = (runs[-1][0] * size, stride)
            else:
                runs.append((size, stride))
        return runs


@dataclass(frozen=True, eq=False)
class Explicit:
    """Positions in an array of their own."""

    array: Positions

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the index."""
        return self.array.shape

    def transpose(self, order: Sequence[int]) -> Explicit:
        """Permute the axes."""
        return Explicit(self.array.transpose(order))

    def cut(self, cuts: Sequence[slice]) -> Explicit:
        """Slice every axis; negative steps reverse."""
        return Explicit(self.array[tuple(cuts)])

    def broadcast(self, shape: Sequence[int], axes: Sequence[int]) -> Explicit:
        """Put axis k at `axes[k]` of `shape`; elements repeat along the other axes."""
        aligned = [1] * len(shape)
        for size, axis in zip(self.shape, axes, strict=True):
            aligned[axis] = size
        return Explicit(np.broadcast_to(self.array.reshape(aligned), shape))

    def reshape(self, shape: Sequence[int]) -> Explicit:
        """Reshape in C order."""
        return Explicit(self.array.reshape(shape))

    def positions(self) -> Positions:
        """Return the position of every element."""
        return self.array

    def injective(self) -> bool:
        """Tell whether no element occurs twice."""
        return np.unique(self.array).size == self.array.size

    def key(self) -> tuple[object, ...]:
        """Return what is equal for two indices exactly if they are."""
        return self.shape, self.array.tobytes()

    def bounds(self) -> tuple[int, int]:
        """Return the smallest and the largest position."""
        return (int(self.array.min()), int(self.array.max())) if self.array.size else (0, -1)

    def of(self, flat: NDArray[Any]) -> NDArray[Any]:
        """Return the indexed elements of a flat array."""
        return flat[self.array]

    def leaf_order(self, size: int) -> tuple[int, ...] | None:
        """Return None: positions in no regular order."""
        return None


Index: TypeAlias = Strided | Explicit


def regular(array: Positions) -> Index:
    """Return positions as strides, if there are any that say them."""
    first = array[(0,) * array.ndim] if array.size else 0
    strides = [
        int(array[tuple(int(k == axis) for k in range(array.ndim))] - first) if size > 1 else 0
        for axis, size in enumerate(array.shape)
    ]
    guess = Strided(array.shape, tuple(strides) if array.size else (0,) * array.ndim, int(first))
    return guess if bool((guess.positions() == array).all()) else Explicit(array)


def same(one: Index, other: Index) -> bool:
    """Tell whether two indices hold the same positions in the same places."""
    if one.shape != other.shape:
        return False
    if isinstance(one, Strided) and isinstance(other, Strided):
        return one.key() == other.key()
    return bool((one.positions() == other.positions()).all())


def disjoint(one: Index, other: Index) -> bool:
    """Tell whether two indices share no position."""
    (low, high), (other_low, other_high) = one.bounds(), other.bounds()
    if high < other_low or other_high < low:
        return True
    taken = np.zeros(max(high, other_high) + 1, bool)
    taken[one.positions()] = True
    return not taken[other.positions()].any()
