"""Which directions in output space are pulled back: the cotangent rows of each example."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entk._errors import InputError


@dataclass(frozen=True)
class Rows:
    """The rows asked for.

    Attributes
    ----------
    label : "full", "sum", "weights" or an int
        What `Factors.outputs` will say.
    n_outputs : int
        O, the outputs of the network.
    weights : Tensor or None
        ``(1, O)`` for all examples, ``(N, O)`` one each; None for all rows of the identity.
    own : bool
        Whether each example has a row of its own.
    """

    label: str | int
    n_outputs: int
    weights: Tensor | None

    @property
    def count(self) -> int:
        """R, the rows kept of each example."""
        return self.n_outputs if self.weights is None else 1

    own: bool = False

    def of(self, index: slice | list[int], n: int, like: Tensor) -> Tensor:
        """Return ``(n, O)`` rows of some examples; for ``"full"`` only a placeholder."""
        if self.weights is None:
            return torch.zeros(n, 0, device=like.device)
        rows = self.weights[index] if self.own else self.weights
        if self.own and len(rows) != n:
            raise InputError(
                f"outputs: weights for {len(self.weights):,} examples, but there are more of them"
            )
        return rows.to(like.device).expand(n, -1)

    def each(self, own: Tensor, out: Tensor) -> Iterator[Tensor]:
        """Yield the cotangents ``(O,)`` for one example whose row is `own`."""
        if self.weights is not None:
            yield own.to(out.device, out.dtype)
            return
        for k in range(self.n_outputs):
            row = torch.zeros(self.n_outputs, dtype=out.dtype, device=out.device)
            row[k] = 1
            yield row


def resolve(outputs: Any, n: int | None, n_outputs: int) -> Rows:
    """Check `outputs` and return its rows for a network with `n_outputs`.

    There are `n` examples; None if that is not known yet.
    """
    if isinstance(outputs, str):
        return _by_word(outputs, n_outputs)
    if isinstance(outputs, bool | np.bool_):
        raise InputError(f"outputs={outputs!r}: an output is a number from 0 to {n_outputs - 1}")
    if isinstance(outputs, int | np.integer):
        if not 0 <= outputs < n_outputs:
            raise InputError(f"outputs={outputs}: the network has outputs 0 to {n_outputs - 1}")
        row = torch.zeros(1, n_outputs, dtype=torch.float64, device="cpu")
        row[0, int(outputs)] = 1
        return Rows(int(outputs), n_outputs, row)
    weights = _weights(outputs, n, n_outputs)
    own = weights.ndim == 2
    return Rows("weights", n_outputs, weights if own else weights[None], own)


def _by_word(word: str, n_outputs: int) -> Rows:
    if word == "full":
        return Rows("full", n_outputs, None)
    if word == "sum":
        shape, scale = (1, n_outputs), 1 / math.sqrt(n_outputs)
        row = torch.full(shape, scale, dtype=torch.float64, device="cpu")
        return Rows("sum", n_outputs, row)
    if word in ("trace", "diagonal"):
        raise InputError(
            f"outputs={word!r} is not one direction in output space; make outputs='full' factors "
            f"and assemble them with outputs={word!r}"
        )
    raise InputError(
        f"outputs={word!r}: expected 'sum', 'full', an integer or weights (O,) or (N, O)"
    )


def _weights(outputs: Any, n: int | None, n_outputs: int) -> Tensor:
    given = outputs.detach().cpu() if isinstance(outputs, Tensor) else outputs
    try:
        weights = torch.as_tensor(given, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"outputs is a {type(outputs).__name__}: expected 'sum', 'full', an integer or "
            "weights (O,) or (N, O)"
        ) from error
    examples = weights.shape[0] if n is None and weights.ndim else n
    if tuple(weights.shape) not in {(n_outputs,), (examples, n_outputs)}:
        raise InputError(
            f"outputs: weights of shape {tuple(weights.shape)}; expected ({n_outputs},) or "
            f"({'N' if n is None else n}, {n_outputs})"
        )
    if not bool(torch.isfinite(weights).all()):
        raise InputError("outputs: weights must be finite")
    return weights
