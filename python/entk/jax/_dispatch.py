"""Batches at work: several at a time, their results put together on the host.

One compiled function serves all batches: the last one is filled up with copies of its last example
and cut. A device has the next batches waiting while the host copies. On a processor batches run
side by side, each in a thread of its own: XLA gives one batch of convolutions, or of anything
small, to a single core, and runs what one thread asks for in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from entk._errors import MemoryLimitError
from entk._interrupts import undisturbed
from entk.jax._batches import UNDER_WAY

Host: TypeAlias = NDArray[Any]

Begin: TypeAlias = Callable[[int, int], Callable[[], Sequence[Any]]]
"""Gives the batch of examples start to stop to the device; returns what waits for its results."""

_ALONE = 4 << 20
"""Bytes from which an array has memory of its own."""


def run_batches(
    n: int, size: int, begin: Begin, results: Sequence[Any], threads: int
) -> Generator[tuple[int, list[Host]]]:
    """Yield (examples done, arrays) after every batch; the arrays have all n examples.

    `results` are the shapes and types of the results for one example. A single batch is handed on
    as it is, without a copy. None is at work any more when the iterator is closed.
    """
    if size >= n:
        with _Named(0, n):
            landed = [np.asarray(array)[:n] for array in begin(0, n)()]
        yield n, landed
        return
    arrays = _room(n, results)
    with ThreadPoolExecutor(min(threads, UNDER_WAY), "entk-batch") as workers:
        ahead: deque[tuple[int, Future[None]]] = deque()
        try:
            for start in range(0, n, size):
                stop = min(start + size, n)
                with _Named(start, stop):
                    wait = begin(start, stop)
                with undisturbed():  # or a thread could start that nobody knows of
                    ahead.append((stop, workers.submit(_land, wait, arrays, start, stop)))
                if len(ahead) == UNDER_WAY:
                    yield _landed(ahead, arrays)
            while ahead:
                yield _landed(ahead, arrays)
        finally:
            workers.shutdown(cancel_futures=True)


def _landed(ahead: deque[tuple[int, Future[None]]], arrays: list[Host]) -> tuple[int, list[Host]]:
    stop, batch = ahead.popleft()
    batch.result()
    return stop, arrays


def _land(wait: Callable[[], Sequence[Any]], arrays: Sequence[Host], start: int, stop: int) -> None:
    with _Named(start, stop):
        for whole, piece in zip(arrays, wait(), strict=True):
            whole[start:stop] = np.asarray(piece)[: stop - start]


def _room(n: int, results: Sequence[Any]) -> list[Host]:
    """Return flat arrays of n examples; small ones in one piece of memory.

    NumPy asks for large pages from 4 MiB on; touching small ones for the first time takes longer
    than filling them.
    """
    widths = [int(np.prod(one.shape)) for one in results]
    sizes = [n * width * one.dtype.itemsize for width, one in zip(widths, results, strict=True)]
    ends = np.cumsum([-(-size // 64) * 64 if size < _ALONE else 0 for size in sizes])
    shared = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    arrays: list[Host] = []
    for width, one, size, end in zip(widths, results, sizes, ends, strict=True):
        if size < _ALONE:
            start = int(end) - -(-size // 64) * 64
            arrays.append(shared[start : start + size].view(one.dtype).reshape(n, width))
        else:
            arrays.append(np.empty((n, width), one.dtype))
    return arrays


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
