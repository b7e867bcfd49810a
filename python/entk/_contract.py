"""Contract the output rows of full factors to one direction."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from entk._arrays import Host, common_dtype
from entk._errors import InputError
from entk._outputs import Outputs, Weights, resolve
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
        return _one_row(part, want)

    leaves = {name: leaf._rebuild(change) for name, leaf in factors.items()}
    return factors._with(leaves, outputs=held)  # type: ignore[arg-type]


def _one_row(part: Part, want: Outputs) -> Host:
    """Return the array of `part` with its axis of output rows contracted away, if it had one."""
    full, axes = part.host, tuple(a for a in part.axes if a != 1)
    if want.index is not None:
        row = full.view(full.array[:, want.index : want.index + 1])
    else:
        array = _weighted(full, want.weights)
        row = Host(array, array.dtype.name)
    return Part(part.word, row, axes).given()


def _weighted(full: Host, weights: Weights | None) -> np.ndarray[Any, np.dtype[Any]]:
    """Return ``sum_r weights[..., r] full[:, r]``, or the sum over ``sqrt(R)``, with R = 1.

    In float64 by chunks of examples, each rounded once.
    """
    n, rows, *rest = full.shape
    result = np.empty((n, 1, *rest), common_dtype([full.dtype]))
    step = max(1, _CHUNK_BYTES // max(1, 8 * rows * prod(rest)))
    for low in range(0, n, step):
        part = slice(low, low + step)
        chunk = full.view(full.array[part]).values()
        if weights is None:
            one = chunk.sum(axis=1) / np.sqrt(rows)
        elif weights.ndim == 1:
            one = np.einsum("r,nr...->n...", weights, chunk)
        else:
            one = np.einsum("nr,nr...->n...", weights[part], chunk)
        result[part, 0] = one
    return result
