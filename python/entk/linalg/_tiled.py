"""Left-looking Cholesky factorisation by tiles, for factors larger than memory.

For each block column J, top to bottom:

    L[J, J]  = chol(K[J, J] + ridge - sum_k L[J, k] L[J, k]^T)
    L[I, J]  = (K[I, J] - sum_k L[I, k] L[J, k]^T) L[J, J]^-T        for I below J

Each entry is written once and in place, so a stop leaves nothing half updated; the rows L[J, :J]
are held while their column is computed (left-looking reads half of what right-looking does, and
writes n^2 / 2 entries instead of n^3 / (3 b)).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from entk._dense import Float, Matrix
from entk._errors import InputError, MemoryLimitError, StoreError, StoreSpaceError
from entk._options import memory_limit
from entk._plan import in_bytes
from entk.linalg import _pivots

SMALLEST = 16  # rows of a tile below which the work is all overhead
LARGEST = 4096
VECTORS = 12  # diagonal, ridge, bounds: of length n


def side(n: int, memory: int | str | None) -> int:
    """Return the largest tile side b with ``8 (n b + 4 b^2)`` bytes inside the limit.

    Raises
    ------
    MemoryLimitError
        Naming the smallest limit that would do.
    """
    limit = memory_limit(memory).limit
    room = limit - VECTORS * 8 * n
    least = min(SMALLEST, n)
    b = int((np.sqrt(float(n) ** 2 + 3.0 * max(room, 0)) - n) / 12)
    if b < least:
        need = 8 * (n * (least + 1) + 6 * (least + 1) ** 2 + VECTORS * n)
        raise MemoryLimitError(
            f"a factorisation of {n} rows by tiles needs at least {in_bytes(need)} "
            f"({need} bytes); got {in_bytes(limit)}"
        )
    return max(1, min(b, LARGEST, n))


def factor(matrix: Matrix, ridge: Float, target: Float, memory: int | str | None) -> None:
    """Write the factor of ``K + ridge I`` into `target`, zeros above the diagonal."""
    n = matrix.n
    if n == 0:
        return
    b = side(n, memory)
    shift = np.broadcast_to(ridge, (n,))
    tiles = [slice(i, min(i + b, n)) for i in range(0, n, b)]
    for column, cols in enumerate(tiles):
        done = np.array(target[cols, : cols.start])
        corner = _corner(matrix, shift, target, done, cols)
        _pivots.check_pivots(matrix, ridge, np.diagonal(corner), first=cols.start)
        for rows in tiles[column + 1 :]:
            _below(matrix, target, done, corner, rows, cols)
        del done  # before the next rows are read: both at once would be twice the memory


def _corner(matrix: Matrix, shift: Float, target: Float, done: Float, cols: slice) -> Float:
    from scipy.linalg.lapack import dpotrf

    tile = matrix.block(cols, cols)
    tile[np.diag_indices(len(tile))] += shift[cols]
    tile -= done @ done.T
    root, info = dpotrf(tile, lower=1, clean=1)
    if info > 0:
        row = cols.start + int(info) - 1
        _pivots.check_pivots(matrix, shift, np.diagonal(root), row, cols.start)
    target[cols, cols] = root
    return np.asarray(root, dtype=np.float64)


def _below(
    matrix: Matrix, target: Float, done: Float, corner: Float, rows: slice, cols: slice
) -> None:
    from scipy.linalg import solve_triangular

    tile = matrix.block(rows, cols)
    depth = cols.stop - cols.start
    for k in range(0, cols.start, depth):
        deep = slice(k, min(k + depth, cols.start))
        tile -= target[rows, deep] @ done[:, deep].T
    target[rows, cols] = solve_triangular(corner, tile.T, lower=True, check_finite=False).T
    target[cols, rows] = 0.0


@contextmanager
def finished_file(path: Path, n: int) -> Iterator[Float]:
    """Yield a mapped float64 ``.npy`` file under a partial name; rename it when all went well.

    The space is allocated first, so a full disk is an error here and not a signal later.

    Raises
    ------
    InputError
        If the path does not end in ``.npy``.
    StoreError
        If the file, or a partial one, exists.
    StoreSpaceError
        If the disk is too small.
    """
    partial = path.with_name(path.name + ".partial")
    if path.suffix != ".npy":
        raise InputError(f"out={str(path)!r}: the factor is written as .npy")
    for there in (path, partial):
        if there.exists():
            raise StoreError(f"{there} exists; remove it or choose another name")
    try:
        mapped = _create(partial, n)
        yield mapped
        if isinstance(mapped, np.memmap):
            mapped.flush()
        del mapped
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _create(path: Path, n: int) -> Float:
    if n == 0:  # an empty file cannot be mapped
        with path.open("wb") as file:
            np.save(file, np.empty((0, 0)), allow_pickle=False)
        return np.empty((0, 0))
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(n, n))
    _allocate(path)
    return mapped


def _allocate(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return  # a file system without fallocate: the map will do what it can
            raise StoreSpaceError(
                f"no space left for {path.name} (needs {in_bytes(size)})"
            ) from error
