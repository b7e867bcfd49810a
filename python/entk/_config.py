"""What this installation runs on."""

from __future__ import annotations

import sys
from typing import Any

from entk import _core, _options


def show_config() -> None:
    """Print version, kernel ABI, instruction sets, threads, memory limit and BLAS.

    ``ENTK_ISA`` (portable, avx2, avx512 or neon) forces an instruction set, ``ENTK_NUM_THREADS``
    the number of workers; neither changes a bit of any result.

    Examples
    --------
    >>> import entk
    >>> entk.show_config()  # doctest: +ELLIPSIS
    entk ... (kernel ABI ...)
    ...
    """
    for name, value in config().items():
        sys.stdout.write(f"{name:<18}{value}\n" if name else f"{value}\n")


def config() -> dict[str, Any]:
    """Return what `show_config` prints; the first line has an empty name."""
    from entk._plan import in_bytes

    memory = _options.memory_limit(None)
    chosen = _options.instruction_set() or _core.instruction_sets()[-1]
    return {
        "": f"entk {_core.__version__} (kernel ABI {_core.KERNEL_ABI})",
        "instruction set": f"{chosen} (of {', '.join(_core.instruction_sets())})",
        "threads": _options.thread_count(None),
        "memory limit": f"{in_bytes(memory.limit)} ({memory.source})",
        "BLAS": _blas(),
        "Python": sys.version.split()[0],
    }


def _blas() -> str:
    # SciPy brings the library that the "blas" engine and the solvers call.
    import scipy.linalg.cython_blas  # noqa: F401
    import threadpoolctl

    found = threadpoolctl.threadpool_info()
    lines = [
        f"{pool['internal_api']} {pool['version']}, {pool['num_threads']} threads, "
        f"{pool['filepath']}"
        for pool in found
        if pool["user_api"] == "blas"
    ]
    return "; ".join(lines) or "none found"
