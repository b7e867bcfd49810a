"""Factor stores: a directory with a manifest and one numbered file an array.

    F.entk/manifest.json    names, kinds, types, shapes, fingerprints, checksums of all batches
    F.entk/000000.bin       one array: its rows one after another, little-endian, C order

While it is unfinished it is called ``F.entk.partial`` and has a log, ``batches.log``, of which
batches are safe. Leaf names are data and never part of a path. bfloat16 is stored as uint16 with
its name in the manifest. Nothing is ever pickled.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np

from entk import _core, _foreign, _manifest, _paths
from entk._arrays import SUPPORTED, Host
from entk._errors import (
    DTypeError,
    InputError,
    StoreCorruptError,
    StoreError,
    StoreFormatError,
    StoreIncompleteError,
    UnsafePathError,
)
from entk._factors import Factors
from entk._leaves import Dense, Lookup, Outer, Tied

_MOST_LEAVES = 100_000
_KINDS: dict[str, int] = {"Dense": 1, "Outer": 2, "Lookup": 2}


def open_factors(path: str | os.PathLike[str], *, verify: bool = True) -> Factors:
    """Open a factor store; its arrays are mapped read-only.

    With `verify` all bytes are read once and compared with their checksums.
    """
    name = _paths.clean_name(path)
    _foreign.refuse_pickles(name)
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return _foreign.factors_of_tensors(name)
    if not _paths.is_dir(name):
        unfinished = f"{name}{_paths.PARTIAL}"
        if not _paths.exists(name):
            more = f" ({unfinished} is unfinished)" if _paths.exists(unfinished) else ""
            raise StoreIncompleteError(f"{name} does not exist{more}")
        raise StoreFormatError(f"{name} is no factor store: not a directory")
    manifest = read_manifest(name)
    arrays = [_array(name, number, entry) for number, entry in enumerate(manifest["arrays"])]
    if verify:
        for number, (array, entry) in enumerate(zip(arrays, manifest["arrays"], strict=True)):
            _verify(file_name(number), array, entry)
    try:
        factors = _assembled(name, manifest, arrays)
    except (InputError, DTypeError) as error:
        raise StoreFormatError(
            f"{name}: the manifest does not describe factors ({error})"
        ) from None
    factors._source = name
    return factors


def _assembled(name: str, manifest: dict[str, Any], arrays: list[Host]) -> Factors:
    return Factors(
        _leaves(name, manifest["leaves"], arrays),
        outputs=manifest["outputs"],
        n_outputs=manifest["n_outputs"],
        reasons={leaf["name"]: leaf["reason"] for leaf in manifest["leaves"]},
    )


def file_name(number: int) -> str:
    """Return the name of the file of array `number`."""
    return f"{number:06d}.bin"


def read_manifest(path: str) -> dict[str, Any]:
    """Read and check the manifest of a factor store.

    Raises
    ------
    StoreFormatError
        If it is not one of ours, or a field is wrong.
    UnsafePathError
        If it names a file that is not a numbered one.
    """
    name = f"{path}/manifest.json"
    found = _manifest.parse(_paths.read_small(name, _manifest.LONGEST), name)
    if isinstance(found, dict):
        _check_names(found.get("arrays"))
    manifest = _manifest.opened(found, name, "factors")
    if manifest.get("complete") is not True:
        raise StoreIncompleteError(f"{path} is unfinished")
    if not _is_sound(manifest):
        raise StoreFormatError(f"{name}: the manifest does not describe factors")
    return manifest


def _check_names(arrays: object) -> None:
    for number, entry in enumerate(arrays if isinstance(arrays, list) else []):
        given = entry.get("file") if isinstance(entry, dict) else None
        if given != file_name(number):
            raise UnsafePathError(
                f"the manifest names {given!r}; entries of a store are numbered files"
            )


def _is_sound(manifest: dict[str, Any]) -> bool:
    n = manifest.get("n")
    meant = isinstance(manifest.get("outputs"), str | int) and is_count(manifest.get("n_outputs"))
    whole = is_head(manifest) and is_count(n) and all(_is_whole(e, n) for e in manifest["arrays"])
    return meant and whole


def is_head(manifest: dict[str, Any]) -> bool:
    """Whether arrays and leaves are what a finished or unfinished store may say of them."""
    arrays, leaves = manifest.get("arrays"), manifest.get("leaves")
    if not (isinstance(arrays, list) and isinstance(leaves, list)):
        return False
    fine = len(arrays) <= 4 * _MOST_LEAVES and 0 < len(leaves) <= _MOST_LEAVES
    fine = fine and all(_is_array(entry) for entry in arrays)
    return fine and all(_is_leaf(entry, len(arrays)) for entry in leaves)


def is_count(value: object) -> bool:
    """Whether a value is a whole number of something."""
    return type(value) is int and 0 <= value < 2**63


def _is_array(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    shape = entry.get("shape")
    fine = isinstance(shape, list) and len(shape) <= 8 and all(is_count(k) for k in shape)
    return fine and entry.get("dtype") in SUPPORTED


def _is_whole(entry: dict[str, Any], n: object) -> bool:
    shape, sums = entry["shape"], entry.get("batches")
    if not isinstance(sums, list):
        return False
    fine = len(shape) > 0 and shape[0] == n
    fine = fine and all(
        isinstance(one, list) and len(one) == 2 and all(is_count(part) for part in one)
        for one in sums
    )
    return fine and sum(rows for rows, _ in sums) == n


def _is_leaf(entry: object, arrays: int, *, inner: bool = False) -> bool:
    if not isinstance(entry, dict):
        return False
    if not inner and not all(isinstance(entry.get(key), str) for key in ("name", "reason")):
        return False
    if entry.get("kind") == "Tied" and not inner:
        uses = entry.get("uses")
        return isinstance(uses, list) and all(_is_leaf(use, arrays, inner=True) for use in uses)
    kind, numbers = entry.get("kind"), entry.get("arrays")
    return (
        isinstance(kind, str)
        and isinstance(numbers, list)
        and len(numbers) == _KINDS.get(kind)
        and all(type(k) is int and 0 <= k < arrays for k in numbers)
    )


def _array(path: str, number: int, entry: dict[str, Any]) -> Host:
    """Map one array, after its length has been compared with its shape."""
    name = f"{path}/{file_name(number)}"
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    kept = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
    want = kept.itemsize
    for length in shape:
        want *= length
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _paths.opening(name, error) from error
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise UnsafePathError(f"{name} is not a plain file")
        if found.st_size != want:
            raise StoreCorruptError(f"{name} is {found.st_size:,} bytes, its shape needs {want:,}")
        return Host(_foreign.mapped(file, name, kept.str, shape, 0), dtype)


def _verify(name: str, array: Host, entry: dict[str, Any]) -> None:
    start = 0
    for batch, (rows, want) in enumerate(entry["batches"]):
        got = checksum(array.array[start : start + rows])
        start += rows
        if got != want:
            raise StoreCorruptError(
                f"{name}, batch {batch}: crc32c {got:#010x} != {want:#010x}; the factors must be "
                "written again"
            )


def checksum(rows: np.ndarray[Any, Any]) -> int:
    """CRC-32C of rows of an array in C order, little-endian, in bounded pieces."""
    from entk._fingerprint import pieces

    found = 0
    for piece in pieces(rows):
        found = _core.crc32c(piece, found)
    return int(found)


def _leaves(path: str, entries: Sequence[dict[str, Any]], arrays: list[Host]) -> dict[str, Any]:
    leaves = {entry["name"]: _leaf(entry, arrays) for entry in entries}
    if len(leaves) != len(entries):
        raise StoreFormatError(f"{path}: two leaves have the same name")
    return leaves


def _leaf(entry: dict[str, Any], arrays: list[Host]) -> Any:
    if entry["kind"] == "Tied":
        return Tied([_leaf(use, arrays) for use in entry["uses"]])
    parts = [arrays[number] for number in entry["arrays"]]
    if entry["kind"] == "Dense":
        return Dense(*parts)
    if entry["kind"] == "Lookup":
        return Lookup(*parts)
    return Outer(*parts, transposed=entry.get("transposed") is True)


def source(factors: Factors) -> str | None:
    """Return the store that factors were opened from, unless they were changed since."""
    name = factors._source
    return name if name is not None and os.path.isfile(f"{name}/manifest.json") else None


def store_error(path: str, error: OSError) -> StoreError:
    """Return the package's error for one that writing a store met."""
    import errno

    from entk._errors import StoreSpaceError

    if isinstance(error, StoreError):
        return error
    name = errno.errorcode.get(error.errno or 0, "errno")
    if error.errno == errno.ENOSPC:
        free = os.statvfs(os.path.dirname(path) or ".")
        found: StoreError = StoreSpaceError(
            f"no space left on {path} (free {free.f_bavail * free.f_frsize:,} bytes); the batches "
            "before are safe; free space and call with resume=True"
        )
    else:
        found = StoreError(f"{path}: {name}: {error.strerror}")
    found.errno = error.errno
    return found
