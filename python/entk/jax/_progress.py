"""Progress of the front end: a callable, a bar if tqdm is there, or a line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Self

from entk._errors import InputError
from entk._patience import patient


class Report:
    """Tell how many of n things are done; n may grow."""

    def __init__(
        self,
        progress: bool | Callable[[int, int], None],  # noqa: FBT001
        n: int,
        unit: str = "examples",
    ) -> None:
        self._n = n
        self._bar: Any = None
        self._call: Callable[[int, int], None] | None = None
        if callable(progress):
            self._call = patient(progress, "the progress function")
        elif not isinstance(progress, bool):
            raise InputError(f"progress must be True, False or a function (got {progress!r})")
        elif progress:
            self._bar = _bar(n, unit)
            self._call = None if self._bar is not None else _line

    def __enter__(self) -> Self:
        """Show that nothing is done yet."""
        if self._call is not None:
            self._call(0, self._n)
        return self

    def __call__(self, done: int, n: int | None = None) -> None:
        """Show that `done` are finished."""
        if self._call is not None:
            self._call(done, self._n if n is None else n)
        elif self._bar is not None:
            self._bar.update(done - self._bar.n)

    def __exit__(self, *error: object) -> None:
        """End the bar or line."""
        if self._bar is not None:
            self._bar.close()
        elif self._call is _line:
            sys.stderr.write("\n")


def _bar(n: int, unit: str) -> Any:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return None
    return tqdm(total=n, desc="factors", unit=" " + unit)


def _line(done: int, n: int) -> None:
    sys.stderr.write(f"\rentk: factors of {done:,} of {n:,}")
    sys.stderr.flush()
