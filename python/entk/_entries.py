"""Products with a kernel by its entries: a tile is computed, multiplied and forgotten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from entk._arrays import AnyArray
from entk._errors import MemoryLimitError
from entk._factors import Factors
from entk._job import Job
from entk._leaves import Dense
from entk._outputs import resolve_pair
from entk._plan import Tiles
from entk._problem import Cut, Problem

# Rows of the kernel in a tile: the most, and the fewest that make use of the factors they read.
MOST, FEWEST = 2048, 256


def add_product(job: Job, v: AnyArray, y: AnyArray, limit: int) -> None:
    """Add ``K v`` to `y`, within `limit` bytes. Entries of a symmetric kernel are computed once.

    The size of the tiles depends on the limit and the shapes alone, never on threads.

    Raises
    ------
    MemoryLimitError
        If no tile of a useful size fits; `y` may have changed.
    """
    problem = job.problem
    block, (n, m) = problem.block, problem.examples
    symmetric = problem.other is None
    side = _side(max(n, m) * block, v.shape[1] * v.itemsize, v.itemsize, limit) // block
    if side == 0:
        raise MemoryLimitError("no tile of the kernel fits")
    room = np.empty((side * block) ** 2, v.dtype)
    product = np.empty((side * block, v.shape[1]), v.dtype)
    limit -= room.nbytes + product.nbytes
    for i0, i1, j0, j1 in Tiles(n, m, side, symmetric):
        on_diagonal = symmetric and i0 == j0
        cut = ("square", [i0, i1]) if on_diagonal else ("rectangle", [i0, i1, j0, j1])
        rows, cols = slice(i0 * block, i1 * block), slice(j0 * block, j1 * block)
        shape = ((i1 - i0) * block, (j1 - j0) * block)
        tile = room[: shape[0] * shape[1]].reshape(shape)
        # An infinity that comes up here makes the product infinite or NaN, which is looked for.
        _compute(job, cut, tile, limit)
        _add(job, tile, v[cols], y[rows], product, limit)
        if symmetric and not on_diagonal:
            _add(job, tile.T, v[rows], y[cols], product, limit)


def _add(job: Job, tile: AnyArray, v: AnyArray, y: AnyArray, product: AnyArray, limit: int) -> None:
    """Add ``tile v`` to `y`: the kernel of dense leaves, so that it has the same bits anywhere."""
    rows, cols = Factors({"tile": Dense(tile)}), Factors({"tile": Dense(v.T)})
    problem = Problem(rows, cols, resolve_pair(rows, cols, None), {"tile": 1.0})
    found = product[: len(tile)]
    cut = ("rectangle", [0, len(tile), 0, v.shape[1]])
    _compute(replace(job, problem=problem), cut, found, limit)
    y += found


def _compute(job: Job, cut: Cut, out: AnyArray, limit: int) -> None:
    """Compute a cut with as many of the job's threads as fit: what fits one thread fits any job."""
    threads = job.threads
    while True:
        try:
            replace(job, threads=threads).compute(cut, out, limit=limit)
        except MemoryLimitError:
            if threads == 1:
                raise
            threads //= 2
        else:
            return


def _side(rows: int, row_bytes: int, item: int, limit: int) -> int:
    """Return rows of a tile which takes half of the limit or less; 0 if they would be too few."""
    side = min(rows, MOST)
    while side * (side * item + row_bytes) > limit // 2:
        if side <= FEWEST:
            return 0
        side = max(side // 2, FEWEST)
    return side
