"""Ctrl-C at a bad moment: what must be done as a whole is done before it is heard."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold a Ctrl-C back until the block is done. Other threads are never interrupted."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *told: held.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


def certainly(put_back: Callable[[], object]) -> None:
    """Call what puts something back, even if a Ctrl-C comes before it could be held back.

    `put_back` does nothing when it is called again.
    """
    try:
        with undisturbed():
            put_back()
    finally:
        put_back()
