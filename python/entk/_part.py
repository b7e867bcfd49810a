"""The arrays of a leaf: as given, and as views with every axis present."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from entk._arrays import Host

ACTS = "activations"
COTS = "output gradients"
JAC = "Jacobian"
IDS = "ids"


@dataclass(frozen=True)
class Part:
    """One array of a leaf.

    Attributes
    ----------
    word : str
        What messages call it: ``"activations"``.
    host : Host
        The view with every axis present.
    axes : tuple of int
        Which of these axes the array had as given.
    """

    word: str
    host: Host
    axes: tuple[int, ...]

    def given(self) -> Host:
        """Return the array with the axes it was given with."""
        missing = tuple(a for a in range(self.host.array.ndim) if a not in self.axes)
        return self.host.view(np.squeeze(self.host.array, axis=missing))

    def index(self, full: Sequence[int]) -> tuple[int, ...]:
        """Turn an index into the full view into one into the array as given."""
        return tuple(int(full[a]) for a in self.axes)


def spread(array: Host, present: tuple[int, ...], word: str) -> Part:
    """Insert axes of length 1 so that the axes given stand at `present`."""
    missing = tuple(a for a in range(present[-1] + 1) if a not in present)
    return Part(word, array.view(np.expand_dims(array.array, missing)), present)


class BaseLeaf:
    """What the kinds share: arrays as given, and their full views once they are checked."""

    kind: ClassVar[str]
    _views: tuple[Part, ...] | None

    def _check(self, where: str) -> tuple[Part, ...]:
        raise NotImplementedError

    def _rebuild(self, change: Callable[[Part], object]) -> Self:
        """Return a leaf of the same kind whose arrays are ``change(part)``."""
        raise NotImplementedError

    def _bind(self, where: str) -> None:
        """Check the arrays, with messages that begin with `where`."""
        if self._views is None:
            self._views = self._check(where)

    @property
    def _parts(self) -> tuple[Part, ...]:
        self._bind(f"{self.kind} leaf:")
        assert self._views is not None
        return self._views

    @property
    def _n(self) -> int:
        return self._parts[0].host.shape[0]

    @property
    def _rows(self) -> int:
        return self._parts[-1].host.shape[1]

    @property
    def _nbytes(self) -> int:
        return sum(p.host.nbytes for p in self._parts)

    @property
    def _signature(self) -> tuple[object, ...]:
        """What must agree for two leaves to meet in one kernel."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{self.kind}({self._summary()})"

    def _summary(self) -> str:
        return ", ".join(
            f"{p.word} {'x'.join(map(str, p.given().shape))} {p.host.dtype}" for p in self._parts
        )
