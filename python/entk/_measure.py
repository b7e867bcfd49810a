"""What a piece of work cost: seconds, and how far it raised the process's peak memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): resets the peak resident set size to the current one


def resident() -> tuple[int, int]:
    """Return the bytes resident now and at most so far (Linux), or the peak twice elsewhere."""
    if STATUS.exists():
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        now, peak = (1024 * int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        return now, peak
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak, peak


def reset_peak() -> None:
    """Forget the peak so far, where the system can; elsewhere a growth below it is not seen."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text(RESET_PEAK)


class Cost:
    """Measure a block: ``with Cost() as cost: ...`` then `cost.seconds`, `cost.peak_bytes`.

    `peak_bytes` is the growth of the peak resident memory over what was resident at the start: what
    the block added, its result included, and not what was there before.
    """

    seconds: float = 0.0
    peak_bytes: int = 0

    def __enter__(self) -> Self:
        """Start the clock and forget the peak so far."""
        reset_peak()
        self._before, _ = resident()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Read the clock and the peak."""
        self.seconds = time.perf_counter() - self._started
        _, peak = resident()
        self.peak_bytes = max(0, peak - self._before)
