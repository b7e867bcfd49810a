"""Fingerprints of factors by content: what is read, not when or from where.

BLAKE2b of kind, types, shapes and values in C order and little-endian, so that layout, byte order
and file make no difference, and the clock is never asked.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from entk._arrays import Host
from entk._leaves import Outer, Tied
from entk._outputs import Outputs

_CHUNK = 1 << 24
_BYTES = 16


def fingerprint(leaf: Any) -> str:
    """Return the fingerprint of a leaf's values; reads them once."""
    digest = hashlib.blake2b(digest_size=_BYTES)
    for use in leaf._uses if isinstance(leaf, Tied) else (leaf,):
        turned = isinstance(use, Outer) and use.transposed
        digest.update(f"{use.kind} {turned};".encode())
        for part in use._parts:
            update(digest, part.host)
    return digest.hexdigest()


def update(digest: Any, array: Host) -> None:
    """Add type, shape and values of an array to a digest, a bounded piece at a time."""
    digest.update(f"{array.dtype} {array.shape};".encode())
    for piece in pieces(array.array):
        digest.update(piece)


def pieces(array: np.ndarray[Any, Any]) -> Any:
    """Yield the bytes of an array in C order, little-endian, in bounded copies."""
    if array.size == 0:
        return
    wanted = array.dtype.newbyteorder("<")
    if array.flags.c_contiguous and array.dtype == wanted:
        flat = array.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _CHUNK):
            yield flat[start : start + _CHUNK]
        return
    if array.ndim == 0 or array.nbytes <= _CHUNK:
        yield np.ascontiguousarray(array, dtype=wanted).reshape(-1).view(np.uint8)
        return
    step = max(1, _CHUNK * len(array) // array.nbytes)
    if step == 1 and array[0].nbytes > _CHUNK:
        for row in array:
            yield from pieces(row)
        return
    for start in range(0, len(array), step):
        yield from pieces(array[start : start + step])


def fingerprint_outputs(outputs: Outputs) -> str:
    """Return a text that differs for different output directions."""
    if outputs.weights is None:
        return f"{outputs.mode} {outputs.index}"
    digest = hashlib.blake2b(digest_size=_BYTES)
    update(digest, Host(outputs.weights, "float64"))
    return f"{outputs.mode} {digest.hexdigest()}"
