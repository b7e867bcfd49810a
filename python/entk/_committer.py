"""Tiles that are written are made safe in groups, behind the writing."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from entk import _core
from entk._arrays import AnyArray

# Written tiles are made safe together: after so many bytes or seconds, or one a thread, whichever
# comes first. Together, because tiles that are neighbours reach the disk in longer runs.
_COMMIT_BYTES = 1 << 26
_COMMIT_SECONDS = 2.0


class Committer:
    """Writes tiles and makes them safe in groups, one group while the next is written.

    So at most ``2 * most`` tiles are written and not safe.
    """

    def __init__(self, sink: _core.TileSink, most: int) -> None:
        self._sink = sink
        self._most = most
        self._count = self._bytes = 0
        self._since = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="entk-sync")
        self._running: Future[None] | None = None

    def __enter__(self) -> Committer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, index: int, tile: AnyArray) -> None:
        """Write a tile, and start a commit if enough has come together."""
        self._sink.write(index, tile.reshape(-1).view(np.uint8))
        self._count += 1
        self._bytes += tile.nbytes
        late = time.monotonic() - self._since > _COMMIT_SECONDS
        if self._count >= self._most or self._bytes >= _COMMIT_BYTES or late:
            self.commit()

    def commit(self) -> None:
        """Start to make safe what was written, when the group before is."""
        self.settle()
        self._count = self._bytes = 0
        self._running = self._pool.submit(self._sink.take().commit)
        self._since = time.monotonic()

    def settle(self) -> None:
        """Wait for the group that is being made safe."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()
