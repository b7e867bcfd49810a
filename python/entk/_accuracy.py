"""The accuracy certificate of a finished kernel: some of its entries computed again in float64.

The error of an entry is measured in units of ``u sqrt(K_ii K_jj)`` (`u`: unit roundoff of the
stored type), its root mean square is `rho`. Rounding then lifts or lowers eigenvalues by up to
about ``2 rho u sqrt(N) mean(diag K)`` (the norm of a random symmetric matrix).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from entk import _core, _paths
from entk._floor import ROUNDOFF
from entk._problem import Cut, Problem

if TYPE_CHECKING:
    from entk._job import Job
    from entk._stored import Tiles
    from entk._unfinished import Store

# Tiles that are looked into, and the side of the block of entries in each.
_TILES = 4
_SIDE = 32
_SEED = 0

Float = np.ndarray[Any, np.dtype[np.float64]]


def certificate(store: Store, tiles: Tiles) -> dict[str, Any] | None:
    """Measure an unfinished kernel whose tiles are all there; None for float64 and empty ones."""
    job = tiles.job
    if job.dtype != "float32" or not len(store.layout):
        return None
    dice = np.random.default_rng(_SEED)
    count = min(_TILES, len(store.layout))
    ratios, diagonal = [], []
    for index in dice.choice(len(store.layout), count, replace=False):
        rows, cols = _spans(tiles.unit(int(index)), job.problem.block, dice)
        stored = _stored_entries(store, int(index), rows, cols, job.problem)
        exact, scale = _exact(job, rows, cols)
        error = np.abs(stored - exact)
        used = (scale > 0) & np.isfinite(error)
        ratios.append(error[used] / (ROUNDOFF[job.dtype] * scale[used]))
        diagonal.append(scale[used])
    ratio = np.concatenate(ratios)
    if not ratio.size:
        return None
    rho = float(np.sqrt(np.mean(ratio**2)))
    size = float(np.mean(np.concatenate(diagonal)))
    floor = 2 * rho * ROUNDOFF[job.dtype] * float(np.sqrt(job.problem.shape[-2])) * size
    return {
        "entries": int(ratio.size),
        "seed": _SEED,
        "rho_rms": rho,
        "rho_max": float(ratio.max()),
        "lambda_floor": floor,
    }


def _spans(
    unit: Any, block: int, dice: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Choose some neighbouring examples of a tile on each axis."""
    found = []
    for start, end in ((unit.i0, unit.i1), (unit.j0, unit.j1)):
        first, last = start // block, end // block
        side = min(max(1, _SIDE // block), last - first)
        begin = first + int(dice.integers(last - first - side + 1))
        found.append((begin, begin + side))
    return found[0], found[1]


def _stored_entries(
    store: Store, index: int, rows: tuple[int, int], cols: tuple[int, int], problem: Problem
) -> Float:
    path = store.path + _paths.PARTIAL
    reader = _core.TileReader(
        path, store.layout, path if store.fmt == "zarr" else _paths.side(path)
    )
    block = problem.block
    spans = [(start * block, end * block) for start, end in (rows, cols)]
    found = np.empty((problem.planes or 1, *(end - start for start, end in spans)), np.float32)
    for plane, entries in enumerate(found):
        reader.block(entries.reshape(-1).view(np.uint8), plane, index, spans[0], spans[1])
    return found.astype(np.float64)


def _exact(job: Job, rows: tuple[int, int], cols: tuple[int, int]) -> tuple[Float, Float]:
    """Return entries in float64, and ``sqrt(K_ii K_jj)`` of each."""
    problem = job.problem
    left = replace(problem, other=None, outputs=(problem.outputs[0],) * 2)
    right = replace(
        problem,
        factors=problem.other or problem.factors,
        other=None,
        outputs=(problem.outputs[1],) * 2,
    )
    exact = _compute(job, problem, ("rectangle", [*rows, *cols]), rows, cols)
    sizes = [
        np.sqrt(np.einsum("pii->pi", _compute(job, side, ("square", [*span]), span, span)))
        for side, span in ((left, rows), (right, cols))
    ]
    return exact, sizes[0][:, :, None] * sizes[1][:, None, :]


def _compute(
    job: Job, problem: Problem, cut: Cut, rows: tuple[int, int], cols: tuple[int, int]
) -> Float:
    wide = replace(job, problem=problem, dtype="float64", accumulate="float64", engine="fused")
    shape = [(end - start) * problem.block for start, end in (rows, cols)]
    out = np.empty((problem.planes or 1, *shape), np.float64)
    limit = job.memory.now().limit
    wide.compute(cut, out if problem.planes is not None else out[0], limit=limit)
    return out
