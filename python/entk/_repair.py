"""`repair` and `clean`: what to do with a damaged or an abandoned store."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from entk import _core, _manifest, _paths, _stored, _unfinished
from entk._errors import InputError, StoreCorruptError, StoreIncompleteError
from entk._problem import resolve_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from entk._factors import FactorsLike


_RECORD = struct.Struct("<QIIQQ")
_LONGEST_LOG = 1 << 34


@dataclass(frozen=True)
class RepairReport:
    """What `repair` did.

    Attributes
    ----------
    repaired : tuple of (i, j)
        Positions of the tiles that were computed again.
    total : int
        Tiles of the kernel.
    """

    repaired: tuple[tuple[int, int], ...]
    total: int

    def __str__(self) -> str:
        if not self.repaired:
            return f"{self.total:,} tiles verified, nothing to repair"
        places = ", ".join(map(str, self.repaired[:20]))
        more = f" and {len(self.repaired) - 20} more" if len(self.repaired) > 20 else ""
        return f"{len(self.repaired)} of {self.total:,} tiles computed again: {places}{more}"


def repair(
    path: str | os.PathLike[str],
    factors: FactorsLike,
    other: FactorsLike | None = None,
    *,
    outputs: str | int | ArrayLike | tuple[ArrayLike, ArrayLike] | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
) -> RepairReport:
    """Recompute the tiles of a finished kernel that fail verification.

    Parameters
    ----------
    path : str or path
        A kernel that `entk.assemble` wrote.
    factors, other
        The factors it was made of.
    outputs : optional
        Only where the store's manifest does not say it all: weights.
    memory, threads
        As for `entk.assemble`.

    Returns
    -------
    RepairReport
        Which tiles were bad.

    Raises
    ------
    StoreMismatchError
        If the factors are not those of the store.
    StoreLockedError
        If another process writes it.

    Notes
    -----
    The kernel's name is ``path.partial`` meanwhile, so that nobody opens it half repaired; if the
    repair is stopped, the same call goes on.

    Examples
    --------
    >>> import numpy as np, entk, tempfile, os
    >>> F = entk.Factors({"w": entk.Dense(np.arange(6.0).reshape(3, 2))})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "K.zarr")
    ...     k = entk.assemble(F, out=path)
    ...     print(entk.repair(path, F))
    1 tiles verified, nothing to repair
    """
    name = _paths.clean_name(path)
    unfinished = name + _paths.PARTIAL
    begun = not _paths.exists(name) and _paths.exists(unfinished)
    manifest = _unfinished.read_manifest(unfinished if begun else name)
    job = _job_of(manifest, factors, other, outputs, memory, threads)
    wanted = _manifest.of_job(job, manifest["triangle"])
    _manifest.compare(wanted, manifest)
    bad = job.scan()
    store = _unfinished.Store(name, _paths.kernel_format(name), wanted, shared=False)
    with store:
        if not begun:
            found = _bad_tiles(name)
            if not found:
                return RepairReport((), len(store.layout))
            _reopen(name, store.fmt, found, store.layout)
        store.begin(resume=True, overwrite=False, join=False)
        missing = store.missing()
        tiles = _stored.Tiles(job, store.layout, bad)
        _stored.fill(store, tiles, missing, None)
        _stored.complete(store, tiles)
    places = tuple((unit.i, unit.j) for unit in map(tiles.unit, missing))
    return RepairReport(places, len(store.layout))


def _job_of(
    manifest: dict[str, Any],
    factors: Any,
    other: Any,
    outputs: Any,
    memory: Any,
    threads: Any,
) -> Any:
    """Return the job whose kernel a manifest describes, with factors from the caller."""
    from entk._factors import as_factors
    from entk._job import Job

    rows = as_factors(factors)
    if outputs is None:
        mode, _, index = str(manifest["output_weights"][0]).partition(" ")
        if mode == "weights":
            raise InputError("this kernel was made with output weights; pass them as outputs=")
        words = {"index": int(index) if index.isdecimal() else None, "as-is": None}
        outputs = words.get(mode, mode)
    weights = manifest.get("leaf_weights")
    resolve_weights(rows, weights)  # names that are not there are refused here
    return Job.make(
        rows,
        other,
        tile=manifest["tile"],
        outputs=outputs,
        dtype=manifest["dtype"],
        accumulate=manifest["accumulate"],
        memory=memory,
        threads=threads,
        engine=manifest["engine"],
        leaf_weights=weights,
        nonfinite=manifest["nonfinite"],
    )


def _bad_tiles(path: str) -> list[int]:
    """Return the units that fail verification; missing chunks among them."""
    manifest = _unfinished.read_manifest(path)
    fmt = "zarr" if _paths.is_dir(path) else "npy"
    layout = _unfinished.layout_of(manifest, fmt)
    reader = _core.TileReader(path, layout, path if fmt == "zarr" else _paths.side(path))
    done = np.frombuffer(reader.done(), np.uint8)
    bad = []
    for index in range(len(layout)):
        try:
            if done[index]:
                reader.check(index, mirror=True)
                continue
        except (StoreCorruptError, StoreIncompleteError):
            pass
        bad.append(index)
    return bad


def _reopen(path: str, fmt: str, bad: list[int], layout: _core.Layout) -> None:
    """Turn a finished kernel into an unfinished one that lacks the bad tiles."""
    partial = path + _paths.PARTIAL
    if fmt == "zarr":
        os.rename(path, partial)
        for index in bad:
            i, j, *_ = layout.unit(index)
            _remove_chunks(f"{partial}/kernel/c", i, j)
        _paths.sync_dir(os.path.dirname(partial) or ".")
        return
    # In this order: a kernel whose log lacks tiles is refused under its old name too.
    log = f"{_paths.side(path)}/tiles.log"
    _paths.replace(log, _kept_records(_paths.read_small(log, _LONGEST_LOG), set(bad)))
    os.rename(_paths.side(path), _paths.side(partial))
    os.rename(path, partial)
    _paths.sync_dir(os.path.dirname(partial) or ".")


def _kept_records(log: bytes, bad: set[int]) -> bytes:
    """Return a log without the records of some tiles; see rust/store/log.rs for its format."""
    kept = b""
    for tile, total, flags, _, _ in _RECORD.iter_unpack(log[: len(log) // 32 * 32]):
        if tile not in bad:
            body = _RECORD.pack(tile, total, flags, len(kept) // _RECORD.size, 0)[:24]
            kept += body + _manifest.checksum(body).to_bytes(8, "little")
    return kept


def _remove_chunks(folder: str, i: int, j: int) -> None:
    """Remove a tile and its mirror image, in every plane."""
    planes = [folder]
    array = _manifest.parse(
        _paths.read_small(os.path.dirname(folder) + "/zarr.json", 1 << 20), folder
    )
    if len(array["shape"]) == 3:
        planes = [f"{folder}/{plane}" for plane in range(array["shape"][0])]
    for plane in planes:
        for place in {(i, j), (j, i)}:
            name = f"{plane}/{place[0]}/{place[1]}"
            if _paths.exists(name):
                os.unlink(name)


def clean(path: str | os.PathLike[str]) -> list[str]:
    """Remove what an abandoned assembly or factor writer left beside `path`.

    Parameters
    ----------
    path : str or path
        The name the finished store would have had. A finished store is not touched.

    Returns
    -------
    list of str
        What was removed.

    Raises
    ------
    StoreLockedError
        If a process is still writing it.

    Examples
    --------
    >>> import entk
    >>> entk.clean("nothing-of-that-name.zarr")
    []
    """
    name = _paths.clean_name(path)
    if name.endswith(_paths.PARTIAL):
        name = name[: -len(_paths.PARTIAL)]
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        return []
    left = _left_over(folder, os.path.basename(name))
    if not left:
        return []
    lock = _core.StoreLock(name, shared=False)
    try:
        _core.tidy(name)
        removed = [entry for entry in left if _paths.exists(entry)]
        for entry in removed:
            if entry != name + _paths.LOCK:
                _unfinished.remove(entry)
    finally:
        lock.release()
    return removed


def _left_over(folder: str, base: str) -> list[str]:
    """Return what only an unfinished job has, among the names that begin with `base`."""
    ends = (
        _paths.PARTIAL,
        _paths.LOCK,
        f"{_paths.PARTIAL}.entk",
        ".replaced",
        _paths.EXECUTOR + _paths.LOCK,
        *_paths.SHARED,
    )
    wanted = {base + end for end in ends}
    found = [
        entry
        for entry in os.listdir(folder)
        if entry in wanted or (entry.startswith(f"{base}.") and entry.endswith(".tmp"))
    ]
    return sorted(os.path.join(folder, entry) for entry in found)
