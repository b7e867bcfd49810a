"""Entries of an operator that only multiplies: by products with unit vectors, in batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

BATCH = 256  # unit vectors multiplied at a time
PROBES = 16


class Multiplied:
    """Gives an operator without them the rows, blocks and diagonal that solvers ask for.

    Each row or column costs a product; whole rows are columns of the transpose.
    """

    def __init__(self, op: Any) -> None:
        self._op = op
        self.shape: tuple[int, int] = (int(op.shape[0]), int(op.shape[1]))
        self.dtype = np.dtype(op.dtype if op.dtype is not None else np.float64)

    def __matmul__(self, v: Float) -> Float:
        return np.asarray(self._op @ v, dtype=np.float64)

    def rows(self, index: Any) -> Float:
        """Return rows."""
        return self.block(index, slice(None))

    def block(self, rows: Any, cols: Any) -> Float:
        """Return entries, from whichever side needs fewer products."""
        down, across = (np.arange(s)[i] for s, i in zip(self.shape, (rows, cols), strict=True))
        few = len(across) <= len(down)
        entries: Float = self._columns(across)[down] if few else self._rows(down)[:, across]
        return entries

    def _columns(self, index: Any) -> Float:
        parts = [self @ _units(self.shape[1], part) for part in _batches(index)]
        return np.concatenate(parts, axis=1) if parts else np.empty((self.shape[0], 0))

    def _rows(self, index: Any) -> Float:
        if self.shape[0] == self.shape[1]:  # a kernel is symmetric, and few define the transpose
            return np.asarray(self._columns(index).T)
        parts = [self._op.rmatmat(_units(self.shape[0], part)) for part in _batches(index)]
        empty = np.empty((self.shape[1], 0))
        return np.asarray(np.concatenate(parts, axis=1) if parts else empty, dtype=np.float64).T

    def diagonal(self) -> Float:
        """Return the diagonal: as many products as there are rows."""
        every = np.arange(self.shape[0])
        parts = [(self @ _units(self.shape[1], p))[p, np.arange(len(p))] for p in _batches(every)]
        return np.concatenate(parts) if parts else np.empty(0)

    def mean_diagonal(self) -> float:
        """Estimate the mean of the diagonal from a few products (Hutchinson)."""
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (self.shape[1], PROBES))
        return float(np.mean(signs * (self @ signs)))


def _units(n: int, index: Any) -> Float:
    units = np.zeros((n, len(index)))
    units[index, np.arange(len(index))] = 1.0
    return units


def _batches(index: Any) -> list[Any]:
    return [index[i : i + BATCH] for i in range(0, len(index), BATCH)]
