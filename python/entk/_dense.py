"""One way to read a kernel: an array, a stored kernel and an operator look the same to a solver.

Solvers work in float64 whatever the kernel is stored in, so a `Matrix` hands out float64 blocks
and promotes while it reads; nothing of the size of the kernel is copied unless a solver asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entk import _floor
from entk._arrays import host
from entk._errors import DTypeError, InputError, NonFiniteError

Float: TypeAlias = NDArray[np.float64]
Kind = Literal["array", "sliced", "operator"]

STRIP_BYTES = 2**25  # what one promoted strip of rows may take


@dataclass(frozen=True, eq=False)
class Matrix:
    """A kernel as the solvers read it.

    `kind` is "array" (in RAM or mapped), "sliced" (a stored kernel, read by slices) or "operator"
    (only products and blocks).
    """

    source: Any
    kind: Kind
    shape: tuple[int, int]
    dtype: str
    strip_bytes: int = STRIP_BYTES

    def within(self, memory: int) -> Matrix:
        """Return the same kernel, read in strips that together take a part of `memory` bytes."""
        return replace(self, strip_bytes=max(1, min(STRIP_BYTES, memory // 4)))

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def _indexed(self) -> bool:
        """Whether the source takes arrays of indices with NumPy's meaning."""
        return self.kind == "array" or hasattr(self.source, "tiles")

    def block(self, rows: slice, cols: slice) -> Float:
        """Return ``K[rows, cols]`` as a new float64 array."""
        if self.kind == "operator":
            return np.array(self.source.block(rows, cols), dtype=np.float64)
        return np.array(self.source[rows, cols], dtype=np.float64)

    def rows(self, index: ArrayLike) -> Float:
        """Return ``K[index, :]`` as a new float64 array."""
        index = np.asarray(index, dtype=np.intp)
        if self._indexed:
            return np.array(self.source[index, :], dtype=np.float64)
        if self.kind == "operator":
            return np.array(self.source.rows(index), dtype=np.float64)
        strips = [self.block(slice(i, i + 1), slice(0, self.shape[1])) for i in index.tolist()]
        return np.concatenate(strips) if strips else np.empty((0, self.shape[1]))

    def pairs(self, rows: ArrayLike, cols: ArrayLike) -> Float:
        """Return ``K[rows][:, cols]`` for two index arrays as a new float64 array."""
        rows, cols = np.asarray(rows, dtype=np.intp), np.asarray(cols, dtype=np.intp)
        if self._indexed:
            return np.array(self.source[np.ix_(rows, cols)], dtype=np.float64)
        if self.kind == "operator":
            return np.array(self.source.block(rows, cols), dtype=np.float64)
        return self.rows(rows)[:, cols]

    def strips(self, width: int | None = None) -> Iterator[slice]:
        """Cut the rows into slices whose float64 copies stay small."""
        step = width or max(1, self.strip_bytes // (8 * max(1, self.shape[1])))
        return (slice(i, min(i + step, self.n)) for i in range(0, self.n, step))

    @cached_property
    def diag(self) -> Float:
        """The diagonal."""
        if self.kind == "array":
            return np.array(np.diagonal(self.source), dtype=np.float64)
        if self.kind == "operator":
            return np.array(self.source.diagonal(), dtype=np.float64)
        step = max(1, int(np.sqrt(self.strip_bytes / 8)))
        parts = [np.diagonal(self.block(s, s)) for s in self.strips(step)]
        return np.concatenate(parts) if parts else np.empty(0)

    def matmat(self, v: Float) -> Float:
        """Return ``K @ v`` in float64; `v` has one or two axes."""
        # A stored kernel multiplies faster on its own, in float64 and as much room as a strip has.
        stored = hasattr(self.source, "tiles") and self.strip_bytes == STRIP_BYTES
        if self.kind == "operator" or stored or (self.kind, self.dtype) == ("array", "float64"):
            return np.asarray(self.source @ v, dtype=np.float64)
        out = np.empty((self.n, *v.shape[1:]))
        for strip in self.strips():
            out[strip] = self.block(strip, slice(0, self.shape[1])) @ v
        return out

    def dense(self, out: Float | None = None) -> Float:
        """Return all entries as a new C-ordered float64 array, or in `out`."""
        out = np.empty(self.shape) if out is None else out
        for strip in self.strips():
            out[strip] = self.block(strip, slice(0, self.shape[1]))
        return out

    @cached_property
    def floor(self) -> float:
        """The noise floor in units of the mean diagonal."""
        return _floor.of_record(self.n, self.dtype, getattr(self.source, "info", None))

    @cached_property
    def noise(self) -> float:
        """The noise floor in units of the kernel."""
        if not self.n:
            return 0.0
        if hasattr(self.source, "mean_diagonal"):
            return self.floor * abs(float(self.source.mean_diagonal()))
        return self.floor * float(np.mean(np.abs(self.diag)))


def read(kernel: Any, what: str = "K", *, square: bool = True) -> Matrix:
    """Wrap whatever the caller passed: ndarray, array-like, `Kernel`, `KernelOperator`, `Factors`.

    Raises
    ------
    DTypeError
        For complex, object, masked or otherwise non-numeric entries.
    InputError
        If it has not two axes, or is not square where it must be.
    """
    matrix = kernel if isinstance(kernel, Matrix) else _wrap(kernel, what)
    if square and matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{what} has shape {matrix.shape}; a kernel of the samples is square")
    return matrix


def _wrap(kernel: Any, what: str) -> Matrix:
    if hasattr(kernel, "leaves") and hasattr(kernel, "take"):
        import entk

        kernel = entk.KernelOperator(kernel)
    if hasattr(kernel, "matvec") and hasattr(kernel, "matmat"):
        from entk._multiplied import Multiplied

        source = kernel if hasattr(kernel, "block") else Multiplied(kernel)
        dtype = np.dtype(kernel.dtype if kernel.dtype is not None else np.float64)
        return Matrix(source, "operator", _two(kernel.shape, what), _float(dtype, what))
    sliced = hasattr(kernel, "tiles") or hasattr(kernel, "chunks")
    if sliced and not isinstance(kernel, np.ndarray):
        return Matrix(kernel, "sliced", _two(kernel.shape, what), _float(kernel.dtype, what))
    held = host(kernel, what)
    array = held.values() if held.dtype == "bfloat16" else held.array
    name = held.dtype if held.dtype in _floor.ROUNDOFF else "float64"
    return Matrix(array, "array", _two(array.shape, what), name)


def _two(shape: Any, what: str) -> tuple[int, int]:
    if len(shape) != 2:
        raise InputError(f"{what} has {len(shape)} axes, shape {tuple(shape)}; expected (N, N)")
    return int(shape[0]), int(shape[1])


def _float(given: Any, what: str) -> str:
    dtype = np.dtype(given)
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise DTypeError(f"{what} is {dtype}; a kernel is float64, float32 or float16")
    return dtype.name if dtype.kind == "f" else "float64"


def check_finite(matrix: Matrix, what: str = "K") -> None:
    """Refuse NaN and infinity, naming the first."""
    if matrix.kind == "operator":
        return
    for strip in matrix.strips():
        check_finite_array(matrix.block(strip, slice(0, matrix.shape[1])), what, strip.start)


def check_finite_array(values: Float, what: str, first_row: int = 0) -> None:
    """Refuse NaN and infinity in an array, naming the first."""
    bad = ~np.isfinite(values)
    if bad.any():
        where = [int(i) for i in np.argwhere(bad)[0]]
        value = values[tuple(where)]
        where[0] += first_row
        place = ", ".join(map(str, where))
        count = int(bad.sum())
        raise NonFiniteError(f"{what}[{place}] is {value}; {count} of its entries NaN or infinite")


def check_symmetric(matrix: Matrix, what: str = "K") -> None:
    """Refuse NaN, infinity, and a difference to the transpose beyond rounding.

    Rounding means ``8 sqrt(n) u sqrt(K_ii K_jj)``, that of two sums of different order. An
    operator is taken at its word, and so is a stored kernel that was assembled as symmetric.
    """
    record = getattr(matrix.source, "info", None)
    stored = isinstance(record, Mapping) and record.get("symmetric") is True
    if matrix.kind == "operator" or stored:
        return check_finite(matrix, what)
    n = matrix.n
    step = max(1, int(np.sqrt(matrix.strip_bytes / 48)))  # two blocks, their difference, masks
    unit = _floor.ROUNDOFF.get(matrix.dtype, _floor.ROUNDOFF["float64"])
    size = np.sqrt(np.abs(matrix.diag)) * np.sqrt(8.0 * np.sqrt(n) * unit)
    for rows in matrix.strips(step):
        for cols in matrix.strips(step):
            if cols.start > rows.start:
                break
            below, above = matrix.block(rows, cols), matrix.block(cols, rows).T
            _compare_halves(below, above, size[rows], size[cols], (rows.start, cols.start), what)


def _compare_halves(
    below: Float, above: Float, row: Float, col: Float, start: tuple[int, int], what: str
) -> None:
    bad = ~(np.isfinite(below) & np.isfinite(above))
    if bad.any():
        i, j = np.argwhere(bad)[0]
        value = below[i, j] if not np.isfinite(below[i, j]) else above[i, j]
        raise NonFiniteError(
            f"{what}[{i + start[0]}, {j + start[1]}] is {value}; "
            f"{int(bad.sum())} entries of this block NaN or infinite"
        )
    off = np.abs(below - above)
    bad = off > np.outer(row, col)
    if bad.any():
        i, j = np.unravel_index(np.argmax(np.where(bad, off, 0.0)), off.shape)
        gap = float(above[i, j] - below[i, j])
        p, q = int(j) + start[1], int(i) + start[0]
        if p > q:
            p, q, gap = q, p, -gap
        raise InputError(
            f"matrix is not symmetric: {what}[{p}, {q}] - {what}[{q}, {p}] = {gap:.2g}; "
            f"if that is rounding, pass ({what} + {what}.T) / 2"
        )


def ridge_of(ridge: ArrayLike, n: int) -> Float:
    """Return the ridge as an array of shape () or (n,).

    Raises
    ------
    InputError
        If it is negative, not finite, or of another length.
    """
    value = np.asarray(ridge, dtype=np.float64)
    if value.ndim > 1 or (value.ndim == 1 and len(value) != n):
        raise InputError(f"ridge has shape {value.shape}; expected one number, or one a row ({n},)")
    bad = ~(np.isfinite(value) & (value >= 0))
    if bad.any():
        raise InputError(
            f"ridge must be >= 0 (got {np.atleast_1d(value)[np.atleast_1d(bad)][0]:g})"
        )
    return value
