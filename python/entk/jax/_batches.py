"""Batches: how large, in which order, and their results on the host.

One compiled function serves all batches: the last one is filled up with copies of its last example
and cut. A batch is dispatched before the one before it is copied, so that the device works while
the host copies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from entk import _options
from entk._errors import InputError, MemoryLimitError

Host: TypeAlias = NDArray[Any]

_LARGEST = 4096
_WORKING = 1 << 30
"""Examples and bytes of a batch chosen here without `memory=`; larger ones are hardly faster."""

_AT_ONCE = 96 << 20
_CACHED = 48 << 20
_FEWEST = 32
"""Bytes, as `working` counts them, of one batch and of several, and least examples of these, on a
processor. Larger batches leave its caches between one layer and the next, and their results are
new pages every time: the convolutional network of `benches/extraction.py` takes a third longer with
256 examples at once than with 64 at a time."""

_ALONE = 4 << 20
"""Bytes from which an array has memory of its own."""

_AHEAD = 2
"""Batches that are dispatched while the host copies one."""


def fastest_batch(n: int, working: int, leaves: Sequence[Any]) -> int:
    """Return the examples of a batch that a device works on fastest.

    On a processor a few examples at a time stay in its caches; but a batch is worth reading the
    parameters for, which are transposed on the way. What is small is done at once and not copied.
    """
    on_processor = all(d.platform == "cpu" for leaf in leaves for d in leaf.devices())
    if not on_processor or n * working <= _AT_ONCE:
        return _LARGEST
    target = max(_CACHED, 2 * sum(int(leaf.nbytes) for leaf in leaves))
    return min(_LARGEST, max(_FEWEST, target // max(1, working)))


def choose_batch(
    given: int | None,
    n: int,
    working: int,
    result: int,
    memory: int | str | None,
    fastest: int = _LARGEST,
) -> int:
    """Return the number of examples in a batch.

    `working` and `result` are the bytes of an example on the way and in the result; `memory` bounds
    both together. Batches are made even, so that the last one is not mostly padding.
    """
    if given is not None and (
        isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1
    ):
        raise InputError(f"batch_size must be an integer >= 1 or None (got {given!r})")
    allowed = _options.memory_limit(memory)
    asked = 1 if given is None else min(int(given), n)
    working *= min(1 + _AHEAD, -(-n // asked))  # of the batches under way at one time
    needed = n * result + (0 if memory is None else asked * working)
    if needed > allowed.limit:
        raise MemoryLimitError(
            f"factors of {n:,} examples need at least {needed:,} bytes ({result:,} an example, and"
            f" {working:,} for every one in a batch); the limit is {allowed.limit:,}"
            f" ({allowed.source}). Allow more, take smaller batches, or write factors to disk"
            " (entk.jax.write_factors)"
        )
    left = 2 * _WORKING if memory is None else allowed.limit - n * result
    size = min(n, fastest, max(1, left // max(1, working)) if given is None else asked)
    return -(-n // -(-n // int(size)))


def run_batches(
    n: int, size: int, dispatch: Callable[[int, int], Any]
) -> Iterator[tuple[int, int, list[Host]]]:
    """Yield (start, stop, arrays on the host) of every batch, the next ones at work already."""
    ahead: deque[tuple[int, int, Any]] = deque()
    for start in range(0, n, size):
        stop = min(start + size, n)
        with _Named(start, stop):
            results = jax.tree.leaves(dispatch(start, stop))
            for array in results:
                array.copy_to_host_async()
        ahead.append((start, stop, results))
        if len(ahead) > _AHEAD:
            yield _landed(*ahead.popleft())
    while ahead:
        yield _landed(*ahead.popleft())


def gather(n: int, batches: Iterator[tuple[int, int, list[Host]]]) -> Iterator[tuple[int, Any]]:
    """Fill host arrays of n examples; yield (examples done, arrays) after every batch.

    A single batch is handed on as it is, without a copy.
    """
    arrays: list[Host] = []
    for start, stop, landed in batches:
        if stop - start == n:
            arrays = landed
        else:
            if not arrays:
                arrays = _room(n, landed)
            for whole, piece in zip(arrays, landed, strict=True):
                whole[start:stop] = piece
        yield stop, arrays


def _room(n: int, landed: Sequence[Host]) -> list[Host]:
    """Return arrays of n examples like those of a batch; small ones in one piece of memory.

    NumPy asks for large pages from 4 MiB on; touching small ones for the first time takes longer
    than filling them.
    """
    sizes = [n * array[0].nbytes for array in landed]
    ends = np.cumsum([-(-size // 64) * 64 if size < _ALONE else 0 for size in sizes])
    shared = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    arrays: list[Host] = []
    for array, size, end in zip(landed, sizes, ends, strict=True):
        shape = (n, *array.shape[1:])
        if size < _ALONE:
            start = int(end) - -(-size // 64) * 64
            arrays.append(shared[start : start + size].view(array.dtype).reshape(shape))
        else:
            arrays.append(np.empty(shape, array.dtype))
    return arrays


def _landed(start: int, stop: int, results: list[Any]) -> tuple[int, int, list[Host]]:
    with _Named(start, stop):
        return start, stop, [np.asarray(array)[: stop - start] for array in results]


class _Named:
    """Say in an error which examples were being worked on."""

    def __init__(self, start: int, stop: int) -> None:
        self.where = f"examples {start} to {stop - 1}"

    def __enter__(self) -> None:
        """Nothing to set up."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        if "RESOURCE_EXHAUSTED" in str(error):
            raise MemoryLimitError(
                f"the device ran out of memory on {self.where}; pass a smaller batch_size"
            ) from error
        error.add_note(f"entk was taking the factors of {self.where}")
