"""What the user's function itself says of a few examples: what checks compare with.

One compiled function answers both questions, as compiling is most of the time a small network
takes: the outputs of a few examples in one batch and one by one, and the gradient of one. Products
with a single example are avoided: XLA compiles each of them as a loop of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from entk._errors import ModelError
from entk.jax._compat import Array
from entk.jax._example import in_turn
from entk.jax._network import Network
from entk.jax._program import Trace, cached, full_precision, runner, trace
from entk.jax._taps import Taps
from entk.jax._trace import walk


class Witness:
    """A network on `n` examples at a time; `main` is its trace for one of them."""

    def __init__(self, network: Network, main: Trace, n: int, *, with_gradient: bool) -> None:
        self.network, self._main, self.n = network, main, n
        self._with_gradient = with_gradient
        self._traced: Trace | None = None

    def outputs(self, x: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the outputs of n examples, as one batch and as n of one: (n, O) each."""
        together, alone, *_ = self._ask(x, np.zeros(self._main.out.shape))
        return together, alone

    def gradient(self, x: Any, row: Any) -> list[NDArray[np.float64]]:
        """Return `jax.grad` of `row . f(params, x)` for an example, n times in a batch."""
        _, _, *gradients = self._ask(x, row)
        return gradients

    def _ask(self, x: Any, row: Any) -> list[NDArray[np.float64]]:
        rows = np.zeros((self.n, *self._main.out.shape), self._main.out.dtype)
        rows[0] = row
        args = (self.network.leaves, x, rows)
        if self._traced is None:
            self._traced = trace(self._say, *args)
        traced = self._traced
        run = cached(self.network.f, ("witness", traced.text), lambda: runner(traced.jaxpr))
        with full_precision():
            answers = run(traced.consts, *args)
        return [np.asarray(array).astype(np.float64) for array in answers]

    def _say(self, leaves: Sequence[Array], x: Any, rows: Array) -> Any:
        """Return (together, alone, *gradients)."""
        together, alone = self.network.many(leaves, x, self.n), self._alone(leaves, x)
        if together.shape != alone.shape:
            raise ModelError(
                f"f returns {together.shape[1]} numbers for each example of a batch of {self.n},"
                f" but {alone.shape[1]} for an example alone; the first axis of what it returns"
                " must be the batch"
            )
        if not self._with_gradient:
            return together, alone
        _, pull = jax.vjp(lambda leaves: self.network.many(leaves, x, self.n), leaves)
        return together, alone, pull(rows)[0]

    def _alone(self, leaves: Sequence[Array], x: Any) -> Array:
        main = self._main

        def one(x: Any) -> Array:
            (out,) = walk(main.jaxpr, main.consts, [*leaves, *jax.tree.leaves(x)], Taps())
            return out

        try:
            return jax.vmap(one)(x)
        except Exception:  # what JAX cannot map, as in the program itself
            return in_turn(one)(x)
