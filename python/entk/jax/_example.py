"""The factors of one example: a forward pass, one pull-back, and the parts cut out of it.

    g(eps, dense) = f(params, x) with eps[k] = 0 added to the output of site k,

and its pull-back of a cotangent row gives the `cots` of every site and the gradient of every dense
leaf. No gradient of a structured weight is formed. A batch is `jax.vmap` of this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from entk.jax._compat import Array
from entk.jax._index import Strided
from entk.jax._plan import Group, Part
from entk.jax._sites import arranged
from entk.jax._taps import Site, Taps
from entk.jax._trace import walk
from entk.jax._views import View, raw

Arrays: TypeAlias = tuple[Array, ...]
"""The arrays of one part; per group (acts, cots) or (ids, cots), or one (jac,)."""


def views_of(leaves: Sequence[Array]) -> list[View]:
    """Return the parameters as views of themselves."""
    return [View(k, leaf, Strided.whole(leaf.shape)) for k, leaf in enumerate(leaves)]


def in_turn(function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
    """Map a function as `jax.vmap` does, one after the other: for what has no batching rule."""

    def mapped(*args: Any) -> Any:
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        moving = [arg for arg, axis in zip(args, axes, strict=True) if axis is not None]

        def one(now: list[Any]) -> Any:
            at = iter(now)
            pairs = zip(args, axes, strict=True)
            return function(*(arg if axis is None else next(at) for arg, axis in pairs))

        return lax.map(one, moving)

    return mapped


def run_tapped(
    jaxpr: Any, consts: Sequence[Array], leaves: Sequence[Array], x: Sequence[Array], taps: Taps
) -> Array:
    """Run the network on one example with taps on its parameters; return its outputs (O,)."""
    (out,) = walk(jaxpr, consts, [*views_of(leaves), *x], taps)
    taps.make_dense([out], "an output of the network")
    return raw(out)


def example_factors(
    jaxpr: Any,
    consts: Sequence[Array],
    leaves: Sequence[Array],
    x: Sequence[Array],
    cotangents: Array,
    sites: Sequence[Site],
    parts: Sequence[Part],
    over: Callable[..., Any],
) -> list[Arrays]:
    """Return the arrays of every part for one example.

    `cotangents` is one row (O,) or several (R, O); the arrays have an R axis in either case. `over`
    maps a function over rows: `jax.vmap`, or `in_turn` for what cannot be mapped.
    """
    dense = sorted({part.leaf for part in parts if part.form == "dense"})
    live = {k - sites[k].back for part in parts for group in part.groups for k in group.sites}
    eps = [_zeros(site) if k in live else None for k, site in enumerate(sites)]

    def network(eps: list[Array | None], values: list[Array]) -> tuple[Array, Any]:
        changed = list(leaves)
        for k, value in zip(dense, values, strict=True):
            changed[k] = value
        taps = Taps(eps)
        out = run_tapped(jaxpr, consts, changed, x, taps) if live else _run(changed)
        return out, taps.records

    def _run(changed: list[Array]) -> Array:
        (out,) = walk(jaxpr, consts, [*changed, *x], Taps())
        return out

    _, pull, records = jax.vjp(network, eps, [leaves[k] for k in dense], has_aux=True)
    cots, gradients = _pull_rows(pull, cotangents, over)
    gradient = dict(zip(dense, gradients, strict=True))
    rows = 1 if cotangents.ndim == 1 else cotangents.shape[0]

    def arrays(part: Part) -> Arrays:
        dtype = leaves[part.leaf].dtype
        if part.form == "dense":
            return (gradient[part.leaf].reshape(rows, -1),)
        if part.form == "zero":
            return ()
        made = [_group(group, sites, records, cots, dtype) for group in part.groups]
        if part.form == "expand":
            return (_expanded(part, *made[0], size=leaves[part.leaf].size),)
        return tuple(array for pair in made for array in pair)

    return [arrays(part) for part in parts]


def _zeros(site: Site) -> Array:
    return jnp.zeros((*(loop.length for loop in site.loops), *site.shape), site.dtype)


def _pull_rows(pull: Callable[[Array], Any], cotangents: Array, over: Callable[..., Any]) -> Any:
    """Pull back one row without a mapped axis, or several; results lead with R."""
    if cotangents.ndim == 1:
        return jax.tree.map(lambda cot: cot[None], pull(cotangents))
    return over(pull)(cotangents)


def _group(
    group: Group, sites: Sequence[Site], records: Sequence[Any], cots: Sequence[Any], dtype: Any
) -> tuple[Array, Array]:
    """Join the sites of a group along T."""
    shared = [(sites[k], k - sites[k].back) for k in group.sites]
    made = [
        (_record(site, records[k]), _cotangent(site, cots[k]).astype(dtype)) for site, k in shared
    ]
    acts, backs = zip(*made, strict=True)
    if group.kind == "lookup":
        ids, cot = jnp.concatenate(acts), jnp.concatenate(backs, axis=1)
        return ids, jnp.where(ids[:, None] < 0, 0, cot)  # out of range: often NaN, never a share
    return jnp.concatenate(acts, axis=1).astype(dtype), jnp.concatenate(backs, axis=2)


def _record(site: Site, record: Array) -> Array:
    """Return acts (G, T, d_in) or ids (T,), loops folded in."""
    if site.kind == "lookup":
        return _shifted(site, record).reshape(-1)
    return _fold_loops(site, record, lead=0, side=-2)


def _cotangent(site: Site, cot: Array) -> Array:
    """Return cots (R, G, T, d_out) or (R, T, d), loops folded in."""
    fold = site.fold
    for _ in range(1 + len(site.loops)):
        fold = jax.vmap(fold)
    folded = fold(cot)
    if site.kind == "lookup":
        return folded.reshape(folded.shape[0], -1, folded.shape[-1])
    return _fold_loops(site, folded, lead=1, side=-1)


def _fold_loops(site: Site, array: Array, lead: int, side: int) -> Array:
    """(..., loops, G, T, d) -> (..., slicing loops and G, other loops and T, d).

    Of a use of several parameters, the part that belongs to the site's; `side` is the axis of its
    table that the last one is.
    """
    blocks: list[int] = []
    steps: list[int] = []
    for k, loop in enumerate(site.loops):
        (blocks if loop.number in site.blocks else steps).append(lead + k)
    g, t, d = (lead + len(site.loops) + k for k in range(3))
    order = (*range(lead), *blocks, g, *steps, t, d)
    if site.box is not None:
        for axis, piece in zip((*blocks, g, d), (*site.box[:-2], site.box[side]), strict=True):
            array = lax.slice_in_dim(array, piece.start, piece.stop, axis=axis)
    shape = array.shape
    sizes = [prod(shape[k] for k in axes) for axes in ((*blocks, g), (*steps, t))]
    return arranged(array, order).reshape(*shape[:lead], *sizes, shape[d])


def _shifted(site: Site, ids: Array) -> Array:
    """Count the rows of tables stacked over loops one after the other."""
    shift, rows = jnp.zeros((), ids.dtype), site.table.shape[-2]
    for k, loop in enumerate(site.loops):
        if loop.number in site.blocks:
            steps = jnp.arange(loop.length, dtype=ids.dtype)
            shift = shift * loop.length + steps.reshape(-1, *[1] * (ids.ndim - k - 1))
    return jnp.where(ids < 0, ids, ids + shift * rows)


def _expanded(part: Part, acts: Array, cots: Array, size: int) -> Array:
    """Multiply factors out: the gradient (R, P), in the parameter's own order where it has one."""
    if part.groups[0].kind == "lookup":
        table = _scattered(acts, cots, part.table.shape[1])  # type: ignore[union-attr]
    else:
        product = jnp.einsum("gti,rgto->rgio", acts, cots, precision=jax.lax.Precision.HIGHEST)
        table = product.astype(cots.dtype)
    rows, index = table.shape[0], part.table
    order = None if index is None else index.leaf_order(size)
    if order is not None:
        return table.transpose(0, *(1 + k for k in order)).reshape(rows, -1)
    flat = table.reshape(rows, -1)
    if index is not None and prod(index.shape) == size:
        return flat[:, np.argsort(index.positions().reshape(-1))]
    return flat


def _scattered(ids: Array, cots: Array, n_rows: int) -> Array:
    """Add up the rows of a small table: (R, 1, rows, d)."""
    rows, _, d = cots.shape
    at = jnp.where(ids < 0, n_rows, ids)
    return jnp.zeros((rows, 1, n_rows, d), cots.dtype).at[:, 0, at].add(cots, mode="drop")
