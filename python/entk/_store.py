"""What is on disk, from outside: `open`, and writing factors."""

from __future__ import annotations

import os

from entk import _foreign, _paths
from entk._errors import StoreFormatError, StoreIncompleteError
from entk._factor_store import open_factors as open_factors
from entk._factors import Factors
from entk._kernel import Kernel
from entk._writer import FactorWriter as FactorWriter

# Bytes of factors that `save_factors` writes as one batch.
_BLOCK = 1 << 26


def open(path: str | os.PathLike[str], *, partial: bool = False) -> Kernel | Factors:
    """Open what is there: a kernel or factors.

    Parameters
    ----------
    path : str or path
        A kernel (``"K.npy"``, ``"K.zarr"``), a factor store, or a safetensors file whose tensors
        are named ``leaf/acts``, ``leaf/cots``, ``leaf/jac``, ``leaf/ids``.
    partial : bool, default False
        Look at an unfinished kernel.

    Returns
    -------
    Kernel or Factors
        The arrays of factors are mapped read-only, not read into memory.

    Raises
    ------
    StoreIncompleteError
        Nothing there, or unfinished.
    StoreFormatError, StoreCorruptError, UnsafePathError, UnsafeFileError
        It is not what it says to be, or reading it could do harm.

    Notes
    -----
    Opening runs no code from the store. Opening factors reads them once, to compare all checksums.
    """
    name = _paths.clean_name(path)
    _foreign.refuse_pickles(name)
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return _foreign.factors_of_tensors(name)
    if os.path.isfile(f"{name}/manifest.json"):
        return open_factors(name)
    ends = tuple(f".{fmt}{end}" for fmt in _paths.FORMATS for end in ("", _paths.PARTIAL))
    if name.endswith(ends):
        return Kernel(name, partial=partial)
    if _paths.exists(name):
        raise StoreFormatError(f"{name} is neither a kernel (.npy, .zarr) nor a factor store")
    unfinished = f"{name}{_paths.PARTIAL}"
    more = f" ({unfinished} is unfinished)" if _paths.exists(unfinished) else ""
    raise StoreIncompleteError(f"{name} does not exist{more}")


def save_factors(factors: Factors, path: str | os.PathLike[str]) -> None:
    """Write factors to a new factor store, a bounded number of rows at a time."""
    with FactorWriter(path) as writer:
        step = max(1, _BLOCK * factors.n // max(1, factors.nbytes))
        for start in range(0, max(factors.n, 1), step):
            writer.append(factors.take(slice(start, start + step)))
        writer.finish()
