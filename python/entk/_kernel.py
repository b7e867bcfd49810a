"""`Kernel`: a kernel on disk, read tile by tile, every tile checked before it is used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from entk import _core, _gather, _options, _paths
from entk._arrays import AnyArray
from entk._errors import InputError, StoreCorruptError, StoreError, StoreIncompleteError
from entk._kernel_files import find
from entk._plan import Tile

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike


# Threads of `Kernel.verify`: more do not read faster, and each holds a tile.
_VERIFIERS = 4


@dataclass(frozen=True)
class VerifyReport:
    """What `Kernel.verify` looked at. All of it was sound, or it would have raised.

    Attributes
    ----------
    checked : int
        Tiles whose bytes were compared with their checksums.
    total : int
        Tiles of the kernel.
    """

    checked: int
    total: int

    def __str__(self) -> str:
        return f"{self.checked:,} of {self.total:,} tiles verified, all sound"


class Kernel:
    """A kernel on disk.

    `entk.open` and ``entk.assemble(out=path)`` return one. It behaves as a read-only array:
    ``np.asarray(k)``, ``k[rows, cols]``, ``k @ v``. Only what is asked for is read, and a tile is
    compared with its checksum before its first use. Where a symmetric kernel keeps only its lower
    half, the other one is mirrored. Opening runs no code from the store.

    Parameters
    ----------
    path : str or path
        A store that `entk.assemble` wrote, or a ``.npy`` with a floating-point matrix.
    partial : bool, default False
        Also accept an unfinished kernel, under its final name or its present one. Entries that
        are not there yet read as NaN.

    Raises
    ------
    StoreIncompleteError
        If it is unfinished, or chunks are missing.
    StoreFormatError, StoreCorruptError
        If it is not what it says to be.

    Notes
    -----
    **Memory.** A tile or two, besides what is returned. **Threads.** May be read from several at
    a time, and in forked children.

    Examples
    --------
    >>> import numpy as np, entk, tempfile, os
    >>> F = entk.Factors({"w": entk.Dense(np.arange(6.0).reshape(3, 2))})
    >>> folder = tempfile.TemporaryDirectory()
    >>> with entk.assemble(F, out=os.path.join(folder.name, "K.npy")) as k:
    ...     k.shape, k.complete, k[2, :], k @ np.ones(3)
    ((3, 3), True, array([ 5., 23., 41.]), array([ 9., 39., 69.]))
    >>> folder.cleanup()
    """

    # So that ``array @ kernel`` asks the kernel and does not read it first.
    __array_priority__ = 1000

    def __init__(self, path: str | os.PathLike[str], *, partial: bool = False) -> None:
        self.path = _paths.clean_name(path)
        source = find(self.path, partial=partial)
        self._info = source.manifest
        self._layout = source.layout
        self._reader: _core.TileReader | None = source.reader
        self._plain = source.plain
        self._checked: set[int] = set()
        self._done = np.frombuffer(source.reader.done(), np.uint8) != 0
        complete = bool(self._info["complete"]) and not source.unfinished
        if complete and not self._done.all():
            index = int(np.flatnonzero(~self._done)[0])
            source.reader.check(index, mirror=True)  # names the chunk
            raise StoreIncompleteError(f"{self.path}: tile {self._place(index)} is missing")
        self._complete = complete

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes: (N, M), or (O, N, M) for ``outputs="diagonal"``."""
        return tuple(self._info["shape"])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        dtype: np.dtype[Any] = np.dtype(self._info["dtype"])
        return dtype

    @property
    def tile(self) -> int:
        """Side of a tile in rows of the kernel."""
        return int(self._info["tile"])

    @property
    def complete(self) -> bool:
        """Whether all tiles are there and the store has its final name."""
        return self._complete

    @property
    def info(self) -> dict[str, Any]:
        """The manifest: outputs, normalisation, accumulate, engine, fingerprints, versions."""
        return {key: value for key, value in self._info.items() if key != "crc32c"}

    @property
    def tiles_done(self) -> int:
        """Number of tile positions that are there."""
        return int(self._done.sum())

    @property
    def tiles_total(self) -> int:
        """Number of tile positions; of a symmetric kernel those of its lower half."""
        return len(self._layout)

    @property
    def done(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which tile positions are there, in the order of `tiles`."""
        done: np.ndarray[Any, np.dtype[np.bool_]] = self._done.copy()
        return done

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        shape = " x ".join(f"{length:,}" for length in self.shape)
        state = "" if self.complete else f", {self.tiles_done} of {self.tiles_total} tiles"
        return f"Kernel({self.path!r}: {shape} {self.dtype}{state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Reading afterwards is an error."""
        self._reader = None

    def __array__(
        self,
        dtype: DTypeLike | None = None,
        copy: bool | None = None,  # noqa: FBT001
    ) -> AnyArray:
        if copy is False:
            raise ValueError("a kernel on disk cannot be an array without a copy")
        found: AnyArray = self[...]
        return found if dtype is None else found.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> Any:
        """Read entries, with NumPy's meaning of integers, slices, masks and index arrays."""
        return _gather.read(self, index)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __matmul__(self, v: ArrayLike) -> AnyArray:
        """Multiply with a vector or matrix; sums in float64, a few rows of a tile at a time."""
        return _gather.product(self, v, transposed=False)

    def __rmatmul__(self, v: ArrayLike) -> AnyArray:
        return (
            np.swapaxes(_gather.product(self, np.asarray(v).T, transposed=True), -1, -2)
            if (np.ndim(v) > 1)
            else _gather.product(self, v, transposed=True)
        )

    def diagonal(self) -> AnyArray:
        """Return the diagonal: (N,), or (O, N) for kernels of three axes."""
        steps = np.arange(min(self.shape[-2:]))
        found: AnyArray = self[..., steps, steps]
        return found

    def tiles(self) -> Iterator[tuple[Tile, AnyArray]]:
        """Yield the tiles that are there: which rows and columns, and the entries.

        Of a symmetric kernel those of the lower half (and the diagonal), row by row.
        """
        for index in np.flatnonzero(self._done):
            _, _, i0, i1, j0, j1 = self._layout.unit(int(index))
            yield Tile(i0, i1, j0, j1), self._unit(int(index))

    def verify(self, tiles: str | int | Iterable[tuple[int, int]] = "all") -> VerifyReport:
        """Read tiles back and compare them with their checksums, both halves.

        Parameters
        ----------
        tiles : "all", int, or iterable of (i, j)
            All, that many at random, or these positions in the grid of tiles.

        Returns
        -------
        VerifyReport
            How many were compared.

        Raises
        ------
        StoreCorruptError
            Naming all bad tiles (attribute `tiles`: their positions).
        StoreIncompleteError
            If tiles are missing, or a plain ``.npy`` has no checksums.

        Notes
        -----
        **Memory.** A tile for each of up to four threads. **Cost.** Every byte is read once.
        """
        if self._plain is not None:
            raise StoreIncompleteError(
                f"{self.path} has no checksums ({_paths.side(self.path)} is missing)"
            )
        chosen = self._chosen(tiles)
        reader = self._open

        def look(index: int) -> StoreError | None:
            try:
                reader.check(index, mirror=True)
            except (StoreCorruptError, StoreIncompleteError) as error:
                return error
            return None

        count = min(_options.thread_count(None), _VERIFIERS)
        with ThreadPoolExecutor(count, thread_name_prefix="entk-verify") as pool:
            try:
                found = list(pool.map(look, chosen))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        bad = [(self._place(i), error) for i, error in zip(chosen, found, strict=True) if error]
        if bad:
            raise _summary(self.path, bad)
        return VerifyReport(len(chosen), len(self._layout))

    def to_npy(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the whole kernel, both halves, as a plain ``.npy`` without checksums.

        The file appears in one step. Raises `StoreError` if it exists, unless `overwrite`.
        """
        _gather.export(self, _paths.clean_name(path), overwrite=overwrite)

    @property
    def _open(self) -> _core.TileReader:
        if self._reader is None:
            raise ValueError(f"{self.path} is closed")
        return self._reader

    @property
    def _symmetric(self) -> bool:
        return bool(self._info["symmetric"])

    def _place(self, index: int) -> tuple[int, int]:
        i, j, *_ = self._layout.unit(index)
        return i, j

    def _index(self, i: int, j: int) -> int:
        """Return the number of the stored unit at a position; of a mirrored one its source."""
        if self._symmetric:
            i, j = max(i, j), min(i, j)
            return i * (i + 1) // 2 + j
        return i * -(-self.shape[-1] // self._layout.tile[1]) + j

    def _chosen(self, tiles: str | int | Iterable[tuple[int, int]]) -> list[int]:
        total = len(self._layout)
        if isinstance(tiles, str) and tiles.isdecimal():
            tiles = int(tiles)
        if tiles == "all":
            return list(range(total))
        if isinstance(tiles, int):
            count = min(tiles, total)
            chosen = np.random.default_rng().choice(total, count, replace=False)
            return sorted(int(index) for index in chosen)
        if isinstance(tiles, str):
            raise InputError(f"tiles must be 'all', a number or positions (got {tiles!r})")
        indices = [self._index(int(i), int(j)) for i, j in tiles]
        if any(not 0 <= index < total for index in indices):
            raise InputError(f"tiles: a position outside the grid of {total} tiles")
        return indices

    def _check(self, index: int) -> bool:
        """Compare a unit with its checksum before its first use; False if it is not there yet."""
        if not self._done[index]:
            return False
        if index not in self._checked and self._plain is None:
            self._open.check(index, mirror=False)
            self._checked.add(index)
        return True

    def _unit(self, index: int) -> AnyArray:
        """Read a unit, checked: (rows, columns), or with the planes first."""
        _, _, i0, i1, j0, j1 = self._layout.unit(index)
        planes = [self._block(plane, index, (i0, i1), (j0, j1)) for plane in range(self._planes)]
        return np.stack(planes) if self.ndim == 3 else planes[0]

    @property
    def _planes(self) -> int:
        return self.shape[0] if self.ndim == 3 else 1

    def _block(
        self, plane: int, index: int, rows: tuple[int, int], cols: tuple[int, int]
    ) -> AnyArray:
        """Read entries inside one stored unit; NaN if it is not there yet."""
        shape = (rows[1] - rows[0], cols[1] - cols[0])
        if not self._check(index):
            return np.full(shape, np.nan, self.dtype)
        if self._plain is not None:
            return np.array(self._plain[plane, slice(*rows), slice(*cols)], self.dtype)
        i, j = self._place(index)
        if i == j and self._symmetric and self._info["triangle"] == "lower":
            return self._diagonal_block(plane, index, rows, cols)
        block = np.empty(shape, self.dtype)
        self._open.block(block.reshape(-1).view(np.uint8), plane, index, rows, cols)
        return block

    def _diagonal_block(
        self, plane: int, index: int, rows: tuple[int, int], cols: tuple[int, int]
    ) -> AnyArray:
        """Read a block of a diagonal tile of which only the lower half is there."""
        _, _, i0, i1, _, _ = self._layout.unit(index)
        whole = np.empty((i1 - i0, i1 - i0), self.dtype)
        self._open.block(whole.reshape(-1).view(np.uint8), plane, index, (i0, i1), (i0, i1))
        above = np.triu_indices(i1 - i0, 1)
        whole[above] = whole.T[above]
        return whole[rows[0] - i0 : rows[1] - i0, cols[0] - i0 : cols[1] - i0]


def _summary(path: str, bad: list[tuple[tuple[int, int], StoreError]]) -> StoreError:
    """One error for all bad tiles; missing ones are the lesser fault."""
    corrupt = [error for _, error in bad if isinstance(error, StoreCorruptError)]
    kind = StoreCorruptError if corrupt else StoreIncompleteError
    shown = "; ".join(str(error) for _, error in bad[:5])
    places = ", ".join(str(place) for place, _ in bad[:20])
    more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
    error = kind(
        f"{path}: {len(bad)} bad tile{'s' if len(bad) > 1 else ''}: {places}{more} ({shown}); "
        "run entk.repair(path, factors) to recompute them"
    )
    error.tiles = [place for place, _ in bad]  # type: ignore[union-attr]
    return error
