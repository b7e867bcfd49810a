"""Batches: how large they may be, and how their progress is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from entk._errors import InputError, MemoryLimitError
from entk.torch._network import Network
from entk.torch._plan import Plan

_LARGEST = 1024
"""Examples in a batch chosen here: larger batches are not faster, and answer Ctrl-C later."""

_WORKING = 1 << 30
"""Bytes of working memory a batch chosen here may take without `memory=`."""


def batch_size(
    given: int | None, n: int, working: Callable[[], int], result: int, memory: int | None
) -> int:
    """Return the number of examples in a batch.

    `working` tells the bytes that an example takes on the way, `result` are those in the result,
    `memory` is the user's bound on both together.
    """
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise InputError(f"batch_size must be an integer >= 1 or None (got {given!r})")
    one = working() if given is None or memory is not None else 0
    limit = available() if memory is None else memory
    if n * result + min(n, 1) * one > limit:
        raise MemoryLimitError(
            f"factors of {n:,} examples need at least {n * result + one:,} bytes ({result:,} an "
            f"example, {one:,} on the way); the limit is {limit:,}. Write them to disk "
            "(entk.torch.write_factors), ask for fewer outputs, or allow more memory"
        )
    if given is not None:
        return min(given, max(n, 1))
    budget = min(_WORKING, limit // 2) if memory is None else memory - n * result
    size = max(1, min(n, _LARGEST, budget // max(1, one)))
    return -(-n // -(-n // size)) if n else 1


def working_bytes(network: Network, plan: Plan, tensors: Sequence[Tensor], rows: int) -> int:
    """Return about how many bytes one example takes on its way through a batch.

    What autograd saves of the forward pass, twice over for what it makes of it, and the factors
    of all leaves with the buffers that they are copied from.
    """
    saved: dict[int, int] = {}

    def seen(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return t

    free = {k: p.detach().requires_grad_() for k, p in network.parameters.items()}
    own = {p.untyped_storage().data_ptr() for p in (*free.values(), *network.scripted.values())}

    def work() -> None:
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t):
            network.single([t[0] for t in tensors])

    network.substituted(free, work)
    activations = sum(n for pointer, n in saved.items() if pointer not in own)
    made = sum(
        (part.numbers(rows) + sum(use.numbers(rows) for use in part.uses)) * part.dtype.itemsize
        for part in plan.parts
    )
    return 3 * activations + 2 * made


def result_bytes(plan: Plan, rows: int) -> int:
    """Return the bytes that one example takes in the result."""
    return sum(part.numbers(rows) * part.dtype.itemsize for part in plan.parts)


_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def as_bytes(memory: int | str | None) -> int | None:
    """Return the user's bound in bytes."""
    if memory is None:
        return None
    number, unit = (memory[:-3], memory[-3:]) if isinstance(memory, str) else (memory, "")
    try:
        size = int(float(number) * _UNITS[unit]) if unit else int(number)
    except (KeyError, ValueError, TypeError):
        size = 0
    if size <= 0 or isinstance(memory, bool):
        raise InputError(f"memory: {memory!r} not understood (examples: '4GiB', 4_000_000_000)")
    return size


def available() -> int:
    """Return the bytes that this process may still take."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def reporter(
    progress: bool | Callable[[int, int], None],  # noqa: FBT001
    n: int,
) -> Iterator[Callable[[int, int], None]]:
    """Give a function ``(done, all)`` that shows the progress that was asked for."""
    if callable(progress):
        progress(0, n)
        yield progress
        return
    bar = _bar(n) if progress else None
    try:
        yield (lambda done, _: bar.update(done - bar.n)) if bar is not None else _silent
    finally:
        if bar is not None:
            bar.close()


def _silent(_: int, __: int) -> None:
    """Show nothing."""


def _bar(n: int) -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    return tqdm(total=n, unit="example")
