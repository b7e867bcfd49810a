"""``J (J^T V)`` for all leaves: vectors are shared among workers, tables are cut to fit memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from entk import _plan
from entk._blas_threads import blas_threads
from entk._errors import MemoryLimitError
from entk._jacobian import CHUNK, Use, uses_of
from entk._options import Memory
from entk._problem import Problem
from entk._reading import Directions, Float, Pace, Piece, Stopped, length

# Bytes of a table that are worth a share of their own.
_WORTH_SHARING = 1 << 18
# A table, what is added to it, and a turned copy.
_COPIES = 3


@dataclass(frozen=True, eq=False)
class LeafProduct:
    """One leaf: the uses of both sides, and the factor on its kernel."""

    rows: list[Use]
    cols: list[Use]
    factor: float

    @property
    def planes(self) -> int:
        """Kernels that are summed."""
        return self.rows[0].planes

    @property
    def groups(self) -> int:
        """Blocks of the table."""
        return self.rows[0].groups

    @property
    def height(self) -> int:
        """Rows of the table."""
        return self.rows[0].rows

    @property
    def width(self) -> int:
        """Columns of the table."""
        return self.rows[0].cols

    @property
    def uses(self) -> list[Use]:
        """The uses of both sides."""
        return self.rows + self.cols

    @property
    def empty(self) -> bool:
        """Whether it adds nothing."""
        return not (self.planes * self.groups * self.height * self.width)

    def turned(self) -> LeafProduct:
        """Return the same for the transposed kernel."""
        return LeafProduct(self.cols, self.rows, self.factor)

    def pieces(self, k: int, room: int, item: int) -> Iterator[Piece]:
        """Cut the table for `k` vectors into pieces of at most `room` bytes where that can be."""
        row = max(1, self.width * k * item)
        rows = _step(self.height, room // row)
        groups = _step(self.groups, room // (row * self.height)) if rows == self.height else 1
        whole = groups == self.groups and rows == self.height
        planes = _step(self.planes, room // (row * rows * groups)) if whole else 1
        for p in _slices(self.planes, planes):
            for g in _slices(self.groups, groups):
                for r in _slices(self.height, rows):
                    yield Piece(p, g, r)


def _step(length: int, step: int) -> int:
    return max(1, min(length, step))


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, length)) for i in range(0, length, step))


class Share(NamedTuple):
    """What one worker does: some vectors, every `turns`-th piece, within a limit in bytes."""

    vectors: slice
    turn: int
    turns: int
    limit: int


@dataclass(frozen=True, eq=False)
class Products:
    """A kernel as products with the Jacobians of its two sides."""

    leaves: list[LeafProduct]
    dtype: np.dtype[Any]
    sides: tuple[tuple[int, int], tuple[int, int]]
    memory: Memory
    threads: int

    @classmethod
    def of(cls, problem: Problem, accumulate: str, memory: Memory, threads: int) -> Products:
        """Bind the leaves of a checked problem."""
        dtype = np.dtype(accumulate)
        n, m = problem.examples
        rows = problem.factors.rows
        left = Directions.of(problem.outputs[0], n, rows, dtype)
        right = left
        if problem.other is not None:
            right = Directions.of(problem.outputs[1], m, rows, dtype)
        other = problem.other or problem.factors
        leaves = [
            LeafProduct(
                *uses_of(problem.factors[name], other[name], left, right),
                problem.weights[name] * problem.outputs[0].scale,
            )
            for name in problem.names
        ]
        sides = ((n, left.kept), (m, right.kept))
        return cls([leaf for leaf in leaves if not leaf.empty], dtype, sides, memory, threads)

    def turned(self) -> Products:
        """Return the products of the transposed kernel."""
        leaves = [leaf.turned() for leaf in self.leaves]
        return Products(leaves, self.dtype, self.sides[::-1], self.memory, self.threads)

    def apply(self, v: Float) -> Float:
        """Return ``K v`` for `v` (columns of the kernel, k) of any type.

        Raises
        ------
        MemoryLimitError
            If the vectors and the smallest pieces do not fit.
        """
        (n, r), (m, s) = self.sides
        k = v.shape[1]
        held = self.dtype.itemsize * n * r * k
        if v.dtype != self.dtype:
            held += self.dtype.itemsize * m * s * k
        shares = self._split(k, held)
        vectors = np.require(v, self.dtype, ["A"]).reshape(m, s, k)
        y = np.zeros((n, r, k), self.dtype)
        if not (k and n and m and self.leaves):
            return y.reshape(n * r, k)
        stop = threading.Event()

        def run(share: Share) -> Float | None:
            # The first of those with the same vectors adds to the result, the others to their own.
            own = y[:, :, share.vectors]
            if share.turn:
                own = np.zeros(own.shape, self.dtype)
            _run(self.leaves, vectors[:, :, share.vectors], own, share, stop)
            return own if share.turn else None

        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            parts = _on_workers(run, shares, self.threads, stop)
        for share, part in zip(shares, parts, strict=True):
            if part is not None:
                y[:, :, share.vectors] += part
        return y.reshape(n * r, k)

    def _split(self, k: int, held: int) -> list[Share]:
        """Share vectors among workers, and tables if there are few vectors."""
        least = max((_least(leaf) for leaf in self.leaves), default=0)
        left = self.memory.limit - held
        if left < least:
            raise MemoryLimitError(
                f"needs at least {_plan.in_bytes(held + least + 1023)} for a product with {k:,} "
                f"vectors; got {_plan.in_bytes(self.memory.limit)} ({self.memory.source}); "
                "multiply with fewer vectors at a time"
            )
        blocks = max(1, min(self.threads, k))
        turns = max(1, self.threads // blocks)
        (n, r), _ = self.sides
        own = self.dtype.itemsize * n * r
        while blocks * turns > 1 and (left - own * k * (turns - 1)) // (blocks * turns) < least:
            blocks, turns = (blocks, turns - 1) if turns > 1 else (blocks - 1, 1)
        limit = (left - own * k * (turns - 1)) // (blocks * turns)
        ends = [block * k // blocks for block in range(blocks + 1)]
        return [
            Share(slice(start, end), turn, turns, limit)
            for start, end in pairwise(ends)
            for turn in range(turns)
        ]


def _on_workers(
    run: Callable[[Share], Float | None],
    shares: list[Share],
    threads: int,
    stop: threading.Event,
) -> list[Float | None]:
    """Run the shares on threads of their own, each with one thread of BLAS."""
    if len(shares) > 1:
        with blas_threads(1) as held:
            if held:
                return _on_threads(run, shares, stop)
    with blas_threads(threads):
        return [run(share) for share in shares]


def _on_threads(
    run: Callable[[Share], Float | None], shares: list[Share], stop: threading.Event
) -> list[Float | None]:
    def quiet(share: Share) -> Float | None:
        # NumPy's treatment of overflow belongs to a thread.
        with np.errstate(over="ignore", invalid="ignore", under="ignore"), suppress(Stopped):
            return run(share)
        return None

    with ThreadPoolExecutor(len(shares)) as pool:
        try:
            return [future.result() for future in [pool.submit(quiet, s) for s in shares]]
        except BaseException:
            stop.set()
            raise


def _run(
    leaves: list[LeafProduct], v: Float, y: Float, share: Share, stop: threading.Event
) -> None:
    """Do the pieces of all leaves whose turn it is."""
    number = 0
    for leaf in leaves:
        widest = min(use.width(v.shape[2]) for use in leaf.uses)
        widest = _fitting(leaf, widest, share.limit, v.dtype.itemsize)
        for some in _slices(v.shape[2], widest):
            block = np.ascontiguousarray(v[:, :, some])
            room = max(share.limit - block.nbytes, 0) // 2
            for piece in leaf.pieces(block.shape[2], _table(leaf, block, room, share), v.itemsize):
                if number % share.turns == share.turn:
                    _piece(leaf, piece, block, y[:, :, some], room, stop)
                number += 1


def _table(leaf: LeafProduct, v: Float, room: int, share: Share) -> int:
    """Return the bytes that a piece of the table should have, so that all turns have some."""
    k, item = v.shape[2], v.itemsize
    most = max(use.room(k, room // _COPIES) for use in leaf.uses)
    whole = leaf.planes * leaf.groups * leaf.height * leaf.width * k * item
    return min(most, -(-whole // share.turns)) if whole > _WORTH_SHARING else most


def _fitting(leaf: LeafProduct, k: int, limit: int, item: int) -> int:
    """Return how many vectors at a time leave room for one row of a table and one example."""
    while k > 1 and _needs(leaf, k, item) > limit:
        k = -(-k // 2)
    return k


def _needs(leaf: LeafProduct, k: int, item: int = 8) -> int:
    """Return the bytes of the smallest piece, the vectors' copy and the smallest chunk."""
    piece = Piece(slice(0, 1), slice(0, 1), slice(0, 1))
    chunk = max(sum(use.bytes(piece, k)) for use in leaf.uses)
    vectors = max(use.n * use.kept for use in leaf.cols) * k * item
    return _COPIES * leaf.width * k * item + chunk + vectors


def _least(leaf: LeafProduct) -> int:
    return 2 * _needs(leaf, 1)


def _piece(
    leaf: LeafProduct, piece: Piece, v: Float, y: Float, room: int, stop: threading.Event
) -> None:
    """Add what one piece of a leaf's table contributes."""
    k = v.shape[2]
    whole = (leaf.planes, leaf.groups, leaf.height)
    shape = [length(part, all_) for part, all_ in zip(piece, whole, strict=True)]
    table = np.zeros((*shape, k, leaf.width), v.dtype)
    for use in leaf.cols:
        if use.n and use.positions:
            use.pull(piece, v, table, _chunk(use, piece, k, room, stop))
    if leaf.factor != 1.0:
        table *= leaf.factor
    for use in leaf.rows:
        if use.n and use.positions:
            use.push(piece, table, y, _chunk(use, piece, k, room, stop))


def _chunk(use: Use, piece: Piece, k: int, room: int, stop: threading.Event) -> Pace:
    """Return how many examples, and how many of their positions, to read at a time."""
    example, position = use.bytes(piece, k)
    whole = example + position * use.positions
    # Enough examples for a GEMM, even beyond the cache, but never beyond the room.
    aim = min(room, max(CHUNK, 128 * whole))
    if whole <= aim:
        return Pace(max(1, min(use.n, aim // max(whole, 1))), use.positions, stop)
    return Pace(1, max(1, min(use.positions, (aim - example) // max(position, 1))), stop)
