"""What a walk over a network finds: sites of parameters, and what was recorded there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from entk.jax._compat import Array
from entk.jax._index import Index
from entk.jax._joins import Box, tables
from entk.jax._sites import Use
from entk.jax._views import Spread, View


@dataclass(frozen=True)
class Loop:
    """A loop around a site: its number, its length."""

    number: int
    length: int


@dataclass(frozen=True)
class Site:
    """A use of a parameter, with the loops around it from the outside in.

    `shape` and `dtype` are those of the site's output in one step, which `fold` repeats `copies`
    times. Loops named in `blocks` slice the parameter (stacked layers); the steps of the others are
    more positions. `whole` is the shape of the table of what is used there. A parameter that is
    only a part of that has a `box` of it, and shares the record and the perturbation of the site
    `back` places before.
    """

    leaf: int
    kind: Literal["outer", "lookup"]
    table: Index
    fold: Callable[[Array], Array]
    what: str
    shape: tuple[int, ...]
    dtype: Any
    whole: tuple[int, ...]
    copies: int = 1
    loops: tuple[Loop, ...] = ()
    blocks: tuple[int, ...] = ()
    box: Box | None = None
    back: int = 0

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
    spread: Spread = field(default_factory=dict)

    def at(self, use: Use, view: View, out: Array) -> list[Array] | None:
        """Note a use and pass the site's output on, perturbed where asked.

        None for a use of joined parameters that do not come apart.
        """
        found = tables(view, use.table)
        if found is None or (use.kind == "lookup" and len(found) > 1):
            return None
        eps = None if self.eps is None else self.eps[len(self.sites)]
        what, whole = (use.what, out.shape, out.dtype), use.table.shape
        for back, (leaf, table, box) in enumerate(found):
            site = Site(leaf, use.kind, table, use.fold, *what, whole, use.copies)
            self.sites.append(replace(site, blocks=view.loops, box=box, back=back))
            self.records.append(None if eps is None or back else use.record())
        return [out if eps is None else out + eps]

    def make_dense(self, values: Sequence[Any], why: str) -> None:
        """Note that the parameters among `values` are used in a way that keeps no structure."""
        for value in values:
            for leaf in value.leaves if isinstance(value, View) else ():
                self.dense.setdefault(leaf, why)
