"""From the sites of each parameter to the leaves it becomes, by comparing indices and counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, TypeAlias

from entk._forms import choose, choose_lookup, choose_loop
from entk.jax._index import Index, Positions, disjoint, same
from entk.jax._taps import Site, Taps

Form: TypeAlias = Literal["dense", "expand", "outer", "lookup", "tied", "zero"]


@dataclass(frozen=True)
class Group:
    """Sites that use one table in one way; their positions are joined along T."""

    kind: Literal["outer", "lookup"]
    transposed: bool
    sites: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """A leaf of the factors to be.

    | form | made from |
    |---|---|
    | dense | the derivative with respect to the parameter |
    | expand | the factors of its sites, multiplied out |
    | outer, lookup, tied | the factors of its sites |
    | zero | nothing: no gradient reaches the parameter |
    """

    name: str
    leaf: int
    form: Form
    reason: str
    groups: tuple[Group, ...] = ()
    table: Index | None = None

    def positions(self) -> Positions:
        """Return where in the parameter the elements of the table are."""
        assert self.table is not None
        return self.table.positions()


@dataclass
class _Cluster:
    """Sites of one parameter whose tables are the same elements, straight or transposed."""

    table: Index
    sites: dict[tuple[Literal["outer", "lookup"], bool], list[int]] = field(default_factory=dict)

    def groups(self) -> tuple[Group, ...]:
        return tuple(Group(*key, tuple(sites)) for key, sites in self.sites.items())


def plan_parts(
    names: Sequence[str], leaves: Sequence[Any], taps: Taps, rows: int, demoted: frozenset[str]
) -> list[Part]:
    """Return the leaves of the factors in the order of the parameters."""
    parts: list[Part] = []
    for k, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        parts.extend(_parts_of(k, name, tuple(leaf.shape), taps, rows, demoted))
    return parts


def dense_parts(names: Sequence[str], reason: str) -> list[Part]:
    """Return every parameter as a dense leaf."""
    return [Part(name, k, "dense", reason) for k, name in enumerate(names)]


def table_of(site: Site) -> Index:
    """Return the table of a site with the loops that slice the parameter among its blocks."""
    shape = site.table.shape
    if site.kind == "lookup":
        return site.table.reshape((1, prod(shape[:-1]), shape[-1]))
    return site.table.reshape((prod(shape[:-2]), *shape[-2:]))


def _parts_of(
    leaf: int, name: str, shape: tuple[int, ...], taps: Taps, rows: int, demoted: frozenset[str]
) -> list[Part]:
    numbers = [k for k, site in enumerate(taps.sites) if site.leaf == leaf]
    if leaf in taps.dense:
        return [Part(name, leaf, "dense", taps.dense[leaf])]
    if not numbers:
        why = "no gradient reaches it" if leaf in taps.used else "the network does not use it"
        return [Part(name, leaf, "zero", why)]
    if name in demoted:
        return [Part(name, leaf, "dense", "its factors failed the audit")]
    clusters = _clusters(numbers, taps.sites)
    if isinstance(clusters, str):
        return [Part(name, leaf, "dense", clusters)]
    if len(clusters) == 1:
        return [_part(name, leaf, clusters[0], taps.sites, rows)]
    clusters.sort(key=lambda cluster: cluster.table.bounds())
    named = [(f"{name}[{k}]", cluster) for k, cluster in enumerate(clusters)]
    return [_part(part, leaf, cluster, taps.sites, rows) for part, cluster in named]


def _clusters(numbers: Sequence[int], sites: Sequence[Site]) -> list[_Cluster] | str:
    """Sort the sites of a parameter by the elements they use, or say why that cannot be done.

    Look-ups come first: their table is the one the others are compared with.
    """
    clusters: list[_Cluster] = []
    for number in sorted(numbers, key=lambda k: sites[k].kind != "lookup"):
        site, table = sites[number], table_of(sites[number])
        if not table.injective():
            return f"an element is used more than once by one {site.what}"
        placed = False
        for cluster in clusters:
            way = _orientation(cluster.table, table, site.kind)
            if way is not None:
                cluster.sites.setdefault((site.kind, way), []).append(number)
                placed = True
            elif not disjoint(cluster.table, table):
                return "uses of overlapping parts in different arrangements"
        if not placed:
            clusters.append(_Cluster(table, {(site.kind, False): [number]}))
    return clusters


def _orientation(reference: Index, table: Index, kind: str) -> bool | None:
    """Return whether a table is the reference transposed; None if it is another one."""
    if same(reference, table):
        return False
    turned = table.transpose((0, 2, 1))
    if kind == "outer" and table.shape[0] == 1 and same(reference, turned):
        return True
    return None


def _part(name: str, leaf: int, cluster: _Cluster, sites: Sequence[Site], rows: int) -> Part:
    groups = cluster.groups()
    form, reason = _form(groups, cluster.table, sites, rows)
    return Part(name, leaf, form, reason, groups, cluster.table)


def _form(
    groups: tuple[Group, ...], table: Index, sites: Sequence[Site], rows: int
) -> tuple[Form, str]:
    words = " and ".join(dict.fromkeys(sites[k].what for g in groups for k in g.sites))
    if len(groups) > 1:
        return "tied", f"{words} of one table"
    (group,) = groups
    blocks, d_in, d_out = table.shape
    t = sum(_positions(sites[k]) for k in group.sites)
    if group.kind == "lookup":
        form, reason = choose_lookup(t, d_in, d_out, rows)
    elif any(loop.number not in sites[k].blocks for k in group.sites for loop in sites[k].loops):
        form, reason = choose_loop(t, d_in, d_out, rows, blocks)
    else:
        form, reason = choose(t, d_in, d_out, rows, blocks)
    kept: Form = "expand" if form == "dense" else group.kind
    return kept, f"{words}: {reason}"


def _positions(site: Site) -> int:
    """Return the number T of positions of a site, all its loops included."""
    blocks = 1 if site.kind == "lookup" else prod(site.whole[:-2])
    outputs = prod(site.shape) * prod(loop.length for loop in site.loops)
    return site.copies * outputs // max(1, blocks * site.whole[-1])
