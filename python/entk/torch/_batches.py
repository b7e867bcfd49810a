"""Batches: how large they may be, and how their progress is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from entk import _options
from entk._errors import MemoryLimitError
from entk._patience import patient
from entk.torch._network import Network
from entk.torch._plan import Plan

_LARGEST = 1024
"""Examples in a batch chosen here: larger batches are not faster, and answer Ctrl-C later."""

_WORKING = 1 << 29
"""Bytes of working memory a batch chosen here may take without `memory=`.

Of twice as much, single buffers pass 32 MiB, which the C library gives back to the system after
each use and pages in again: measured, a third more time for a network of convolutions.
"""


def checked(batch_size: int | None, memory: int | str | None) -> None:
    """Raise `InputError` for sizes that are none, before any work."""
    if batch_size is not None:
        _options.integer(batch_size, "batch_size")
    if memory is not None:
        _options.parse_bytes(memory)


def batch_size(
    given: int | None,
    n: int,
    working: Callable[[], int],
    result: int,
    fixed: int,
    memory: int | str | None,
    device: torch.device,
) -> int:
    """Return the number of examples in a batch.

    `working` tells the bytes that an example takes on the way, `result` are those in the result,
    `fixed` those of copies of the parameters, `memory` is the user's bound on all together.
    """
    one = working() if given is None or memory is not None else 0
    allowed = _options.memory_limit(memory)
    least = n * result + min(n, 1) * one + fixed
    if least > allowed.limit:
        raise MemoryLimitError(
            f"factors of {n:,} examples need at least {least:,} bytes ({result:,} an example, "
            f"{one:,} on the way, {fixed:,} for copies of the parameters); the limit is "
            f"{allowed.limit:,} ({allowed.source}). Write them to disk in smaller batches "
            "(entk.torch.write_factors), ask for fewer outputs, or allow more memory"
        )
    if given is not None:
        return min(given, max(n, 1))
    left = allowed.limit - n * result - fixed
    budget = left if memory is not None else min(_working(device), left // 2)
    size = max(1, min(n, _LARGEST, budget // max(1, one)))
    return -(-n // -(-n // size)) if n else 1


def _working(device: torch.device) -> int:
    """Return the bytes that a batch may take by default; a GPU is there to be filled."""
    if device.type != "cuda":
        return _WORKING
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) // 2


def working_bytes(network: Network, plan: Plan, tensors: Sequence[Tensor], rows: int) -> int:
    """Return about how many bytes one example takes on its way through a batch.

    What autograd saves of the forward pass, twice over for what it makes of it, and the factors
    of all leaves with the buffers that they are copied from.
    """
    example = [t[0] for t in tensors]
    try:
        activations = _saved_bytes(network, example)
    except RuntimeError:  # a network that uses torch.func itself: no hooks can be set
        activations = _output_bytes(network, example)
    made = sum(
        (part.numbers(rows) + sum(use.numbers(rows) for use in part.uses)) * part.dtype.itemsize
        for part in plan.parts
    )
    return 3 * activations + 2 * made


def _saved_bytes(network: Network, example: Sequence[Tensor]) -> int:
    saved: dict[int, int] = {}

    def seen(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return t

    free = {k: p.detach().requires_grad_() for k, p in network.parameters.items()}
    own = {p.untyped_storage().data_ptr() for p in (*free.values(), *network.scripted.values())}

    def work() -> None:
        with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t):
            network.single(example)

    network.substituted(free, work)
    return sum(n for pointer, n in saved.items() if pointer not in own)


class _Outputs(TorchFunctionMode):
    """Sums the sizes of what every operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(
        self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.bytes += out.numel() * out.element_size() if isinstance(out, Tensor) else 0
        return out


def _output_bytes(network: Network, example: Sequence[Tensor]) -> int:
    outputs = _Outputs()

    def work() -> None:
        with outputs:
            network.single(example)

    network.substituted(network.parameters, work)
    return outputs.bytes


def result_bytes(plan: Plan, rows: int) -> int:
    """Return the bytes that one example takes in the result."""
    return sum(part.numbers(rows) * part.dtype.itemsize for part in plan.parts)


@contextmanager
def reporter(
    progress: bool | Callable[[int, int], None],  # noqa: FBT001
    n: int,
) -> Iterator[Callable[[int, int], None]]:
    """Give a function ``(done, all)`` that shows the progress that was asked for."""
    bar = _bar(n) if progress is True else None
    call = patient(progress, "the progress function") if callable(progress) else None
    most = -1

    def report(done: int, total: int) -> None:
        nonlocal most
        if done <= most:
            return  # a run that began again
        most = done
        if call is not None:
            call(done, total)
        elif bar is not None:
            bar.update(done - bar.n)

    try:
        report(0, n)
        yield report
    finally:
        if bar is not None:
            bar.close()


def _bar(n: int) -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    return tqdm(total=n, unit="example")
