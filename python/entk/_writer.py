"""`FactorWriter`: factors to disk batch by batch, resumable by batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from entk import _core, _factor_store, _manifest, _paths, _unfinished
from entk._arrays import Host
from entk._errors import InputError, StoreFormatError, StoreMismatchError
from entk._factors import Factors
from entk._fingerprint import pieces
from entk._leaves import Outer, Tied

_LOG = "batches.log"
_HEAD = "batches.json"
# Checksums that a finished store keeps of an array, however many batches it was written in: the
# manifest of a long series of small batches would be longer than manifests may be.
_SUMS = 256


class FactorWriter:
    """Append factors to a store on disk, a batch at a time.

    A batch counts as soon as `append` returns: its rows are synced before the log says so. What a
    kill leaves of a batch in flight is written over by the next attempt.

    Parameters
    ----------
    path : str or path
        The store. Until `finish` it is called ``path.partial``.
    resume : bool, default False
        Continue one that is there; `batches_done` says where.
    overwrite : bool, default False
        Replace what is there; an old store lives until `finish`.
    meta : mapping, optional
        JSON values that say what is written (model, data). On resume they must be the same.

    Attributes
    ----------
    batches_done : int
        Batches that are safe.
    complete : bool
        Whether the store was finished already: then there is nothing to append.

    Raises
    ------
    StoreError
        If something is there and neither option is given.
    StoreLockedError
        If another process writes it.
    StoreMismatchError
        On resume, if `meta` differ.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        if resume and overwrite:
            raise InputError("resume=True and overwrite=True contradict each other; pass one")
        self.path = _paths.clean_name(path)
        self._folder = self.path + _paths.PARTIAL
        self._meta = dict(meta or {})
        self._overwrite = overwrite
        self._head: dict[str, Any] | None = None
        self._batches: list[dict[str, Any]] = []
        self._files: list[int] = []
        self._log = -1
        self._end = 0
        self.complete = False
        _paths.check_parent(self.path)
        self._lock = _core.StoreLock(self.path, shared=False)
        try:
            self._begin(resume=resume)
        except OSError as error:
            self.close()
            raise _factor_store.store_error(self.path, error) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def batches_done(self) -> int:
        """Batches that are safe."""
        return len(self._batches)

    @property
    def rows_done(self) -> int:
        """Examples in them."""
        return sum(batch["rows"] for batch in self._batches)

    def close(self) -> None:
        """Let go of files and lock; the batches stay."""
        for handle in [*self._files, self._log]:
            if handle >= 0:
                os.close(handle)
        self._files, self._log = [], -1
        self._lock.release()

    def _begin(self, *, resume: bool) -> None:
        there = [name for name in (self.path, self._folder) if _paths.exists(name)]
        if there and not (resume or self._overwrite):
            raise _unfinished.in_the_way(there[0])
        if self._overwrite:
            _unfinished.remove(self._folder)
        if resume and self._folder in there:
            self._continue()
        elif resume and there:
            whole = _factor_store.read_manifest(self.path)
            self._check_meta(whole.get("meta"))
            if whole.get("replaces") is True:
                _unfinished.remove(f"{self.path}.replaced")
            self.complete = True
        else:
            os.mkdir(self._folder)
            _paths.replace(f"{self._folder}/{_LOG}", b"")
            _paths.sync_dir(os.path.dirname(self._folder) or ".")
            self._log = _handle(f"{self._folder}/{_LOG}")

    def _continue(self) -> None:
        if _paths.exists(f"{self._folder}/manifest.json"):
            # Stopped inside `finish`: all that is missing is the name.
            whole = _factor_store.read_manifest(self._folder)
            self._check_meta(whole.get("meta"))
            self._overwrite = whole.get("replaces") is True
            self._publish()
            return
        name = f"{self._folder}/{_HEAD}"
        if not _paths.exists(f"{self._folder}/{_LOG}"):
            _paths.replace(f"{self._folder}/{_LOG}", b"")
        self._log = _handle(f"{self._folder}/{_LOG}")
        if not _paths.exists(name):
            # Nothing is safe yet; beside a finished store it was to replace that one.
            self._overwrite = _paths.exists(self.path)
            return
        found = _manifest.parse(_paths.read_small(name, _manifest.LONGEST), name)
        self._head = _manifest.opened(found, name, "factors")
        if not _factor_store.is_head(self._head):
            raise StoreFormatError(f"{name} does not describe factors")
        self._check_meta(self._head.get("meta"))
        self._overwrite = self._head.get("replaces") is True
        self._batches = list(_read_log(self._log, len(self._head["arrays"])))
        self._end = os.fstat(self._log).st_size
        self._open_files(len(self._head["arrays"]))

    def _check_meta(self, stored: object) -> None:
        if stored != self._meta:
            raise StoreMismatchError(
                f"meta: this call has {self._meta!r}, the store has {stored!r}; refusing to mix "
                "two sets of factors"
            )

    def _open_files(self, count: int) -> None:
        for number in range(len(self._files), count):
            self._files.append(_handle(f"{self._folder}/{_factor_store.file_name(number)}"))

    def append(self, factors: Factors) -> None:
        """Write one batch; it is safe when this returns.

        Raises
        ------
        InputError
            If it differs from the batches before in leaves, shapes, types or outputs.
        StoreError
            If it cannot be written; the batches before stay.
        """
        if self.complete:
            raise InputError(f"{self.path} is complete; nothing can be appended")
        head, arrays = describe(factors)
        head |= {"meta": self._meta, "replaces": self._overwrite}
        try:
            self._match(head)
            self._write(factors.n, arrays)
        except OSError as error:
            raise _factor_store.store_error(self.path, error) from error

    def _match(self, head: dict[str, Any]) -> None:
        if self._head is None:
            sealed = _manifest.sealed(head)
            document = _manifest.document(sealed, self.path)
            while self._files:  # of an attempt that failed: their files are replaced here
                os.close(self._files.pop())
            for number in range(len(head["arrays"])):
                _paths.replace(f"{self._folder}/{_factor_store.file_name(number)}", b"")
            _paths.replace(f"{self._folder}/{_HEAD}", document)
            self._open_files(len(head["arrays"]))
            self._head = sealed
            return
        for field in ("leaves", "arrays", "outputs", "n_outputs"):
            mine, theirs = (_without_reasons(one[field]) for one in (head, self._head))
            if mine != theirs:
                raise InputError(
                    f"batch {self.batches_done} differs from the first one in {field}: "
                    f"{_difference(mine, theirs)}"
                )

    def _write(self, rows: int, arrays: list[Host]) -> None:
        start, sums = self.rows_done, []
        for handle, host in zip(self._files, arrays, strict=True):
            at = start * host.array[:1].nbytes if len(host.array) else 0
            for piece in pieces(host.array):
                _paths.write_all(handle, piece.data, at)
                at += piece.nbytes
            os.fdatasync(handle)
            sums.append(_factor_store.checksum(host.array))
        batch = {"number": self.batches_done, "rows": rows, "sums": sums}
        line = _manifest.canonical(_manifest.sealed(batch)) + b"\n"
        # Not at the end of the file: an attempt that failed may have left half a line there.
        _paths.write_all(self._log, line, self._end)
        os.fdatasync(self._log)
        self._end += len(line)
        self._batches.append(batch)

    def finish(self) -> Factors:
        """Give the store its name and open it.

        Raises
        ------
        InputError
            If nothing was appended.
        """
        try:
            if not self.complete:
                self._finish()
            self.close()
            return _factor_store.open_factors(self.path)
        except OSError as error:
            raise _factor_store.store_error(self.path, error) from error

    def _finish(self) -> None:
        if self._head is None:
            raise InputError("a factor store needs at least one batch (got 0)")
        arrays = []
        for number, entry in enumerate(self._head["arrays"]):
            shape = [self.rows_done, *entry["shape"]]
            os.ftruncate(self._files[number], self.rows_done * _row_bytes(entry))
            os.fsync(self._files[number])
            sums = list(_grouped(self._batches, number, _row_bytes(entry)))
            arrays.append({**entry, "shape": shape, "batches": sums})
        whole = {**self._head, "arrays": arrays, "n": self.rows_done, "complete": True}
        document = _manifest.document(_manifest.sealed(whole), self.path)
        _paths.replace(f"{self._folder}/manifest.json", document)
        self._publish()

    def _publish(self) -> None:
        """Give a store whose manifest says that it is complete its name; may be repeated."""
        for name in (_LOG, _HEAD):
            _unfinished.remove(f"{self._folder}/{name}")
        _paths.sync_dir(self._folder)
        old = f"{self.path}.replaced"
        if self._overwrite and _paths.exists(self.path):
            _unfinished.remove(old)
            os.rename(self.path, old)
        os.rename(self._folder, self.path)
        _paths.sync_dir(os.path.dirname(self.path) or ".")
        if self._overwrite:
            _unfinished.remove(old)
        self.complete = True


def describe(factors: Factors) -> tuple[dict[str, Any], list[Host]]:
    """Return what must be the same in every batch, and the arrays in the order of their files.

    Arrays that leaves share are stored once.
    """
    arrays: list[Host] = []
    numbers: dict[tuple[Any, ...], int] = {}
    leaves = []
    for name in factors:
        entry = _entry(factors[name], arrays, numbers)
        leaves.append({**entry, "name": name, "reason": factors.reason(name)})
    head = {
        "kind": "factors",
        "format": _manifest.FORMAT,
        "outputs": factors.outputs,
        "n_outputs": factors.n_outputs,
        "leaves": leaves,
        "arrays": [
            {"file": _factor_store.file_name(k), "dtype": host.dtype, "shape": list(host.shape[1:])}
            for k, host in enumerate(arrays)
        ],
        "versions": _manifest.versions(),
        "complete": False,
    }
    return head, arrays


def _entry(leaf: Any, arrays: list[Host], numbers: dict[tuple[Any, ...], int]) -> dict[str, Any]:
    if isinstance(leaf, Tied):
        return {"kind": "Tied", "uses": [_entry(use, arrays, numbers) for use in leaf._uses]}
    mine = []
    for part in leaf._parts:
        host = part.given()
        interface = host.array.__array_interface__
        key = (interface["data"][0], host.array.strides, host.shape, host.dtype)
        if key not in numbers or host.array.size == 0:
            numbers[key] = len(arrays)
            arrays.append(host)
        mine.append(numbers[key])
    found: dict[str, Any] = {"kind": leaf.kind, "arrays": mine}
    return found | ({"transposed": leaf.transposed} if isinstance(leaf, Outer) else {})


def _grouped(
    batches: list[dict[str, Any]], number: int, row_bytes: int
) -> Iterator[tuple[int, int]]:
    """Yield rows and checksum of consecutive batches of one array, `_SUMS` pairs at most."""
    step = max(1, -(-len(batches) // _SUMS))
    for start in range(0, len(batches), step):
        rows = total = 0
        for batch in batches[start : start + step]:
            length = batch["rows"] * row_bytes
            total = _core.crc32c_combine(total, batch["sums"][number], length)
            rows += batch["rows"]
        yield rows, total


def _row_bytes(entry: dict[str, Any]) -> int:
    size = 2 if entry["dtype"] == "bfloat16" else np.dtype(entry["dtype"]).itemsize
    for length in entry["shape"]:
        size *= length
    return size


def _without_reasons(value: Any) -> Any:
    """Leave out why leaves have their kind: that may depend on the size of a batch."""
    if not isinstance(value, list):
        return value
    return [{key: part for key, part in entry.items() if key != "reason"} for entry in value]


def _difference(mine: Any, theirs: Any) -> str:
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a != b]
        return f"{pairs[0][0]!r} and {pairs[0][1]!r}"
    return f"{mine!r} and {theirs!r}"


def _handle(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)


def _read_log(handle: int, arrays: int) -> Iterator[dict[str, Any]]:
    """Yield the sound batches of a log, and cut off what follows them."""
    data = os.pread(handle, os.fstat(handle).st_size, 0)
    end = 0
    for number, line in enumerate(data.splitlines(keepends=True)):
        try:
            batch = _manifest.parse(line, "batches.log")
        except StoreFormatError:
            break
        sound = line.endswith(b"\n") and _is_batch(batch, number, arrays)
        if not sound:
            break
        end += len(line)
        yield {key: batch[key] for key in ("number", "rows", "sums")}
    if end < len(data):
        os.ftruncate(handle, end)
        os.fsync(handle)


def _is_batch(batch: object, number: int, arrays: int) -> bool:
    if not isinstance(batch, dict) or batch != _manifest.sealed(batch):
        return False
    sums = batch.get("sums")
    if not (isinstance(sums, list) and len(sums) == arrays):
        return False
    fine = all(_factor_store.is_count(one) and one < 2**32 for one in sums)
    return fine and batch.get("number") == number and _factor_store.is_count(batch.get("rows"))
