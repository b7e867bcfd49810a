"""How many examples a batch has: by what a device works on fastest, and by memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from entk import _options
from entk._errors import InputError, MemoryLimitError

UNDER_WAY = 4
"""Most batches at work at one time, however many cores there are: sizes depend on no machine."""

_LARGEST = 4096
_WORKING = 1 << 30
"""Examples and bytes of a batch chosen here without `memory=`; larger ones are hardly faster."""

_AT_ONCE = 96 << 20
_CACHED = 40 << 20
_FEWEST = 16
"""Bytes, as `working` counts them, of one batch and of several, and least examples of these, on a
processor. Larger batches leave its caches between one layer and the next, their results are new
pages every time, and fewer run side by side."""


def fastest_batch(n: int, working: int, leaves: Sequence[Any]) -> int:
    """Return the examples of a batch that a device works on fastest.

    On a processor a few examples at a time stay in its caches; but a batch is worth reading the
    parameters for, which are transposed on the way. What is small is done at once and not copied.
    """
    on_processor = all(d.platform == "cpu" for leaf in leaves for d in leaf.devices())
    if not on_processor or n * working <= _AT_ONCE:
        return _LARGEST
    target = max(_CACHED, 2 * sum(int(leaf.nbytes) for leaf in leaves))
    size = min(_LARGEST, max(_FEWEST, target // max(1, working)))
    batches = -(-n // size)
    if batches > 2:  # so that none of those that run side by side waits for the last one
        batches += -batches % UNDER_WAY
    return -(-n // batches)


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
    working *= min(UNDER_WAY, -(-n // asked))
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
