"""Whether factors give the gradient, seen on a few real examples.

Each leaf's gradient rebuilt from its factors is compared with `jax.grad` of `f` for one example. A
leaf that fails is taken dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import jax
import numpy as np

from entk.jax._directions import Directions
from entk.jax._extraction import Extraction
from entk.jax._inputs import examples_at, picks
from entk.jax._plan import Group, Part
from entk.jax._program import Program


@dataclass(frozen=True)
class _Verdict:
    """Numbers of the parameters that failed, and of those whose gradient was not zero."""

    failed: frozenset[int]
    seen: frozenset[int]


def wrong_parameters(
    work: Extraction, program: Program, x: Any, arrays: Sequence[Any], done: int, size: int
) -> list[int]:
    """Return the parameters whose factors are wrong in two directions.

    `arrays` are the factors of the first `done` examples. One direction may have no gradient and so
    compare noise with noise; the second opinion is a random direction. A program that has passed on
    gradients that were not zero is not asked again.
    """
    if "audit" in program.passed:
        return []
    signs = np.random.default_rng(0).choice([-1.0, 1.0], work.n_outputs)
    mixed = Directions("weights", signs)
    first = _compare(work, program, x, arrays, done, mixed if work.several else work.meant)
    if not first.failed:
        if first.seen >= {part.leaf for part in program.parts if part.form != "zero"}:
            program.passed.add("audit")
        return []
    if work.several:
        return sorted(first.failed)
    rows = np.broadcast_to(signs, (size, signs.size)) if work.meant.per_example else signs
    again = work.begin(program, examples_at(x, range(done), size), rows)
    landed = [np.asarray(array) for array in again()]
    second = _compare(work, program, x, landed, done, mixed)
    return sorted(first.failed & second.failed)


def _compare(
    work: Extraction,
    program: Program,
    x: Any,
    arrays: Sequence[Any],
    done: int,
    meant: Directions,
) -> _Verdict:
    """Compare on a few examples, in one direction each."""
    failed: set[int] = set()
    seen: set[int] = set()
    for k in picks(done):
        row = meant.at(k)
        gradients = work.witness.gradient(examples_at(x, [k], work.witness.n), row)
        of_one = program.grouped(
            [array[k : k + 1] for array in arrays], jax.tree.leaves(examples_at(x, [k], 1))
        )
        mine = [[array[0] for array in part] for part in of_one]
        weights = row if work.rows > 1 else np.ones(1)
        failed |= _failing(program.parts, mine, gradients, weights, work.traced.eps)
        seen |= {j for j, gradient in enumerate(gradients) if gradient.any()}
    return _Verdict(frozenset(failed), frozenset(seen))


def _failing(
    parts: Sequence[Part],
    arrays: Sequence[Sequence[np.ndarray[Any, Any]]],
    gradients: Sequence[np.ndarray[Any, Any]],
    weights: np.ndarray[Any, Any],
    eps: float,
) -> set[int]:
    """Return the numbers of the parameters whose factors do not give the gradient.

    `arrays` are the factors of one example, `weights` (R,) the direction the gradients are of,
    `eps` the coarsest arithmetic of the network. Gradients that are not finite are left to the
    assembly, which names them.
    """
    sizes = [float(np.linalg.norm(gradient.astype(np.float64))) for gradient in gradients]
    whole = sqrt(sum(size**2 for size in sizes))
    wrong: set[int] = set()
    for k, (gradient, size) in enumerate(zip(gradients, sizes, strict=True)):
        if not isfinite(size):
            continue
        left = gradient.astype(np.float64).reshape(-1)
        mine = [(part, a) for part, a in zip(parts, arrays, strict=True) if part.leaf == k]
        terms = sum(_subtract(part, a, weights, left) for part, a in mine)
        bound = sqrt(eps) * (size + 0.1 * whole) + 8 * eps * terms
        if _overlap([part for part, _ in mine], left.size) or not np.linalg.norm(left) <= bound:
            wrong.add(k)
    return wrong


def _overlap(parts: Sequence[Part], size: int) -> bool:
    """Tell whether leaves of one parameter share elements: their kernels would lack cross terms."""
    if len(parts) == 1:
        return False
    times = np.zeros(size, np.int32)
    for part in parts:
        times[part.positions()] += 1
    return bool((times > 1).any())


def _subtract(
    part: Part,
    arrays: Sequence[np.ndarray[Any, Any]],
    weights: np.ndarray[Any, Any],
    left: np.ndarray[Any, Any],
) -> float:
    """Subtract what a part says of a gradient; return the sum of the sizes of its terms."""
    if part.form == "zero":
        return 0.0
    wide = [np.asarray(a).astype(np.float64) if a.dtype.kind != "i" else a for a in arrays]
    if part.form in ("dense", "expand"):
        jac = np.tensordot(weights, wide[0], 1)
        at = slice(None) if jac.size == left.size else part.positions().reshape(-1)
        left[at] -= jac
        return float(np.linalg.norm(jac))
    table = np.zeros(part.table.shape)  # type: ignore[union-attr]
    terms = 0.0
    for group, acts, cots in zip(part.groups, wide[::2], wide[1::2], strict=True):
        terms += _add(group, acts, np.tensordot(weights, cots, 1), table)
    order = part.table.leaf_order(left.size)  # type: ignore[union-attr]
    if order is None:
        left[part.positions()] -= table
    else:
        left -= table.transpose(order).reshape(-1)
    return terms


def _add(group: Group, acts: Any, cots: Any, table: np.ndarray[Any, Any]) -> float:
    """Add a group's gradient to its table (G, d_in, d_out)."""
    sizes = np.linalg.norm(cots, axis=-1)
    if group.kind == "lookup":
        np.add.at(table[0], acts[acts >= 0], cots[acts >= 0])
        return float(sizes.sum())
    product = np.einsum("gti,gto->gio", acts, cots, optimize=True)
    table += product.transpose(0, 2, 1) if group.transposed else product
    return float((np.linalg.norm(acts, axis=-1) * sizes).sum())
