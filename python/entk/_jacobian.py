"""Products with the Jacobian of one leaf, piece by piece: nothing of size N x P is formed.

The table of a leaf (its gradient's shape, for k vectors at once) is ``(planes, groups, rows, k,
columns)``; planes are the outputs of ``"trace"``, each a kernel of its own. A use of a leaf adds to
it what its examples pull back, ``J^T V``, and reads from it what they push forward, ``J U``:

    scaled:    T += left^T (v * right)              one GEMM a chunk, k vectors wide
    expanded:  J_n = left_n^T right_n;  T += J^T V  cheaper with several positions or outputs
    looked up: T[id] += v * row                     a sparse sum over the rows that are touched
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from entk._leaves import Dense, Leaf, Lookup, Outer, Tied
from entk._reading import ALL, Directions, Float, Pace, Piece, Span, contiguous, length

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

# Bytes of a chunk: in cache, and below where the allocator hands pages back to the system.
CHUNK = 1 << 22
# Bytes of a table that is added to by every chunk.
_TABLE = 1 << 24
# Columns of a scaled chunk: enough for a GEMM, little enough for the cache.
_WIDTH = 2048
# Elements of an expanded example's slice, so that a chunk of the cache's size holds many examples.
_SLICE = 8192


class Use:
    """One use of a leaf's table by the examples of one side.

    Attributes
    ----------
    n, planes, groups, rows, cols : int
        Examples, and the shape of the table.
    kept, read : int
        Output rows of an example in a vector, and those that are read for it.
    """

    def __init__(self, directions: Directions, n: int) -> None:
        self.directions, self.n = directions, n
        self.planes, self.kept = directions.planes, directions.kept
        self.read = directions.rows if directions.weights is not None else self.kept
        self.groups, self.positions, self.rows, self.cols = 1, 1, 0, 0

    def width(self, k: int) -> int:
        """Return how many of `k` vectors to take at a time."""
        return k

    def room(self, k: int, most: int) -> int:
        """Return the bytes that a piece of the table should have, `most` at the most."""
        return min(most, _SLICE * k * self.directions.dtype.itemsize)

    def bytes(self, piece: Piece, k: int) -> tuple[int, int]:
        """Return the bytes that one example takes, and those of each of its positions."""
        raise NotImplementedError

    def pull(self, piece: Piece, v: Float, table: Float, pace: Pace) -> None:
        """Add ``J^T v`` to the piece `table`; `v` is (N, r, k)."""
        raise NotImplementedError

    def push(self, piece: Piece, table: Float, y: Float, pace: Pace) -> None:
        """Add ``J table`` to `y` (N, r, k)."""
        raise NotImplementedError


class _Expanded(Use):
    """A use whose Jacobian is formed for a few examples at a time."""

    def tables(self, piece: Piece, examples: slice, pace: Pace) -> Float:
        """Return the Jacobian ``(planes, g, n, r, rows, cols)``."""
        raise NotImplementedError

    def pull(self, piece: Piece, v: Float, table: Float, pace: Pace) -> None:
        planes, groups, rows, k, cols = table.shape
        total = np.zeros((planes, groups, rows * cols, k), table.dtype)
        for some in pace.slices(self.n):
            jac = self.tables(piece, some, pace)
            vectors = np.ascontiguousarray(v[some]).reshape(-1, k)
            total += jac.reshape(planes, groups, -1, rows * cols).swapaxes(2, 3) @ vectors
        table += total.reshape(planes, groups, rows, cols, k).swapaxes(3, 4)

    def push(self, piece: Piece, table: Float, y: Float, pace: Pace) -> None:
        planes, groups, rows, k, cols = table.shape
        turned = contiguous(table.swapaxes(3, 4)).reshape(planes, groups, rows * cols, k)
        for some in pace.slices(self.n):
            jac = self.tables(piece, some, pace)
            got = jac.reshape(planes, groups, -1, rows * cols) @ turned
            y[some] += got.sum(axis=(0, 1)).reshape(y[some].shape)


class DenseUse(_Expanded):
    """A Jacobian that is there; the table has one column."""

    def __init__(self, leaf: Dense, directions: Directions) -> None:
        super().__init__(directions, leaf._n)
        self.jac = leaf._jac.view(leaf._jac.array[:, :, None, None])
        self.rows, self.cols = self.jac.shape[4], 1

    def bytes(self, piece: Piece, k: int) -> tuple[int, int]:
        rows, planes = length(piece.rows, self.rows), length(piece.planes, self.planes)
        return 8 * (3 * rows * planes * self.read + 3 * self.kept * k), 0

    def tables(self, piece: Piece, examples: slice, pace: Pace) -> Float:
        jac = self.directions.cots(self.jac, Span(examples, ALL), piece, piece.rows)
        return jac.swapaxes(4, 5)


class OuterUse(Use):
    """A use as a matrix: the table is a sum of outer products of `left` and `right` rows."""

    def __init__(self, leaf: Outer, directions: Directions) -> None:
        super().__init__(directions, leaf._n)
        self.leaf = leaf
        (_, self.groups, self.positions, d_in), d_out = leaf._acts.shape, leaf._cots.shape[4]
        self.rows, self.cols = (d_out, d_in) if leaf.transposed else (d_in, d_out)
        # Output gradients carry the outputs; of two plain sides the narrower one is scaled.
        carried = leaf.transposed if self.kept > 1 else self.rows < self.cols
        self.scales_left = carried
        self.scaled = self.rows if carried else self.cols

    def expands(self, k: int) -> bool:
        """Return whether forming each example's table first takes fewer operations."""
        table = self.rows * self.cols
        formed = self.kept * table * (self.positions + k)
        return formed < self.positions * k * (table + self.kept * self.scaled)

    def width(self, k: int) -> int:
        return k if self.expands(k) else min(k, max(1, _WIDTH // max(self.scaled, 1)))

    def room(self, k: int, most: int) -> int:
        return super().room(k, most) if self.expands(k) else min(most, _TABLE)

    def bytes(self, piece: Piece, k: int) -> tuple[int, int]:
        tables = length(piece.planes, self.planes) * length(piece.groups, self.groups)
        rows = length(piece.rows, self.rows)
        vectors = 3 * self.kept * k * (1 + tables)
        plain = 2 * (rows + self.cols) * tables * self.read
        if self.expands(k):
            return 8 * (3 * self.kept * rows * self.cols * tables + vectors), 8 * plain
        work = 2 * k * (rows if self.scales_left else self.cols) * tables
        return 8 * vectors, 8 * (plain + work + self.kept * k * tables)

    def sides(self, piece: Piece, span: Span) -> tuple[Float, Float]:
        """Return ``left (planes, g, n, r, t, rows)`` and ``right (planes, g, n, r, t, cols)``."""
        directions, leaf = self.directions, self.leaf
        if leaf.transposed:
            left = directions.cots(leaf._cots, span, piece, piece.rows)
            return left, directions.acts(leaf._acts, span, piece.groups, ALL)
        left = directions.acts(leaf._acts, span, piece.groups, piece.rows)
        return left, directions.cots(leaf._cots, span, piece, ALL)

    def pull(self, piece: Piece, v: Float, table: Float, pace: Pace) -> None:
        if self.expands(v.shape[2]):
            return _ExpandedOuter(self).pull(piece, v, table, pace)
        for span in pace.all(self.n, self.positions):
            left, right = self.sides(piece, span)
            vectors = v[span.examples]
            if self.scales_left:
                product = _flat(_scale_last(left, vectors)).swapaxes(2, 3) @ _flat(
                    right[:, :, :, 0]
                )
            else:
                product = _flat(left[:, :, :, 0]).swapaxes(2, 3) @ _flat(_scale(right, vectors))
            table += product.reshape(table.shape)

    def push(self, piece: Piece, table: Float, y: Float, pace: Pace) -> None:
        planes, groups, rows, k, cols = table.shape
        if self.expands(k):
            return _ExpandedOuter(self).push(piece, table, y, pace)
        for span in pace.all(self.n, self.positions):
            left, right = self.sides(piece, span)
            n, t = left.shape[2], left.shape[4]
            if self.scales_left:
                turned = table.reshape(planes, groups, rows * k, cols).swapaxes(2, 3)
                met = (_flat(right[:, :, :, 0]) @ turned).reshape(planes, groups, n, t, rows, k)
                got = (left.swapaxes(3, 4) @ met).sum(axis=(0, 1, 3))
            else:
                wide = table.reshape(planes, groups, rows, k * cols)
                met = (_flat(left[:, :, :, 0]) @ wide).reshape(planes, groups, n, t, k, cols)
                got = _met(met, right).sum(axis=(0, 1, 3)).swapaxes(1, 2)
            y[span.examples] += got


class _ExpandedOuter(_Expanded):
    def __init__(self, use: OuterUse) -> None:
        super().__init__(use.directions, use.n)
        self.use = use

    def tables(self, piece: Piece, examples: slice, pace: Pace) -> Float:
        total: Float | None = None
        for span in pace.spans(examples, self.use.positions):
            left, right = self.use.sides(piece, span)
            part = left.swapaxes(4, 5) @ right
            total = part if total is None else total + part
        assert total is not None, "a leaf without positions is dropped before"
        return total


def _flat(x: Float) -> Float:
    """Join examples and positions ``(planes, g, n, t, ...)`` and what follows them."""
    planes, groups, n, t = x.shape[:4]
    return x.reshape(planes, groups, n * t, int(np.prod(x.shape[4:])))


def _scale(x: Float, v: Float) -> Float:
    """Return ``sum_r v[n, r, k] x[.., n, r, t, d]`` as ``(planes, g, n, t, k, d)``."""
    if x.shape[3] == 1:
        return x[:, :, :, 0, :, None, :] * v[:, 0, None, :, None]
    return v.swapaxes(1, 2)[:, None] @ x.swapaxes(3, 4)


def _scale_last(x: Float, v: Float) -> Float:
    """Return the same as ``(planes, g, n, t, d, k)``."""
    if x.shape[3] == 1:
        return x[:, :, :, 0, :, :, None] * v[:, 0, None, None, :]
    return x.swapaxes(3, 4).swapaxes(4, 5) @ v[:, None]


def _met(z: Float, x: Float) -> Float:
    """Return ``sum_d z[.., n, t, k, d] x[.., n, r, t, d]`` as ``(planes, g, n, t, k, r)``."""
    if x.shape[3] == 1:
        met: Float = np.vecdot(z, x[:, :, :, 0, :, None])
        return met[..., None]
    return z @ x.swapaxes(3, 4).swapaxes(4, 5)


class LookupUse(Use):
    """A use by row numbers. `known` lists the ids that are rows of the table; None: all are."""

    def __init__(
        self, leaf: Lookup, directions: Directions, known: Ids | None, height: int
    ) -> None:
        super().__init__(directions, leaf._n)
        self.ids, self.known = leaf._ids.array, known
        self.cots = leaf._cots.view(leaf._cots.array[:, :, None])
        self.positions, self.rows, self.cols = self.ids.shape[1], height, self.cots.shape[4]

    def room(self, k: int, most: int) -> int:
        return most

    def bytes(self, piece: Piece, k: int) -> tuple[int, int]:
        planes, vectors = length(piece.planes, self.planes), self.kept * k
        each = planes * (self.cols * (3 * self.read + 3 * k) + vectors) + 2 * vectors + 8
        return 8 * vectors, 8 * each

    def hits(self, piece: Piece, span: Span) -> tuple[Ids, Ids]:
        """Return which positions ``n * t`` meet the piece, and at which of its rows."""
        ids = self.ids[span]
        meets = (ids >= 0).ravel()
        rows = ids.astype(np.int64).ravel()
        if self.known is not None:
            place = np.searchsorted(self.known, rows)
            meets &= self.known[np.minimum(place, len(self.known) - 1)] == rows
            rows = place
        low, high, _ = piece.rows.indices(self.rows)
        meets &= (rows >= low) & (rows < high)
        at = np.flatnonzero(meets)
        return at, rows[at] - low

    def met(self, piece: Piece, span: Span, at: Ids) -> Float:
        """Return the rows ``(planes, hit, r, d)`` of the output gradients at the hits."""
        cots = self.directions.cots(self.cots, span, piece, ALL)[:, 0].swapaxes(2, 3)
        planes, n, t, r, d = cots.shape
        return cots.reshape(planes, n * t, r, d)[:, at]

    def pull(self, piece: Piece, v: Float, table: Float, pace: Pace) -> None:
        for span in pace.all(self.n, self.positions):
            at, rows = self.hits(piece, span)
            if not at.size:
                continue
            some = v[span.examples]
            each = some[at // length(span.positions, self.positions)].swapaxes(1, 2)
            scaled = each @ self.met(piece, span, at)
            touched, group = np.unique(rows, return_inverse=True)
            for plane, values in zip(table[:, 0], scaled, strict=True):
                sums = _sum_rows(values.reshape(len(at), -1), group, len(touched))
                plane[touched] += sums.reshape(len(touched), *plane.shape[1:])

    def push(self, piece: Piece, table: Float, y: Float, pace: Pace) -> None:
        for span in pace.all(self.n, self.positions):
            at, rows = self.hits(piece, span)
            if not at.size:
                continue
            got = self.met(piece, span, at) @ table[:, 0, rows].swapaxes(2, 3)
            example = at // length(span.positions, self.positions)
            target = y[span.examples]
            sums = _sum_rows(got.sum(axis=0).reshape(len(at), -1), example, len(target))
            target += sums.reshape(target.shape)


def _sum_rows(values: Float, group: Ids, count: int) -> Float:
    """Return the sum of the rows of each group."""
    from scipy.sparse import csc_array

    ones = np.ones(len(group), values.dtype)
    ends = np.arange(len(group) + 1)
    summed: Float = csc_array((ones, group, ends), shape=(count, len(group))) @ values
    return summed


def uses_of(
    leaf: Leaf, other: Leaf, left: Directions, right: Directions
) -> tuple[list[Use], list[Use]]:
    """Return the uses of one leaf on the row side and on the column side."""
    known = _common_ids(leaf, other)

    def side(leaf: Leaf, directions: Directions) -> list[Use]:
        if isinstance(leaf, Dense):
            return [DenseUse(leaf, directions)]
        made: list[Use] = []
        for use in leaf._uses if isinstance(leaf, Tied) else (leaf,):
            if isinstance(use, Outer):
                made.append(OuterUse(use, directions))
            else:
                height = _height(leaf) if known is None else len(known)
                made.append(LookupUse(use, directions, known, height))
        return made

    rows = side(leaf, left)
    return rows, rows if leaf is other and left is right else side(other, right)


def _height(leaf: Leaf) -> int:
    """Return the rows of a table that is also used as a matrix."""
    assert isinstance(leaf, Tied), "only tied leaves have look-ups and a table"
    return next(use._table[0] for use in leaf._uses if isinstance(use, Outer)) or 0


def _common_ids(leaf: Leaf, other: Leaf) -> Ids | None:
    """Return the ids that both sides look up, ascending; None if the table's height is known."""
    if isinstance(leaf, Dense | Outer):
        return None
    if isinstance(leaf, Tied) and any(isinstance(use, Outer) for use in leaf._uses):
        return None
    mine = _ids(leaf)
    return mine if leaf is other else np.intersect1d(mine, _ids(other), assume_unique=True)


def _ids(leaf: Leaf) -> Ids:
    found = np.empty(0, np.int64)
    for use in leaf._uses if isinstance(leaf, Tied) else (leaf,):
        assert isinstance(use, Lookup), "checked by the caller"
        ids = use._ids.array
        step = max(1, (1 << 20) // max(1, ids.shape[1]))
        for first in range(0, len(ids), step):
            some = ids[first : first + step]
            found = np.union1d(found, some[some >= 0].astype(np.int64))
    return found
