"""What `outputs=` means for a front end: the cotangent rows that are pulled back."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from entk._errors import InputError

Meaning = Literal["sum", "full", "weights"] | int


@dataclass(frozen=True)
class Directions:
    """Cotangents and what they mean.

    `rows` is (O,) for one direction, (O, O) for all outputs, (N, O) for a direction an example.
    """

    meaning: Meaning
    rows: NDArray[np.float64]
    per_example: bool = False

    def of(self, start: int, stop: int, size: int) -> NDArray[np.float64]:
        """Return the rows for examples start to stop, the last repeated to make `size`."""
        if not self.per_example:
            return self.rows
        return self.rows[np.minimum(np.arange(start, start + size), stop - 1)]

    def at(self, example: int) -> NDArray[np.float64]:
        """Return the rows for one example."""
        return self.rows[example] if self.per_example else self.rows


def directions(outputs: Any, n: int, n_outputs: int) -> Directions:
    """Read `outputs`; refuse what is no direction, or what does not fit."""
    if isinstance(outputs, str):
        return _word(outputs, n_outputs)
    if isinstance(outputs, int | np.integer) and not isinstance(outputs, bool):
        return _index(int(outputs), n_outputs)
    if outputs is None or isinstance(outputs, bool) or not np.ndim(outputs):
        raise InputError(
            f"outputs={outputs!r} is not understood; use 'sum', 'full', the number of an output, or"
            " weights (O,) or (N, O)"
        )
    return _weights(outputs, n, n_outputs)


def _word(outputs: str, n_outputs: int) -> Directions:
    if outputs == "sum":
        return Directions("sum", np.full(n_outputs, 1 / sqrt(n_outputs)))
    if outputs == "full":
        rows = np.eye(n_outputs)
        return Directions("full", rows if n_outputs > 1 else rows[0])
    if outputs in ("trace", "diagonal"):
        raise InputError(
            f"outputs={outputs!r} is not a direction of the outputs: take factors with"
            f" outputs='full' and assemble them with outputs={outputs!r}"
        )
    raise InputError(
        f"outputs={outputs!r} is not understood; use 'sum', 'full', the number of an output, or"
        " weights (O,) or (N, O)"
    )


def _index(output: int, n_outputs: int) -> Directions:
    if not 0 <= output < n_outputs:
        raise InputError(f"outputs={output}: the network has outputs 0 to {n_outputs - 1}")
    return Directions(output, np.eye(1, n_outputs, output)[0])


def _weights(outputs: Any, n: int, n_outputs: int) -> Directions:
    rows = np.asarray(outputs)
    if rows.dtype.kind not in "fiub":
        try:
            rows = rows.astype(np.float32)  # bfloat16 and its kin
        except (TypeError, ValueError):
            raise InputError(f"outputs: weights must be numbers, not {rows.dtype}") from None
    rows = rows.astype(np.float64)
    if rows.shape not in ((n_outputs,), (n, n_outputs)):
        raise InputError(
            f"outputs: weights have shape {rows.shape}; expected ({n_outputs},) or"
            f" ({n}, {n_outputs})"
        )
    if not np.isfinite(rows).all():
        raise InputError("outputs: weights must be finite")
    return Directions("weights", rows, per_example=rows.ndim == 2)
