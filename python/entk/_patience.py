"""A message when code of the caller's does not come back: silence would look like our own hang."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 60.0
_END = object()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on standard error, once, when the body has taken a minute."""
    timer = threading.Timer(SECONDS, _say, (what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def patient(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return `function`, with the message."""

    def patiently(*arguments: Any) -> Any:
        with waiting(what):
            return function(*arguments)

    return patiently


def items(source: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield the items of `source`, with the message while one is waited for."""
    rest = iter(source)
    while True:
        with waiting(what):
            item = next(rest, _END)
        if item is _END:
            return
        yield item


def _say(what: str) -> None:
    sys.stderr.write(f"entk: {what} has not returned for {SECONDS:.0f} s; waiting for it\n")
    sys.stderr.flush()
