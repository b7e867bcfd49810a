"""Reading a stored kernel: any index, products, and export, a tile at a time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from entk import _paths
from entk._arrays import AnyArray
from entk._errors import InputError, StoreError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from entk._kernel import Kernel

# Rows of a tile that a product converts at a time, and entries: memory that stays in the caches.
_ROWS_AT_A_TIME, _ENTRIES_AT_A_TIME = 128, 1 << 20

Ints = np.ndarray[Any, np.dtype[np.intp]]


def read(kernel: Kernel, index: Any) -> Any:
    """Return ``numpy.asarray(kernel)[index]`` without reading all of it."""
    axes = _spread(index, kernel.ndim)
    arrays = [i for i, part in enumerate(axes) if isinstance(part, np.ndarray)]
    masks = any(isinstance(part, np.ndarray) and part.dtype == bool for part in axes)
    if masks:
        axes = [_positions(part, n) for part, n in zip(axes, kernel.shape, strict=True)]
    rows, cols = axes[-2:]
    if len(arrays) > 1 and isinstance(rows, np.ndarray) and isinstance(cols, np.ndarray):
        if kernel.ndim == 3 and isinstance(axes[0], np.ndarray):
            return _paired_planes(kernel, axes)
        return _paired(kernel, axes)
    # At most one of rows and columns is an array: read the block they span, then let NumPy index
    # it, so that its rules decide the axes of the result.
    return _orthogonal(kernel, axes)


def _spread(index: Any, ndim: int) -> list[Any]:
    """Return one integer, slice or array an axis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    parts = [_part(part) for part in parts]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    if any(isinstance(part, np.ndarray) and part.ndim > 1 and part.dtype == bool for part in parts):
        raise IndexError("masks of several axes are not supported; mask rows and columns apart")
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    given = len(parts) - len(dots)
    if given > ndim:
        raise IndexError(f"too many indices: the kernel has {ndim} axes, {given} were indexed")
    at = dots[0] if dots else len(parts)
    rest = parts[at + 1 :] if dots else []
    return [*parts[:at], *[slice(None)] * (ndim - given), *rest]


def _part(part: Any) -> Any:
    if part is Ellipsis or isinstance(part, slice):
        return part
    if part is None:
        raise IndexError("a kernel on disk gets no new axes; use numpy.asarray(kernel)")
    if isinstance(part, bool | np.bool_):
        raise IndexError("a single boolean is no index of a kernel")
    if isinstance(part, int | np.integer):
        return int(part)
    array = np.asarray(part)
    if array.size == 0 and array.dtype == float:
        array = array.astype(np.intp)
    if array.dtype.kind not in "iub":
        raise IndexError(f"indices are integers, slices or masks (got {array.dtype})")
    return array if array.ndim or array.dtype == bool else int(array)


def _positions(part: Any, length: int) -> Any:
    """Turn a mask into the integers it stands for."""
    if not (isinstance(part, np.ndarray) and part.dtype == bool):
        return part
    if part.shape != (length,):
        raise IndexError(f"a mask of {part.shape} does not fit an axis of {length}")
    return np.flatnonzero(part)


def _integers(part: Any, length: int, axis: int) -> Ints:
    """Return the entries of an axis that a part asks for, none of them negative."""
    if isinstance(part, slice):
        return np.arange(length)[part]
    if isinstance(part, np.ndarray) and part.dtype == bool:
        part = _positions(part, length)
    found = np.asarray(part, dtype=np.intp)
    if found.size and (found.min() < -length or found.max() >= length):
        wrong = int(found.min()) if found.min() < -length else int(found.max())
        raise IndexError(f"index {wrong} is out of bounds for axis {axis} with size {length}")
    return np.where(found < 0, found + length, found)


def _orthogonal(kernel: Kernel, axes: list[Any]) -> Any:
    needed = [
        _integers(part, length, axis)
        for axis, (part, length) in enumerate(zip(axes, kernel.shape, strict=True))
    ]
    planes = np.unique(needed[0]) if kernel.ndim == 3 else np.zeros(1, np.intp)
    rows, cols = np.unique(needed[-2]), np.unique(needed[-1])
    block = np.empty((len(planes), len(rows), len(cols)), kernel.dtype)
    for place, plane in enumerate(planes):
        _fill(kernel, int(plane), rows, cols, block[place])
    if kernel.ndim == 2:
        block = block[0]
    lists = ([planes] if kernel.ndim == 3 else []) + [rows, cols]
    local = [_local(part, want, have) for part, want, have in zip(axes, needed, lists, strict=True)]
    found = block[tuple(local)]
    return found if isinstance(found, np.generic) else np.ascontiguousarray(found)


def _local(part: Any, wanted: Ints, have: Ints) -> Any:
    """Return an index of the same kind into the block that was read."""
    at = np.searchsorted(have, wanted)
    if isinstance(part, slice):
        backwards = part.step is not None and part.step < 0
        return slice(None, None, -1) if backwards else slice(None)
    return int(at) if isinstance(part, int) else at


def _fill(kernel: Kernel, plane: int, rows: Ints, cols: Ints, out: AnyArray) -> None:
    """Read entries ``rows x cols`` (ascending, without repeats) into `out`."""
    for i, some in _by_tile(rows, kernel._layout.tile[0]):
        for j, others in _by_tile(cols, kernel._layout.tile[1]):
            out[some, others] = _part_of_tile(kernel, plane, i, j, rows[some], cols[others])


def _by_tile(values: Ints, side: int) -> Iterator[tuple[int, slice]]:
    """Yield tile numbers and which of the ascending `values` lie in each."""
    tiles = values // side
    for start, end in _runs(tiles):
        yield int(tiles[start]), slice(start, end)


def _part_of_tile(kernel: Kernel, plane: int, i: int, j: int, rows: Ints, cols: Ints) -> AnyArray:
    if kernel._symmetric and j > i:
        return _part_of_tile(kernel, plane, j, i, cols, rows).T
    spans = [(int(values[0]), int(values[-1]) + 1) for values in (rows, cols)]
    block = kernel._block(plane, kernel._index(i, j), *spans)
    if block.shape == (len(rows), len(cols)):
        return block
    return block[np.ix_(rows - spans[0][0], cols - spans[1][0])]


def _paired(kernel: Kernel, axes: list[Any]) -> AnyArray:
    """Index arrays on rows and columns are paired, as NumPy does."""
    rows, cols = np.broadcast_arrays(
        _integers(axes[-2], kernel.shape[-2], kernel.ndim - 2),
        _integers(axes[-1], kernel.shape[-1], kernel.ndim - 1),
    )
    if kernel.ndim == 2:
        return _pairs(kernel, 0, rows.ravel(), cols.ravel()).reshape(rows.shape)
    planes = _integers(axes[0], kernel.shape[0], 0)
    if isinstance(axes[0], slice):
        found = [_pairs(kernel, int(p), rows.ravel(), cols.ravel()) for p in planes]
        return np.reshape(found, (len(planes), *rows.shape)).astype(kernel.dtype, copy=False)
    return _pairs(kernel, int(planes), rows.ravel(), cols.ravel()).reshape(rows.shape)


def _paired_planes(kernel: Kernel, axes: list[Any]) -> AnyArray:
    planes, rows, cols = np.broadcast_arrays(
        *(_integers(part, kernel.shape[axis], axis) for axis, part in enumerate(axes))
    )
    found = np.empty(planes.shape, kernel.dtype)
    for plane in np.unique(planes):
        here = planes == plane
        found[here] = _pairs(kernel, int(plane), rows[here], cols[here])
    return found


def _pairs(kernel: Kernel, plane: int, rows: Ints, cols: Ints) -> AnyArray:
    """Read the entries ``(rows[k], cols[k])``, tile after tile."""
    found = np.empty(len(rows), kernel.dtype)
    height, width = kernel._layout.tile
    i, j = rows // height, cols // width
    down, order = i * (1 + int(j.max(initial=0))) + j, np.arange(len(rows))
    order = order[np.argsort(down, kind="stable")]
    for start, end in _runs(down[order]):
        here = order[start:end]
        some, others = np.unique(rows[here]), np.unique(cols[here])
        block = _part_of_tile(kernel, plane, int(i[here[0]]), int(j[here[0]]), some, others)
        at = np.searchsorted(some, rows[here]), np.searchsorted(others, cols[here])
        found[here] = block[at]
    return found


def _runs(values: Ints) -> Iterator[tuple[int, int]]:
    if not len(values):
        return
    edges = np.flatnonzero(np.r_[True, values[1:] != values[:-1], True])
    yield from zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)


def product(kernel: Kernel, v: ArrayLike, *, transposed: bool) -> AnyArray:
    """Multiply a stored kernel (or its transpose) with a vector or the columns of a matrix."""
    v = np.asarray(v)
    out_axis, in_axis = (-1, -2) if transposed else (-2, -1)
    if v.ndim not in (1, 2) or v.shape[0] != kernel.shape[in_axis]:
        raise InputError(
            f"the kernel {kernel.shape} cannot be multiplied with an array of shape {v.shape}"
        )
    result = np.result_type(kernel.dtype, v.dtype)
    wide = np.result_type(result, np.float64)
    columns = v.reshape(len(v), -1).astype(wide)
    length = kernel.shape[out_axis]
    total = np.zeros((kernel._planes, length, columns.shape[1]), wide)
    for index in range(len(kernel._layout)):
        _, _, i0, i1, j0, j1 = kernel._layout.unit(index)
        few = max(1, min(_ROWS_AT_A_TIME, _ENTRIES_AT_A_TIME // max(1, j1 - j0)))
        steps = itertools.pairwise([*range(i0, i1, few), i1])
        for plane, rows in itertools.product(range(kernel._planes), steps):
            block = kernel._block(plane, index, rows, (j0, j1)).astype(wide)
            to, of = ((j0, j1), rows) if transposed else (rows, (j0, j1))
            total[plane, slice(*to)] += (block.T if transposed else block) @ columns[slice(*of)]
            if kernel._symmetric and i0 != j0:
                total[plane, slice(*of)] += (block if transposed else block.T) @ columns[slice(*to)]
    shaped = total.reshape(kernel._planes, length, *v.shape[1:]).astype(result, copy=False)
    found: AnyArray = shaped if kernel.ndim == 3 else shaped[0]
    return found


def export(kernel: Kernel, path: str, *, overwrite: bool) -> None:
    """Write a whole kernel as a plain `.npy`, rows of tiles at a time."""
    if not path.endswith(".npy"):
        raise InputError(f"{path!r}: the name must end in .npy")
    if _paths.exists(path) and not overwrite:
        raise StoreError(f"{path} exists; pass overwrite=True")
    if not kernel.complete:
        raise InputError(f"{kernel!r} is unfinished; only a complete kernel is exported")
    _paths.check_parent(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "xb") as file:
            header = {"descr": kernel.dtype.newbyteorder("<").str, "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, header | {"shape": kernel.shape})
            for plane in range(kernel._planes):
                for rows in _strips(kernel):
                    strip = np.empty((len(rows), kernel.shape[-1]), kernel.dtype)
                    _fill(kernel, plane, rows, np.arange(kernel.shape[-1]), strip)
                    file.write(strip.astype(strip.dtype.newbyteorder("<"), copy=False).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _paths.sync_dir(os.path.dirname(path) or ".")
    except OSError as error:
        raise StoreError(error.errno, error.strerror, path) from error
    finally:
        if _paths.exists(temporary):
            os.unlink(temporary)


def _strips(kernel: Kernel) -> Iterator[Ints]:
    """Yield the rows of the kernel so that a strip of them is about a tile."""
    height, width = kernel._layout.tile
    across = max(1, -(-kernel.shape[-1] // width))
    step = max(1, height // across)
    for top in range(0, kernel.shape[-2], height):
        bottom = min(top + height, kernel.shape[-2])
        for start in range(top, bottom, step):
            yield np.arange(start, min(start + step, bottom))
