"""The compiled core: see rust/py. Arguments are checked by the modules that call it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KC",
    "KERNEL_ABI",
    "__version__",
    "assemble",
    "fma_peak",
    "instruction_sets",
    "memory_limit",
    "plan",
    "scan",
    "usable_cores",
]
__version__: str
KERNEL_ABI: int
KC: int

# Bytes of an array with a last axis over the bytes of an element, its type's name, and whether its
# byte order is foreign.
_Array = tuple[NDArray[np.uint8], str, bool]
# ("dense", weight, array), or ("uses", weight, [use, ...]) with the uses
# ("outer", acts, cots, transposed) and ("lookup", ids, cots).
_Leaf = tuple[Any, ...]

def plan(
    rows: list[_Leaf], cols: list[_Leaf] | None, options: Mapping[str, Any]
) -> dict[str, Any]: ...
def assemble(
    rows: list[_Leaf],
    cols: list[_Leaf] | None,
    options: Mapping[str, Any],
    out: NDArray[np.uint8],
    out_double: bool,
    progress: Callable[[int, int], object] | None = None,
) -> bool: ...
def scan(array: _Array, threads: int) -> tuple[list[int] | None, list[int], float]: ...
def instruction_sets() -> list[str]: ...
def usable_cores() -> int: ...
def memory_limit() -> dict[str, Any]: ...
def fma_peak(double: bool, threads: int, isa: str | None, seconds: float) -> float: ...
