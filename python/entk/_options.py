"""Arguments that say how a kernel is computed: sizes, threads, memory, types."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from entk import _core
from entk._errors import DTypeError, InputError
from entk._factors import Factors
from entk._patience import patient

Progress: TypeAlias = bool | Callable[[int, int], object]

_UNITS = {"B": 1}
_UNITS |= {f"{p}iB": 2 ** (10 * (i + 1)) for i, p in enumerate("KMGTP")}
_UNITS |= {f"{p}B": 10 ** (3 * (i + 1)) for i, p in enumerate("KMGTP")} | {"kB": 1000}
MOST_THREADS = 1024
# A default leaves room for what else the process does meanwhile.
_SHARE = 0.8


def integer(value: object, name: str, least: int = 1) -> int:
    """Return an integer argument; booleans, floats and strings are none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} must be an integer >= {least} (got {value!r})")
    if value < least:
        raise InputError(f"{name} must be >= {least} (got {value})")
    return int(value)


def thread_count(threads: object) -> int:
    """Return the number of workers: `threads`, ``ENTK_NUM_THREADS``, or the usable cores."""
    if threads is None:
        given = os.environ.get("ENTK_NUM_THREADS", "").strip()
        if not given:
            return _core.usable_cores()
        if not (given.isascii() and given.isdecimal() and 1 <= int(given) <= MOST_THREADS):
            raise InputError(
                f"ENTK_NUM_THREADS must be between 1 and {MOST_THREADS} (got {given!r})"
            )
        return int(given)
    fine = isinstance(threads, int | np.integer) and not isinstance(threads, bool | np.bool_)
    if not fine or not 1 <= threads <= MOST_THREADS:  # type: ignore[operator]
        raise InputError(f"threads must be None or between 1 and {MOST_THREADS} (got {threads!r})")
    return int(threads)  # type: ignore[call-overload, no-any-return]


def instruction_set() -> str | None:
    """Return the instruction set that ``ENTK_ISA`` forces, if any."""
    given = os.environ.get("ENTK_ISA", "").strip()
    if not given:
        return None
    there = _core.instruction_sets()
    if given not in there:
        raise InputError(f"ENTK_ISA={given!r} is not one of this CPU's: {', '.join(there)}")
    return given


@dataclass(frozen=True)
class Memory:
    """A limit in bytes and where it comes from.

    One that is ours and not the caller's is a `share` of what the process may still use, and
    remembers what fenced the process then: bytes by name.
    """

    limit: int
    source: str
    share: float = 0.0
    fences: Mapping[str, int] = field(default_factory=dict)

    def now(self, held: int = 0) -> Memory:
        """Return the limit as it is now: this one, unless a fence was lowered or put up since.

        That others use more memory than before lowers no fence. `held` bytes of what the call may
        add are in use already.
        """
        if not self.share:
            return self
        lowered = [
            (available, source)
            for source, limit, available in _core.memory_limit()["fences"]
            if limit < self.fences.get(source, math.inf)
        ]
        if not lowered:
            return self
        available, source = min(lowered)
        limit = min(self.limit, int((available + held) * self.share))
        return replace(self, limit=limit, source=f"{source}, lowered during the run")


def memory_limit(memory: object) -> Memory:
    """Return the bytes a call may add: as given, or a safe share of what may still be used."""
    if memory is None:
        found = _core.memory_limit()
        fences = {source: limit for source, limit, _ in found["fences"]}
        return Memory(int(found["available"] * _SHARE), found["source"], _SHARE, fences)
    return Memory(parse_bytes(memory), "memory=")


def parse_bytes(memory: object) -> int:
    """Parse ``"4GiB"``, ``"500MB"``, ``4_000_000_000`` or ``4e9``; refuse everything else."""
    examples = "(examples: '4GiB', 4_000_000_000)"
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*", memory)
        if not found or found[2] not in _UNITS:
            raise InputError(f"memory: {memory!r} not understood {examples}")
        memory = float(found[1]) * _UNITS[found[2]]
    if isinstance(memory, bool | np.bool_) or not isinstance(
        memory, int | float | np.integer | np.floating
    ):
        raise InputError(f"memory: {memory!r} not understood {examples}")
    if not 1 <= memory < 2**63:
        raise InputError(f"memory must be at least one byte (got {memory}) {examples}")
    return int(memory)


def result_dtypes(
    factors: Factors, other: Factors | None, dtype: object, accumulate: object
) -> tuple[str, str]:
    """Return the types of the result and of the accumulators."""
    both = [factors.dtype.name] + ([other.dtype.name] if other is not None else [])
    result = _float("dtype", dtype) or ("float64" if "float64" in both else "float32")
    wide = _float("accumulate", accumulate) or result
    if result == "float64" and wide == "float32":
        raise InputError(
            "accumulate='float32' is narrower than dtype='float64'; accumulate in float64, or ask "
            "for dtype='float32'"
        )
    return result, wide


def _float(name: str, value: object) -> str | None:
    if value is None:
        return None
    try:
        found = np.dtype(value).name  # type: ignore[call-overload]
    except TypeError:
        found = None
    if found not in ("float32", "float64"):
        shown = value if found is None else found
        raise DTypeError(f"{name} must be None, 'float32' or 'float64' (got {shown!r})")
    return str(found)


def choice(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """Return a word that is one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} must be {' or '.join(map(repr, allowed))} (got {value!r})")
    return value


@contextmanager
def reporting(progress: object) -> Iterator[Callable[[int, int], object] | None]:
    """Turn ``progress=`` into a function of what is done and what there is, or None."""
    if progress is None or progress is False:
        yield None
    elif progress is True:
        from entk._progress import Progress as Bar

        with Bar(sys.stderr) as bar:
            yield bar
    elif callable(progress):
        yield patient(progress, "the progress function")
    else:
        raise InputError(f"progress must be True, False or a function (got {progress!r})")
