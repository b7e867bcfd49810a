"""What fits: this LAPACK's integers, and the memory a solver may use."""

from __future__ import annotations

import math
from typing import Final

from entk._errors import MemoryLimitError, SizeError
from entk._options import memory_limit
from entk._plan import in_bytes

INT32: Final = 2**31 - 1
# Below this nobody asks the system what is left: that reads a handful of files.
SMALL: Final = 2**24

# Elements of workspace as LAPACK's own documentation states them; n rows.
WORKSPACE: Final = {
    "eigh of ?syevd": lambda n: 1 + 6 * n + 2 * n * n,
    "eigh of ?syevr": lambda n: 26 * n,
    "cholesky": lambda n: n,
    "lanczos": lambda n: n,
}


def check_lapack(routine: str, n: int, *, columns: int = 1, integers: int = INT32) -> None:
    """Refuse a problem whose workspace overflows the integers of the linked LAPACK.

    SciPy's LAPACK counts in 32 bits. ``?syevd`` needs ``2 n^2 + 6 n + 1`` elements, too many from
    n = 32,767 on, and fails there with wrong or no results; so entk calls ``?syevr``, whose
    workspace is ``26 n``. Matrix entries themselves are addressed in 64 bits.

    Raises
    ------
    SizeError
        Naming the workspace.
    """
    elements = WORKSPACE[routine](n) * columns
    if elements > integers or n > integers:
        raise SizeError(
            f"{routine.split()[0]} workspace of {elements:,} elements exceeds this LAPACK's "
            f"{1 + int(math.log2(integers + 1))}-bit integers; use entk.linalg.eigsh for some "
            "eigenvalues or entk.lowrank for a low-rank factor"
        )


def fits(size: int, memory: int | str | None) -> bool:
    """Whether `size` bytes fit the limit."""
    if memory is None and size <= SMALL:
        return True
    return size <= memory_limit(memory).limit


def require(size: int, memory: int | str | None, what: str, advice: str) -> None:
    """Refuse work that does not fit.

    Raises
    ------
    MemoryLimitError
        Naming what is needed, the limit, and what to do.
    """
    if fits(size, memory):
        return
    limit = memory_limit(memory)
    raise MemoryLimitError(
        f"{what} needs {in_bytes(size)} ({size} bytes), limit {in_bytes(limit.limit)} "
        f"({limit.source}); {advice}"
    )
