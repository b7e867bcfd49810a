"""Scans with structure: the loop is rewritten, not unrolled.

Every site in the body gets its perturbation as one more sliced input and gives its record as one
more stacked output. A parameter that is constant over the loop (a recurrent cell) is then used at
`length` times as many positions; one that the loop slices (stacked layers) has one block a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
from jax import lax

from entk.jax._compat import Array, abstract, bind, opened, scan_groups
from entk.jax._taps import Loop, Site, Taps
from entk.jax._views import View, raw

Walk: TypeAlias = Callable[..., list[Any]]
"""The walk over a body: jaxpr, constants, operands, taps -> outputs."""


@dataclass(frozen=True)
class _Scan:
    """A scan equation taken apart; `fixed` are the carries that no step changes."""

    body: Any
    length: int
    reverse: bool
    unroll: int
    n_consts: int
    n_carry: int
    fixed: frozenset[int]

    @classmethod
    def of(cls, eqn: Any) -> _Scan:
        params = eqn.params
        n_consts, n_carry = scan_groups(eqn)
        jaxpr, _ = opened(params["jaxpr"])
        carried = zip(range(n_carry), jaxpr.invars[n_consts:], jaxpr.outvars, strict=False)
        fixed = frozenset(k for k, given, kept in carried if given is kept)
        shape = params["length"], params["reverse"], params["unroll"]
        return cls(params["jaxpr"], *shape, n_consts, n_carry, fixed)

    def parts(self, values: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Split operands into constants, carries and slices."""
        end = self.n_consts + self.n_carry
        return values[: self.n_consts], values[self.n_consts : end], values[end:]


def walk_scan(eqn: Any, operands: list[Any], taps: Taps, walk: Walk) -> list[Any]:
    """Run a scan with parameters among its operands; return its carries and stacked outputs."""
    scan = _Scan.of(eqn)
    taps.n_loops += 1
    loop = Loop(taps.n_loops, scan.length)
    seen = _seen_inside(scan, operands, loop, taps)
    sites = _sites_inside(scan, seen, taps, walk)
    eps = eps_of(sites, taps)
    if any(one is not None for one in eps):
        outs, records = _run(scan, operands, seen, eps, walk)
    else:
        outs, records = bind(eqn, [raw(value) for value in operands]), [None] * len(sites)
    taps.sites.extend(site.inside(loop) for site in sites)
    taps.records.extend(records)
    _, carried, _ = scan.parts(operands)
    for k in scan.fixed:
        outs[k] = _as_view(carried[k], outs[k])
    return outs


def _seen_inside(scan: _Scan, operands: list[Any], loop: Loop, taps: Taps) -> list[Any]:
    """Return the operands as the body sees them, as far as they are views.

    The axis a loop slices is the first of the value: in the index it follows the axes of the loops
    further out, where the axis of a new loop belongs.
    """
    consts, carried, slices = scan.parts(operands)
    changing = [value for k, value in enumerate(carried) if k not in scan.fixed]
    taps.make_dense(changing, "where a loop starts from, which keeps no structure")
    kept = [value if k in scan.fixed else None for k, value in enumerate(carried)]
    stacked = [
        replace(value, loops=(*value.loops, loop.number)) if isinstance(value, View) else None
        for value in slices
    ]
    return [*consts, *kept, *stacked]


def eps_of(sites: list[Site], taps: Taps) -> list[Array | None]:
    """Return the perturbations of the sites that come next."""
    start = len(taps.sites)
    return [None] * len(sites) if taps.eps is None else list(taps.eps[start : start + len(sites)])


def _sites_inside(scan: _Scan, seen: list[Any], taps: Taps, walk: Walk) -> list[Site]:
    """Find the body's sites."""
    return sites_of(scan.body, seen, taps, walk, "loop", scan.fixed)


def sites_of(
    body: Any,
    seen: list[Any],
    taps: Taps,
    walk: Walk,
    what: str,
    fixed: frozenset[int] = frozenset(),
) -> list[Site]:
    """Find the sites of a body on shapes alone; parameters among its outputs but `fixed` are dense.

    `seen` are its operands, as far as they are views.
    """
    jaxpr, _ = opened(body)
    local = Taps(n_loops=taps.n_loops)

    def look(values: list[Array]) -> None:
        outs = walk(*opened(body), as_views(seen, values), local)
        escaping = [out for k, out in enumerate(outs) if k not in fixed]
        local.make_dense(escaping, f"an output of a {what}, which keeps no structure")

    jax.eval_shape(look, [abstract(v.aval.shape, v.aval.dtype) for v in jaxpr.invars])
    taps.n_loops = local.n_loops
    taps.used |= local.used
    for leaf, why in local.dense.items():
        taps.dense.setdefault(leaf, why)
    return local.sites


def _run(
    scan: _Scan, operands: list[Any], seen: list[Any], eps: list[Array | None], walk: Walk
) -> tuple[list[Array], list[Array | None]]:
    """Run the rewritten loop; return its outputs and the records of all steps."""
    consts, carried, slices = scan.parts([raw(value) for value in operands])

    def step(carry: list[Array], at_step: Any) -> Any:
        slices, eps = at_step
        local = Taps(eps=eps)
        values = as_views(seen, [*consts, *carry, *slices])
        outs = [raw(out) for out in walk(*opened(scan.body), values, local)]
        return outs[: scan.n_carry], (outs[scan.n_carry :], local.records)

    carry, (stacked, records) = lax.scan(
        step,
        carried,
        (slices, eps),
        length=scan.length,
        reverse=scan.reverse,
        unroll=scan.unroll,
    )
    return [*carry, *stacked], records


def as_views(seen: list[Any], values: list[Array]) -> list[Any]:
    """Return `values` as the views that stand in their places in `seen`."""
    return [_as_view(view, value) for view, value in zip(seen, values, strict=True)]


def _as_view(view: Any, value: Array) -> Any:
    return replace(view, value=value) if isinstance(view, View) else value
