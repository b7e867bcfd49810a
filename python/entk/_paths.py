"""Names of stores, and reading small files from them without following links."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from entk import _core
from entk._errors import (
    InputError,
    StoreError,
    StoreFormatError,
    StoreIncompleteError,
    UnsafePathError,
)

PARTIAL = ".partial"
LOCK = ".partial.lock"
# What executors read the factors of a call from that has them only in memory.
SHARED = (".partial.factors", ".partial.other")
# Added to a store's name it is that of the lock of the one process that hands its tiles out.
EXECUTOR = ".executor"
FORMATS = ("npy", "zarr")


def kernel_format(path: str) -> str:
    """Return ``"npy"`` or ``"zarr"`` by the end of the name.

    Raises
    ------
    InputError
        For any other name.
    """
    name = os.path.basename(path.rstrip(os.sep))
    stem, _, suffix = name.rpartition(".")
    if suffix not in FORMATS or not stem:
        raise InputError(f"out={path!r}: the name must end in .npy or .zarr")
    return suffix


def clean_name(path: str | os.PathLike[str]) -> str:
    """Return `path` as text without a slash at its end; a directory's name means the same."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise InputError(f"path must be text (got {text!r})")
    if "\0" in text or not text:
        raise InputError(f"{text!r} is not a path")
    return text.rstrip(os.sep) or os.sep


def check_parent(path: str) -> None:
    """Raise unless the directory that is to hold `path` is there."""
    parent = os.path.dirname(path) or "."
    if not os.path.isdir(parent):
        raise StoreError(errno.ENOENT, f"directory {parent} does not exist", path)


def exists(path: str) -> bool:
    """Whether there is anything of that name, a broken link included."""
    return os.path.lexists(path)


def is_dir(path: str) -> bool:
    """Whether `path` is a directory (or leads to one: the user's own links are fine)."""
    return os.path.isdir(path)


def side(path: str) -> str:
    """Return the directory of manifest and log beside a `.npy`."""
    return str(_core.sidecar_of(path))


def read_small(path: str | Path, most: int) -> bytes:
    """Read a plain file of at most `most` bytes.

    Raises
    ------
    UnsafePathError
        If it is a link.
    StoreFormatError
        If it is no plain file, or longer.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise StoreFormatError(f"{path} is not a plain file")
            if found.st_size > most:
                raise StoreFormatError(
                    f"{path} is {found.st_size:,} bytes; at most {most:,} are read"
                )
            # Not `most`: room for so much would be allocated, whatever the file holds.
            return file.read(found.st_size)
    except StoreError:
        raise
    except OSError as error:
        raise opening(path, error) from error


def opening(path: str | Path, error: OSError) -> StoreError:
    """Return the package's error for one that opening `path` met."""
    if error.errno == errno.ELOOP:
        return UnsafePathError(
            f"{path} is a symbolic link; the entries of a store must be plain files"
        )
    if error.errno == errno.ENOENT:
        return StoreIncompleteError(errno.ENOENT, "no such file", str(path))
    return StoreError(error.errno, error.strerror or "cannot be opened", str(path))


def replace(path: str, data: bytes) -> None:
    """Write a small file so that either the old one or the whole new one is there."""
    temporary = f"{path}.{os.getpid()}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        write_all(handle, data, 0)
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(temporary, path)
    sync_dir(os.path.dirname(path) or ".")


@contextlib.contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Keep others out who make or finish a store in this directory; for moments only."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # A file system without locks has said so already, when the job took its own.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_all(handle: int, data: bytes | memoryview, at: int) -> None:
    """Write all of `data` at byte `at`, however little the system takes at a time."""
    view = memoryview(data)
    while view:
        count = os.pwrite(handle, view, at)
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, at = view[count:], at + count


def sync_dir(path: str) -> None:
    """Make the names in a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a directory and do not need to.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)
