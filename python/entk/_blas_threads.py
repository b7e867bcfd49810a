"""How many threads the BLAS libraries of this process use while a call of ours runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def _controller() -> Any:
    # Both copies must be loaded before they are looked for.
    import numpy as np  # noqa: F401
    import scipy.linalg.cython_blas  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def blas_threads(count: int) -> Iterator[bool]:
    """Hold BLAS at `count` threads; yield whether it really is.

    A library may ignore the request, or obey only the first thread that controls it, so the number
    is read back. To be called from the thread that the user calls from.
    """
    controller = _controller()
    with controller.limit(limits=count, user_api="blas"):
        pools = [pool for pool in controller.info() if pool["user_api"] == "blas"]
        yield bool(pools) and all(pool["num_threads"] <= count for pool in pools)
