"""Branches with structure: `lax.cond` and `lax.switch` that all examples take together.

Every branch perturbs its own sites and gives their records; in place of those of the branches that
are not taken it gives none (zeros, and no row of a look-up). A choice of each example's own is no
such equation under `jax.vmap`, but a `select_n`: see `_views.gated`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from entk.jax._compat import Array, bind, opened
from entk.jax._scan import Walk, as_views, eps_of, sites_of
from entk.jax._taps import Taps
from entk.jax._views import raw

Branch = Callable[[list[Array], list[list[Array | None]]], Any]


def walk_cond(eqn: Any, operands: list[Any], taps: Taps, walk: Walk) -> list[Any]:
    """Run a choice of branches with parameters among its operands; return its outputs."""
    index, *given = operands
    found = [sites_of(body, given, taps, walk, "branch") for body in eqn.params["branches"]]
    sites = [site for one in found for site in one]
    eps = eps_of(sites, taps)
    if any(one is not None for one in eps):
        left = iter(eps)
        outs, records = _run(eqn, index, given, [[next(left) for _ in one] for one in found], walk)
    else:
        outs, records = bind(eqn, [raw(value) for value in operands]), [None] * len(sites)
    taps.sites.extend(sites)
    taps.records.extend(records)
    return outs


def _run(
    eqn: Any, index: Array, given: list[Any], eps: list[list[Array | None]], walk: Walk
) -> tuple[list[Array], list[Array | None]]:
    """Run the rewritten branches; return the outputs and the records of all."""
    branches = [_branch(k, body, given, walk) for k, body in enumerate(eqn.params["branches"])]
    values = [raw(value) for value in given]
    shapes = [jax.eval_shape(branch, values, eps)[1] for branch in branches]

    def completed(number: int) -> Branch:
        def taken(values: list[Array], eps: list[list[Array | None]]) -> Any:
            outs, own = branches[number](values, eps)
            others = jax.tree.map(_nothing, shapes)
            return outs, [own if k == number else other for k, other in enumerate(others)]

        return taken

    choices = [completed(number) for number in range(len(branches))]
    outs, records = lax.switch(index, choices, values, eps)
    return outs, [record for own in records for record in own]


def _branch(number: int, body: Any, given: list[Any], walk: Walk) -> Branch:
    def taken(values: list[Array], eps: list[list[Array | None]]) -> Any:
        local = Taps(eps=eps[number])
        outs = walk(*opened(body), as_views(given, values), local)
        return [raw(out) for out in outs], local.records

    return taken


def _nothing(record: Any) -> Array:
    """Return the record of a site that is not run."""
    none = -1 if jnp.issubdtype(record.dtype, jnp.integer) else 0
    return jnp.full(record.shape, none, record.dtype)
