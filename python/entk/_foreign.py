"""Files of others: `.npy` and safetensors through strict parsers; pickles are refused."""

from __future__ import annotations

import os
import stat
import warnings
from typing import Any

import numpy as np

from entk import _core, _paths
from entk._arrays import AnyArray, Host
from entk._errors import (
    StoreCorruptError,
    StoreFormatError,
    StoreIncompleteError,
    UnsafeFileError,
    UnsafePathError,
)
from entk._factors import Factors
from entk._leaves import Dense, Lookup, Outer

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".jl")
_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}


def refuse_pickles(path: str) -> None:
    """Raise `UnsafeFileError` for names of formats that run code when they are read."""
    if path.lower().endswith(_PICKLES):
        raise UnsafeFileError(
            f"{path}: files of this kind need pickle, which can run code; refused. Save arrays as "
            "safetensors or .npy"
        )
    if path.lower().endswith(".npz"):
        raise StoreFormatError(f"{path}: .npz is not read; save each array as .npy")


def open_npy(path: str) -> AnyArray:
    """Map a `.npy` for reading, after its header and length have been checked.

    Raises
    ------
    StoreFormatError
        A header that is not the one dictionary NumPy writes.
    StoreCorruptError
        A file shorter than its header promises.
    UnsafeFileError
        Objects.
    """
    handle, length = _open(path)
    with os.fdopen(handle, "rb") as file:
        first = file.read(12)
        span = _core.npy_span(first)
        if span > length:
            raise StoreFormatError(f"{path}: .npy header is cut off")
        file.seek(0)
        found = _core.npy_header(file.read(span))
        promised = found["start"] + found["bytes"]
        if length < promised:
            raise StoreCorruptError(
                f"{os.path.basename(path)} is {length:,} bytes, its header promises {promised:,}"
            )
        if length > promised:
            warnings.warn(
                f"{path} has {length - promised:,} bytes after its data", UserWarning, stacklevel=3
            )
        order = "F" if found["fortran"] else "C"
        return mapped(file, path, found["descr"], tuple(found["shape"]), found["start"], order)


def mapped(
    file: Any, name: str, dtype: str, shape: tuple[int, ...], start: int, order: Any = "C"
) -> AnyArray:
    """Map a file that is known to be long enough; an empty array needs no file."""
    if 0 in shape:
        return np.empty(shape, dtype)
    array = np.memmap(file, dtype=dtype, mode="r", offset=start, shape=shape, order=order)
    # NumPy knows no name of a file that was opened by its number.
    array.filename = os.path.abspath(name)
    return array


def _open(path: str) -> tuple[int, int]:
    refuse_pickles(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _paths.opening(path, error) from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise StoreFormatError(f"{path} is not a plain file")
    return handle, found.st_size


def open_safetensors(path: str) -> dict[str, Host]:
    """Map the tensors of a safetensors file for reading, after its header has been checked.

    Raises
    ------
    StoreFormatError
        With one text for each fault of a header.
    """
    handle, length = _open(path)
    with os.fdopen(handle, "rb") as file:
        first = file.read(8)
        span = _core.safetensors_span(first, length)
        found = _core.safetensors_header(file.read(span), length)
        return {name: _tensor(path, file, name, *found[name]) for name in found}


def _tensor(
    path: str, file: Any, name: str, dtype: str, shape: list[int], start: int, _bytes: int
) -> Host:
    if dtype == "BF16":
        return Host(mapped(file, path, "<u2", tuple(shape), start), "bfloat16")
    if dtype not in _TYPES:
        raise StoreFormatError(f"{path}: tensor {name!r} has dtype {dtype}, which is no factor's")
    known = np.dtype(_TYPES[dtype]).newbyteorder("<")
    return Host(mapped(file, path, known.str, tuple(shape), start), _TYPES[dtype])


def shards(path: str) -> list[str]:
    """Return the files that a ``model.safetensors.index.json`` lists.

    Raises
    ------
    StoreIncompleteError
        If some are missing.
    """
    from entk import _manifest

    found = _manifest.parse(_paths.read_small(path, _manifest.LONGEST), path)
    table = found.get("weight_map") if isinstance(found, dict) else None
    if not (isinstance(table, dict) and table and all(isinstance(v, str) for v in table.values())):
        raise StoreFormatError(f"{path}: no index of safetensors files")
    names = sorted(set(table.values()))
    for name in names:
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise UnsafePathError(f"{path} names {name!r}; shards lie beside their index")
    folder = os.path.dirname(path)
    missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise StoreIncompleteError(
            f"{os.path.basename(path)} lists {len(names)} files, {len(missing)} missing: "
            f"{', '.join(missing[:5])}"
        )
    return [os.path.join(folder, name) for name in names]


def factors_of_tensors(path: str) -> Factors:
    """Return the factors in a safetensors file (or an index of several).

    A tensor named ``leaf/jac`` makes a `Dense` leaf, ``leaf/acts`` with ``leaf/cots`` an `Outer`,
    ``leaf/ids`` with ``leaf/cots`` a `Lookup`.

    Raises
    ------
    StoreFormatError
        If the names say something else.
    """
    tensors: dict[str, Host] = {}
    for file in shards(path) if path.endswith(".json") else [path]:
        tensors |= open_safetensors(file)
    leaves: dict[str, dict[str, Host]] = {}
    for name, tensor in tensors.items():
        leaf, _, word = name.rpartition("/")
        leaves.setdefault(leaf, {})[word] = tensor
    kinds: dict[tuple[str, ...], Any] = {
        ("jac",): Dense,
        ("acts", "cots"): Outer,
        ("cots", "ids"): Lookup,
    }
    made = {}
    for leaf, words in leaves.items():
        kind = kinds.get(tuple(sorted(words)))
        if kind is None or not leaf:
            raise StoreFormatError(
                f"{path}: tensors {sorted(words)} of {leaf!r} are no leaf; name them 'leaf/jac', "
                "'leaf/acts' and 'leaf/cots', or 'leaf/ids' and 'leaf/cots'"
            )
        made[leaf] = kind(**words)
    return Factors(made)
