"""The compiled core: see rust/py. Arguments are checked by the modules that call it."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KC",
    "KERNEL_ABI",
    "Blas",
    "Layout",
    "StoreLock",
    "TileBatch",
    "TileReader",
    "TileSink",
    "__version__",
    "assemble",
    "blas_plan",
    "crc32c",
    "crc32c_combine",
    "fma_peak",
    "instruction_sets",
    "memory_limit",
    "multiply",
    "multiply_work",
    "npy_header",
    "npy_span",
    "plan",
    "safetensors_header",
    "safetensors_span",
    "scan",
    "sidecar_of",
    "tidy",
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
def multiply(
    rows: list[_Leaf],
    cols: list[_Leaf] | None,
    known: list[NDArray[np.int64] | None],
    options: Mapping[str, Any],
    v: NDArray[Any],
    y: NDArray[Any],
) -> None: ...
def multiply_work(
    rows: list[_Leaf],
    cols: list[_Leaf] | None,
    known: list[NDArray[np.int64] | None],
    options: Mapping[str, Any],
) -> list[int]: ...
def blas_plan(
    rows: list[_Leaf], cols: list[_Leaf] | None, options: Mapping[str, Any]
) -> dict[str, Any]: ...
def scan(arrays: list[_Array], threads: int) -> list[tuple[list[int] | None, list[int], float]]: ...
def instruction_sets() -> list[str]: ...
def usable_cores() -> int: ...
def memory_limit() -> dict[str, Any]: ...
def fma_peak(double: bool, threads: int, isa: str | None, seconds: float) -> float: ...

@final
class Blas:
    def __new__(cls, sgemm: tuple[Any, str], dgemm: tuple[Any, str], wide: bool) -> Blas: ...
    def assemble(
        self,
        rows: list[_Leaf],
        cols: list[_Leaf] | None,
        options: Mapping[str, Any],
        out: NDArray[np.uint8],
        out_double: bool,
        progress: Callable[[int, int], object] | None = None,
    ) -> bool | None: ...

@final
class Layout:
    def __new__(
        cls, format: str, shape: list[int], tile: int, item: int, *, symmetric: bool, lower: bool
    ) -> Layout: ...
    def __len__(self) -> int: ...
    def unit(self, index: int) -> tuple[int, int, int, int, int, int]: ...
    @property
    def tile(self) -> tuple[int, int]: ...
    def array_json(self) -> str: ...

@final
class TileSink:
    def __new__(cls, path: str | os.PathLike[str], layout: Layout, manifest: bytes) -> TileSink: ...
    @property
    def reserved(self) -> bool: ...
    def done(self) -> bytes: ...
    def write(self, index: int, tile: NDArray[np.uint8]) -> None: ...
    def commit(self) -> None: ...
    def take(self) -> TileBatch: ...
    def finish(self, manifest: bytes, replace: bool) -> None: ...

@final
class TileBatch:
    def commit(self) -> None: ...

@final
class TileReader:
    def __new__(
        cls, path: str | os.PathLike[str], layout: Layout, side: str | os.PathLike[str]
    ) -> TileReader: ...
    def done(self) -> bytes: ...
    def block(
        self,
        out: NDArray[np.uint8],
        plane: int,
        index: int,
        rows: tuple[int, int],
        cols: tuple[int, int],
    ) -> None: ...
    def check(self, index: int, *, mirror: bool) -> None: ...

@final
class StoreLock:
    def __new__(cls, path: str | os.PathLike[str], *, shared: bool) -> StoreLock: ...
    @property
    def real(self) -> bool: ...
    def release(self) -> None: ...

def tidy(path: str | os.PathLike[str]) -> None: ...
def sidecar_of(path: str | os.PathLike[str]) -> Path: ...
def crc32c(bytes: NDArray[np.uint8], start: int = 0) -> int: ...
def crc32c_combine(first: int, second: int, length: int) -> int: ...
def npy_span(first: bytes) -> int: ...
def npy_header(bytes: bytes) -> dict[str, Any]: ...
def safetensors_span(first: bytes, length: int) -> int: ...
def safetensors_header(header: bytes, length: int) -> dict[str, Any]: ...
