"""Some examples of a leaf's arrays, in the type and with the output rows that a product needs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from entk._arrays import AnyArray, Host
from entk._outputs import Outputs

Float: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

ALL = slice(None)


class Piece(NamedTuple):
    """A part of a leaf's table."""

    planes: slice
    groups: slice
    rows: slice


class Stopped(Exception):
    """The caller does not want the rest."""


class Span(NamedTuple):
    """Examples and positions read at a time."""

    examples: slice
    positions: slice


class Pace(NamedTuple):
    """How much is read at a time, and whether to go on."""

    examples: int
    positions: int
    stop: threading.Event

    def slices(self, n: int) -> Iterator[slice]:
        """Cut `n` examples.

        Raises
        ------
        Stopped
            When the caller asks for it.
        """
        for first in range(0, n, self.examples):
            if self.stop.is_set():
                raise Stopped
            yield slice(first, min(first + self.examples, n))

    def spans(self, examples: slice, positions: int) -> Iterator[Span]:
        """Cut the positions of some examples."""
        for first in range(0, positions, self.positions):
            yield Span(examples, slice(first, min(first + self.positions, positions)))

    def all(self, n: int, positions: int) -> Iterator[Span]:
        """Cut all positions of all examples."""
        return (span for some in self.slices(n) for span in self.spans(some, positions))


@dataclass(frozen=True, eq=False)
class Directions:
    """What becomes of the output rows of one side, and the type that products are formed in."""

    outputs: Outputs
    rows: int
    weights: Float | None
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, outputs: Outputs, n: int, rows: int, dtype: np.dtype[Any]) -> Directions:
        """Bind `outputs` to a side of `n` examples with `rows` output rows."""
        weights = None
        if outputs.mode in ("sum", "weights"):
            given = np.ones(rows) if outputs.weights is None else outputs.weights
            weights = np.broadcast_to(given, (n, rows))
        return cls(outputs, rows, weights, dtype)

    @property
    def planes(self) -> int:
        """Kernels that are summed."""
        return self.rows if self.outputs.mode == "trace" else 1

    @property
    def kept(self) -> int:
        """Output rows of an example in a vector."""
        return self.rows if self.outputs.mode == "full" else 1

    def acts(self, host: Host, span: Span, groups: slice, features: slice) -> Float:
        """Return ``(1, g, n, 1, t, d)`` of an array ``(N, G, T, d)``."""
        values = _read(host, (span.examples, groups, span.positions, features), self.dtype)
        return contiguous(values.transpose(1, 0, 2, 3))[None, :, :, None]

    def cots(self, host: Host, span: Span, piece: Piece, features: slice) -> Float:
        """Return ``(planes, g, n, r, t, d)`` of an array ``(N, R, G, T, d)``."""
        rest = (piece.groups, span.positions, features)
        if self.outputs.mode == "trace":
            values = _read(host, (span.examples, piece.planes, *rest), self.dtype)
            return contiguous(values.transpose(1, 2, 0, 3, 4))[:, :, :, None]
        if self.weights is not None:
            values = _read(host, (span.examples, ALL, *rest), np.dtype(np.float64))
            n, r, *shape = values.shape
            weights = np.ascontiguousarray(self.weights[span.examples])[:, None]
            summed = weights @ values.reshape(n, r, int(np.prod(shape)))
            values = summed.astype(self.dtype, copy=False).reshape(n, 1, *shape)
        else:
            index = self.outputs.index
            chosen = ALL if index is None else slice(index, index + 1)
            values = _read(host, (span.examples, chosen, *rest), self.dtype)
        return contiguous(values.transpose(2, 0, 1, 3, 4))[None]


def contiguous(values: AnyArray) -> Float:
    """Return `values` in C order."""
    return np.ascontiguousarray(values)


def _read(host: Host, at: tuple[slice, ...], dtype: np.dtype[Any]) -> Float:
    part = host.array[at]
    wide = host.view(part).values() if host.dtype == "bfloat16" else part
    return np.require(wide, dtype, ["A"])


def length(piece: slice, whole: int) -> int:
    """Return how many of `whole` a slice takes."""
    return len(range(*piece.indices(whole)))
