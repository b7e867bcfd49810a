"""Contract the output rows of full factors to one direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from entk._arrays import Host, common_dtype
from entk._errors import InputError
from entk._outputs import Outputs, resolve
from entk._part import ACTS, IDS, Part

if TYPE_CHECKING:
    from entk._factors import Factors

_CHUNK_BYTES = 1 << 24


def contracted(factors: Factors, outputs: object) -> Factors:
    """Return `factors` with R = 1; see `entk.Factors.contract`."""
    if outputs is None or (isinstance(outputs, str) and outputs != "sum"):
        reason = (
            "is not one direction; entk.assemble(factors, outputs='trace') makes it"
            if outputs == "trace"
            else "is not one direction; use 'sum', the number of an output, or weights"
        )
        raise InputError(f"contract(outputs={outputs!r}): {reason}")
    want = resolve(factors, outputs)
    if want.mode == "as-is":
        return factors
    held = want.index if want.mode == "index" else want.mode

    def change(part: Part) -> object:
        if part.word.endswith((ACTS, IDS)):
            return part.given()
        return _one_row(part, want, factors.rows)

    leaves = {name: leaf._rebuild(change) for name, leaf in factors.items()}
    return factors._with(leaves, outputs=held)  # type: ignore[arg-type]


def _one_row(part: Part, want: Outputs, rows: int) -> Host:
    """Return the array of `part` with its axis of output rows contracted away, if it had one."""
    full, axes = part.host, tuple(a for a in part.axes if a != 1)
    if want.index is not None:
        row = full.view(full.array[:, want.index : want.index + 1])
    else:
        array = _weighted(full, _directions(want, rows))
        row = Host(array, array.dtype.name)
    return Part(part.word, row, axes).given()


def _directions(want: Outputs, rows: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    if want.weights is not None:
        return want.weights
    return np.full(rows, np.sqrt(want.scale))


def _weighted(
    full: Host, weights: np.ndarray[Any, np.dtype[np.float64]]
) -> np.ndarray[Any, np.dtype[Any]]:
    """Return ``sum_r weights[..., r] full[:, r]`` with R = 1, in chunks of examples."""
    shape = full.shape
    result = np.empty((shape[0], 1, *shape[2:]), common_dtype([full.dtype]))
    step = max(1, _CHUNK_BYTES // max(1, 8 * int(np.prod(shape[1:], dtype=object))))
    for low in range(0, shape[0], step):
        part = slice(low, low + step)
        chunk = full.view(full.array[part]).values()
        spec = "r,nr...->n..." if weights.ndim == 1 else "nr,nr...->n..."
        result[part, 0] = np.einsum(spec, weights if weights.ndim == 1 else weights[part], chunk)
    return result
