"""What a walk over a network finds: sites of parameters, and what was recorded there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from entk.jax._compat import Array
from entk.jax._index import Index
from entk.jax._sites import Use
from entk.jax._views import View


@dataclass(frozen=True)
class Loop:
    """A loop around a site: its number, its length."""

    number: int
    length: int


@dataclass(frozen=True)
class Site:
    """A use of a parameter, with the loops around it from the outside in.

    `shape` and `dtype` are those of the site's output in one step. Loops named in `blocks` slice
    the parameter (stacked layers); the steps of the others are more positions.
    """

    leaf: int
    kind: Literal["outer", "lookup"]
    table: Index
    fold: Callable[[Array], Array]
    what: str
    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[Loop, ...] = ()
    blocks: tuple[int, ...] = ()

    def inside(self, loop: Loop) -> Site:
        """Return the site as seen from outside a loop."""
        return replace(self, loops=(loop, *self.loops))


@dataclass
class Taps:
    """The sites met so far and, where `eps` has an entry for them, what was recorded there."""

    eps: Sequence[Array | None] | None = None
    sites: list[Site] = field(default_factory=list)
    records: list[Array | None] = field(default_factory=list)
    dense: dict[int, str] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    n_loops: int = 0

    def at(self, use: Use, view: View, out: Array) -> Array:
        """Note a use and pass the site's output on, perturbed where asked."""
        eps = None if self.eps is None else self.eps[len(self.sites)]
        site = Site(view.leaf, use.kind, use.table, use.fold, use.what, out.shape, out.dtype)
        self.sites.append(replace(site, blocks=view.loops))
        self.records.append(None if eps is None else use.record())
        return out if eps is None else out + eps

    def make_dense(self, values: Sequence[Any], why: str) -> None:
        """Note that the parameters among `values` are used in a way that keeps no structure."""
        for value in values:
            if isinstance(value, View):
                self.dense.setdefault(value.leaf, why)
