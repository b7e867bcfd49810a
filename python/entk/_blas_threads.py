"""How many threads the BLAS libraries of this process use while a call of ours runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from entk._interrupts import certainly, undisturbed


@cache
def _controller() -> Any:
    # Both copies must be loaded before they are looked for.
    import numpy as np  # noqa: F401
    import scipy.linalg.cython_blas  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _Limit:
    """The limit of the process: the first of several calls sets it, the last one lifts it.

    A limit belongs to the process, so a second call that saved and restored for itself would bring
    back the first one's limit for good.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders: set[object] = set()
        self.limiter: Any = None

    def take(self, holder: object, count: int) -> bool:
        """Set the limit unless somebody holds one; return whether BLAS has `count` or fewer."""
        with self.lock:
            controller = _controller()
            if not self.holders:
                self.limiter = controller.limit(limits=count, user_api="blas")
            self.holders.add(holder)
            pools = [pool for pool in controller.info() if pool["user_api"] == "blas"]
            return bool(pools) and all(pool["num_threads"] <= count for pool in pools)

    def release(self, holder: object) -> None:
        """Lift the limit if nobody else needs it; a second time does nothing."""
        with self.lock:
            if holder in self.holders:
                self.holders.remove(holder)
                if not self.holders:
                    self.limiter.restore_original_limits()
                    self.limiter = None


_LIMIT = _Limit()


@contextmanager
def blas_threads(count: int) -> Iterator[bool]:
    """Hold BLAS at `count` threads; yield whether it really is.

    A library may ignore the request, or obey only the first thread that controls it, so the number
    is read back. To be called from the thread that the user calls from.
    """
    holder = object()
    try:
        with undisturbed():
            held = _LIMIT.take(holder, count)
        yield held
    finally:
        certainly(lambda: _LIMIT.release(holder))
