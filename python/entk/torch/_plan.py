"""From the uses of every parameter to the leaves: which uses belong together, and in which form.

Uses of the same entries in the same orientation are one leaf with more positions; of the same
entries in two orientations, or by look-up and by product, a tied leaf; of disjoint entries, leaves
of their own (`name[0]`, `name[1]`, ...). Anything else is a dense leaf. Pure bookkeeping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from entk import _forms
from entk.torch._taps import Site
from entk.torch._views import IndexMap

Form = Literal["outer", "lookup", "tied", "expanded", "free", "unused"]


@dataclass
class TableUse:
    """The sites that use one table in one way, in the order in which they run.

    `sizes` are ``(G, T, d_in, d_out)``; for look-ups ``(1, T, V, d)``.
    """

    kind: Literal["outer", "lookup"]
    table: IndexMap
    sizes: tuple[int, int, int, int]
    loop: bool
    sites: list[int] = field(default_factory=list)
    transposed: bool = False

    def takes(self, other: TableUse) -> bool:
        """Whether `other` only adds positions to this use."""
        return self.kind == other.kind and self.table.same(other.table)

    def ties(self, other: TableUse) -> bool:
        """Whether `other` uses the same matrix in another way."""
        flat = len(self.table.shape) == len(other.table.shape) == 2
        return flat and (self.table.same(other.table) or self.table.same(other.table.transposed()))

    @property
    def axis(self) -> int:
        """Which axis of one example's acts are the positions."""
        return 0 if self.kind == "lookup" else 1

    def numbers(self, rows: int) -> int:
        """Return how many numbers one example stores."""
        g, t, d_in, d_out = self.sizes
        return t * (1 + rows * d_out) if self.kind == "lookup" else g * t * (d_in + rows * d_out)

    def nothing(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of one example that does not use the table."""
        g, _, d_in, d_out = self.sizes
        if self.kind == "lookup":
            ids = torch.zeros(1, 0, dtype=torch.int64, device=like.device)
            return ids, like.new_zeros(1, rows, 0, d_out)
        return like.new_zeros(1, g, 0, d_in), like.new_zeros(1, rows, g, 0, d_out)

    def joined(self, other: TableUse) -> TableUse:
        """Return this use with the positions of `other` appended."""
        g, t, d_in, d_out = self.sizes
        sizes = (g, t + other.sizes[1], d_in, d_out)
        loop, sites = self.loop or other.loop, [*self.sites, *other.sites]
        return TableUse(self.kind, self.table, sizes, loop, sites)


@dataclass
class Part:
    """One leaf of the result.

    `form` is its kind, or ``"expanded"``: dense, made from factors; ``"free"``: dense, made by
    autograd; ``"unused"``: no gradient reaches it.
    """

    name: str
    leaf: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    uses: list[TableUse]
    form: Form
    reason: str

    @property
    def size(self) -> int:
        """Number of entries of the parameter."""
        return math.prod(self.shape)

    @property
    def structured(self) -> bool:
        """Whether the leaf is kept as factors."""
        return self.form in ("outer", "lookup", "tied")

    def numbers(self, rows: int) -> int:
        """Return how many numbers one example stores."""
        if self.form == "unused":
            return 0
        if not self.structured:
            return rows * self.size
        return sum(use.numbers(rows) for use in self.uses)


@dataclass(frozen=True)
class Expected:
    """What is known of a site before a batch is run."""

    signature: tuple[object, ...]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


@dataclass
class Plan:
    """The leaves in order, and the sites of those that have any, in the order in which they run."""

    parts: list[Part]
    sites: list[Expected]

    @property
    def free(self) -> list[str]:
        """Leaves whose Jacobian autograd makes."""
        return [p.leaf for p in self.parts if p.form == "free"]

    @property
    def tapped(self) -> set[str]:
        """Leaves made from the factors at their sites."""
        return {p.leaf for p in self.parts if p.uses}

    @property
    def watched(self) -> set[str]:
        """Leaves whose uses matter: the tapped, and those that only other examples may use."""
        return self.tapped | {p.leaf for p in self.parts if p.reason == _UNSEEN}


@dataclass
class Seen:
    """The uses of parameters met so far."""

    sites: list[Site]
    dense: dict[str, str]

    def add(self, sites: Sequence[Site], parameters: Mapping[str, Tensor]) -> None:
        """Take over the uses of another example that show something new of their parameter."""
        leaves = [s.view.leaf for s in self.sites]
        tables = [
            (leaf, table_use(0, s, parameters[leaf]))
            for leaf, s in zip(leaves, self.sites, strict=True)
        ]
        for site in sites:
            leaf = site.view.leaf
            use = table_use(0, site, parameters[leaf])
            if not any(leaf == other and old.takes(use) for other, old in tables):
                self.sites.append(site)


def make_plan(
    parameters: Mapping[str, Tensor], seen: Seen, rows: int, dense: Mapping[str, str]
) -> Plan:
    """Return the plan for the uses seen; leaves in `dense` are so for that reason."""
    numbered: dict[str, list[int]] = {name: [] for name in parameters}
    for k, site in enumerate(seen.sites):
        numbered[site.view.leaf].append(k)
    parts: list[Part] = []
    for name, parameter in parameters.items():
        reason = dense.get(name) or _why_free(name, seen, numbered[name])
        if reason is None:
            groups = _grouped([(k, seen.sites[k]) for k in numbered[name]], parameter)
            if isinstance(groups, str):
                reason = groups
            else:
                parts.extend(_parts(name, parameter, groups, rows))
        if reason is not None:
            parts.append(_part(name, name, parameter, [], "free", reason))
    live = sorted(k for part in parts for use in part.uses for k in use.sites)
    position = {k: i for i, k in enumerate(live)}
    for part in parts:
        for use in part.uses:
            use.sites = [position[k] for k in use.sites]
    return Plan(parts, [_expected(seen.sites[k]) for k in live])


def _expected(site: Site) -> Expected:
    out = site.out
    return Expected(site.signature, out.shape, out.dtype, out.device)


_UNSEEN = "no product, convolution or look-up seen"


def _why_free(name: str, seen: Seen, sites: list[int]) -> str | None:
    if name in seen.dense:
        return f"used by {seen.dense[name]}: the gradient has no smaller form"
    return None if sites else _UNSEEN


def _grouped(sites: Sequence[tuple[int, Site]], parameter: Tensor) -> list[list[TableUse]] | str:
    """Return the uses table by table, or why they do not come apart."""
    tables: list[list[TableUse]] = []
    for number, site in sites:
        use = table_use(number, site, parameter)
        if use.table.repeats():
            return "a use shows entries of the parameter twice"
        home = _home(tables, use)
        if home is None:
            if not all(use.table.disjoint(t[0].table) for t in tables):
                return "its uses overlap in part"
            home = []
            tables.append(home)
        for i, known in enumerate(home):
            if known.takes(use):
                home[i] = known.joined(use)
                break
        else:
            home.append(use)
    return tables


def table_use(number: int, site: Site, parameter: Tensor) -> TableUse:
    """Return what a site does to its parameter."""
    table = site.view.index_map(parameter.shape, site.use.table)
    if site.use.kind == "lookup":
        sizes = (1, site.use.acts.shape[0], *table.shape)
    else:
        g, d_in, d_out = table.shape
        sizes = (g, site.use.acts.shape[1], d_in, d_out)
        table = table.dropped(0) if g == 1 else table
    return TableUse(site.use.kind, table, sizes, site.loop, [number])  # type: ignore[arg-type]


def _home(tables: list[list[TableUse]], use: TableUse) -> list[TableUse] | None:
    for uses in tables:
        if any(known.takes(use) or known.ties(use) for known in uses):
            return uses
    return None


def _parts(leaf: str, parameter: Tensor, tables: list[list[TableUse]], rows: int) -> list[Part]:
    parts = []
    for i, uses in enumerate(tables):
        name = leaf if len(tables) == 1 else f"{leaf}[{i}]"
        anchor = next((u for u in uses if u.kind == "lookup"), uses[0])
        for use in uses:
            use.transposed = not use.table.same(anchor.table)
        form, reason = _form(uses, rows)
        parts.append(_part(name, leaf, parameter, uses, form, reason))
    return parts


def _part(
    name: str, leaf: str, like: Tensor, uses: list[TableUse], form: Form, reason: str
) -> Part:
    return Part(name, leaf, tuple(like.shape), like.dtype, uses, form, reason)


def _form(uses: list[TableUse], rows: int) -> tuple[Form, str]:
    if len(uses) > 1:
        return _tied_form(uses, rows)
    (use,) = uses
    g, t, d_in, d_out = use.sizes
    if use.kind == "lookup":
        form, reason = _forms.choose_lookup(t, d_in, d_out, rows)
    else:
        choose = _forms.choose_loop if use.loop else _forms.choose
        form, reason = choose(t, d_in, d_out, rows, g)
    return ("expanded" if form == "dense" else use.kind), reason


def _tied_form(uses: list[TableUse], rows: int) -> tuple[Form, str]:
    _, _, d_in, d_out = uses[0].sizes
    positions = sum(use.sizes[1] for use in uses)
    stored, dense = sum(use.numbers(rows) for use in uses), rows * d_in * d_out
    if positions * (d_in + d_out) < d_in * d_out or stored < dense:
        ways = f"one table used in {len(uses)} ways"
        return "tied", f"{ways}: {stored:,} numbers an example, dense {dense:,}"
    return "expanded", f"dense is smaller: {dense:,} numbers an example, uses {stored:,}"
