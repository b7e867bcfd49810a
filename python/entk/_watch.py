"""Noticing that a mapped input file is changed while it is read.

A file that is replaced by renaming is no change: the one that was opened is used to the end. A file
that is shortened below a page being read ends the process (the system's SIGBUS): mapping is for
files that nobody writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from entk import _out
from entk._errors import InputChangedError
from entk._problem import Problem

_State = tuple[int, int, int]


class Watch:
    """The files that a problem's arrays are mapped from, as they were at the start."""

    def __init__(self, problem: Problem) -> None:
        arrays = (part.host.array for _, part in _out.arrays(problem))
        names = {name for array in arrays for name in _files(array)}
        self._files = {name: state for name in names if (state := _state(name)) is not None}

    def check(self) -> None:
        """Compare.

        Raises
        ------
        InputChangedError
            If a file was written to since.
        """
        for name, before in self._files.items():
            now = _state(name)
            if now is not None and now != before and now[0] == before[0]:
                raise InputChangedError(
                    f"{name} changed (size {before[1]:,} -> {now[1]:,} bytes, or its time) during "
                    "the run"
                )


def _files(array: np.ndarray[Any, Any]) -> Iterator[str]:
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap) and base.filename is not None:
            yield os.fspath(base.filename)
            return
        base = getattr(base, "base", None)


def _state(name: str) -> _State | None:
    """Inode, size and time of a file; None if there is none of that name any more."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
