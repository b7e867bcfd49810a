"""Progress of a long assembly: a bar on a terminal, a few lines in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from types import TracebackType

BAR = 30
LOG_EVERY = 60.0  # seconds between lines of a log, when no tenth of the work was passed


def clock(seconds: float) -> str:
    """Write seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """A progress callback ``(done_tiles, all_tiles)`` that knows whether a person is watching.

    Parameters
    ----------
    stream
        Where to write; asked once whether it is a terminal.
    quiet
        Write nothing.
    """

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._terminal = stream.isatty()
        self._started = time.monotonic()
        self._first: int | None = None
        self._tenth = -1
        self._said = self._started
        self._drawn = False

    def __enter__(self) -> Self:
        """Start the clock."""
        self._started = self._said = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the bar's line, so that what is printed next starts a new one."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` tiles are finished."""
        if self._quiet:
            return
        if self._first is None:
            self._first = done
        if self._terminal:
            self._draw(done, total)
        else:
            self._log(done, total)

    def _draw(self, done: int, total: int) -> None:
        filled = BAR * done // total if total else BAR
        bar = "#" * filled + "." * (BAR - filled)
        self._stream.write(f"\r[{bar}] {self._words(done, total)}\x1b[K")
        self._stream.flush()
        self._drawn = True

    def _log(self, done: int, total: int) -> None:
        now = time.monotonic()
        tenth = 10 * done // total if total else 10
        if tenth == self._tenth and now - self._said < LOG_EVERY:
            return
        self._tenth, self._said = tenth, now
        self._stream.write(f"entk: {self._words(done, total)}\n")
        self._stream.flush()

    def _words(self, done: int, total: int) -> str:
        share = 100.0 * done / total if total else 100.0
        passed = time.monotonic() - self._started
        words = f"{done}/{total} tiles, {share:.0f} %, {clock(passed)}"
        fresh = done - (self._first or 0)
        if fresh and done < total:
            words += f", about {clock(passed / fresh * (total - done))} left"
        return words
