"""NTK-vector products by forward and reverse mode, with nothing stored but the parameters' size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator

from entk.jax._batches import choose_batch
from entk.jax._compat import Array
from entk.jax._extraction import Extraction, prepare
from entk.jax._inputs import examples_at, readable
from entk.jax._network import Function, count_examples
from entk.jax._program import cached, full_precision
from entk.jax._taps import Taps
from entk.jax._trace import walk

_VECTORS = 8
_WORKING = 1 << 30
"""Most vectors at a time, and bytes that they may take where one does not take more."""


class NTKOperator(LinearOperator):  # type: ignore[misc]
    """The kernel of a network as a symmetric operator; see `entk.jax.operator`."""

    def __init__(self, work: Extraction, x: Any, n: int, size: int) -> None:
        side = n * work.rows
        dtype = np.result_type(np.float32, np.dtype(work.traced.out.dtype))
        super().__init__(dtype, (side, side))
        self._work, self._x, self._n, self._size = work, x, n, size
        self._pull, self._push = _compiled(work)

    def _matvec(self, v: NDArray[Any]) -> NDArray[Any]:
        return self._matmat(np.reshape(v, (-1, 1)))[:, 0]

    def _matmat(self, block: NDArray[Any]) -> NDArray[Any]:
        rows = np.asarray(block).T
        out = np.empty(rows.shape, self.dtype)
        for start, stop in self._spans(len(rows)):
            out[start:stop] = self._product(rows[start:stop])
        return out.T

    def _spans(self, k: int) -> list[tuple[int, int]]:
        """Share out k vectors evenly to as few products as memory allows."""
        work = self._work
        each = 2 * sum(int(leaf.nbytes) for leaf in work.network.leaves)
        each += self._size * work.program().working_bytes
        parts = -(-k // max(1, min(_VECTORS, _WORKING // max(1, each))))
        cuts = np.linspace(0, k, parts + 1).astype(int).tolist() if k else [0]
        return list(itertools.pairwise(cuts))

    def _adjoint(self) -> NTKOperator:
        return self

    def _product(self, v: NDArray[Any]) -> NDArray[Any]:
        """Return `J (J^T v)` for rows (k, N R): pull-backs summed over batches, push-forwards."""
        k, rows = len(v), self._work.rows
        weights = v.reshape(k, self._n, rows)
        total = [jnp.zeros((k, *leaf.shape), leaf.dtype) for leaf in self._work.network.leaves]
        for start in range(0, self._n, self._size):
            args, live = self._batch(start)
            padded = np.zeros((k, self._size, rows))
            padded[:, :live] = weights[:, start : start + live]
            cotangents = jnp.asarray(padded, self._work.traced.out.dtype)
            total = self._pull(total, *args, cotangents)
        out = np.empty((k, self._n, rows), self.dtype)
        for start in range(0, self._n, self._size):
            args, live = self._batch(start)
            out[:, start : start + live] = np.asarray(self._push(total, *args))[:, :live]
        return out.reshape(k, -1)

    def _batch(self, start: int) -> tuple[tuple[Any, ...], int]:
        stop = min(start + self._size, self._n)
        x = jax.tree.leaves(examples_at(self._x, range(start, stop), self._size))
        given = self._work.meant.of(start, stop, self._size)
        rows = jnp.asarray(given, self._work.traced.out.dtype)
        network = self._work.network
        return (self._work.traced.consts, network.leaves, x, rows), stop - start


def operator(
    f: Function, params: Any, x: Any, *, outputs: Any = "sum", batch_size: int | None = None
) -> NTKOperator:
    """Return the kernel as an operator."""
    n = count_examples(x)
    x = readable(x)
    work = prepare(f, params, x, n, outputs)
    working = work.program().working_bytes
    return NTKOperator(work, x, n, choose_batch(batch_size, n, working, 0, None))


def _compiled(work: Extraction) -> tuple[Any, Any]:
    """Return the two compiled passes of one batch, for k vectors: `total + J^T V` and `J U`."""
    rows_axis = 0 if work.meant.per_example else None
    jaxpr, over = work.traced.jaxpr, work.program().over

    def outputs(consts: Any, leaves: Any, x: Any, rows: Array) -> Array:
        """Return the batch's values in the directions asked for: (size, R)."""

        def one(x: Sequence[Array], rows: Array) -> Array:
            (out,) = walk(jaxpr, consts, [*leaves, *x], Taps())
            return jnp.atleast_1d(rows @ out)

        return over(one, in_axes=(0, rows_axis))(x, rows)

    def pull(total: Any, consts: Any, leaves: Any, x: Any, rows: Array, weights: Array) -> Any:
        _, back = jax.vjp(lambda leaves: outputs(consts, leaves, x, rows), leaves)
        return jax.tree.map(jnp.add, total, for_all(lambda one: back(one)[0], weights))

    def push(directions: Any, consts: Any, leaves: Any, x: Any, rows: Array) -> Array:
        def values(leaves: Any) -> Array:
            return outputs(consts, leaves, x, rows)

        if work.traced.back_only:
            out, back = jax.vjp(values, leaves)
            turned = jax.linear_transpose(lambda weights: back(weights)[0], out)
            return for_all(lambda one: turned(one)[0], directions)
        _, forward = jax.linearize(values, leaves)
        return for_all(forward, directions)

    def for_all(function: Any, given: Any) -> Any:
        """Map over vectors; an only one without a mapped axis, which costs time."""
        if len(jax.tree.leaves(given)[0]) == 1:
            out = function(jax.tree.map(lambda array: array[0], given))
            return jax.tree.map(lambda array: array[None], out)
        return over(function)(given)

    def make() -> tuple[Any, Any]:
        return _precise(pull), _precise(push)

    key = ("operator", work.traced.text, work.meant.rows.ndim, work.meant.per_example)
    return cached(work.network.f, key, make)  # type: ignore[no-any-return]


def _precise(function: Any) -> Any:
    compiled = jax.jit(function)

    def run(*args: Any) -> Any:
        with full_precision():
            return compiled(*args)

    return run
