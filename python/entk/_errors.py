"""Every way a call can fail: one class per kind of fault, each also the fitting built-in error."""

from __future__ import annotations

import numpy as np


class EntkError(Exception):
    """Base class of all errors raised by entk."""


class InputError(EntkError, ValueError):
    """An argument has a wrong shape, range or meaning."""


class DTypeError(EntkError, TypeError):
    """An array or argument has a type that cannot be used without losing something silently."""


class NonFiniteError(InputError):
    """An input holds NaN or infinity."""


class SizeError(EntkError, OverflowError):
    """A problem is too large for the arithmetic of array sizes."""


class KernelOverflowError(EntkError, OverflowError):
    """Finite factors gave a kernel entry that overflows its precision."""


class MemoryLimitError(EntkError, MemoryError):
    """The work does not fit the memory limit; the text names the smallest limit that would do."""


class NotPositiveDefiniteError(EntkError, np.linalg.LinAlgError):
    """A factorisation met a pivot that is not positive."""


class ConvergenceError(EntkError, RuntimeError):
    """An iteration stopped short of its tolerance; the best iterate is attached as `best`."""

    best: object = None


class StoreError(EntkError, OSError):
    """A file or store could not be read or written."""


class StoreCorruptError(StoreError):
    """Stored bytes do not match their checksum or their promised length."""


class StoreFormatError(StoreError):
    """A file is not in a format this version reads."""


class StoreIncompleteError(StoreError):
    """A store lacks tiles, chunks or files."""


class StoreLockedError(StoreError):
    """Another process is writing the store."""


class StoreMismatchError(StoreError):
    """A store belongs to another problem."""


class StoreSpaceError(StoreError):
    """The disk is full, or too small for the result."""


class UnsafePathError(StoreError):
    """A store names a path outside itself."""


class UnsafeFileError(StoreError):
    """Reading the file could run code."""


class WorkerLostError(EntkError, RuntimeError):
    """A tile failed on several workers."""


class ForkedProcessError(EntkError, RuntimeError):
    """A handle was used in a forked child of the process that opened it."""


class InputChangedError(EntkError, OSError):
    """An input file changed while it was being read."""


class ModelError(EntkError, ValueError):
    """A network has no exact per-example gradient, or none that can be found."""


class ModelWarning(UserWarning):
    """Factors are exact, but something about the network is probably not what was meant."""


class InternalError(EntkError, RuntimeError):
    """A bug in entk."""
