"""NTK-vector products by forward and reverse mode, with nothing stored but the parameters' size."""

from __future__ import annotations

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
        return np.stack([self._product(column) for column in np.asarray(block).T], axis=1)

    def _adjoint(self) -> NTKOperator:
        return self

    def _product(self, v: NDArray[Any]) -> NDArray[Any]:
        """Return `J (J^T v)`: one pass of pull-backs summed over batches, one of push-forwards."""
        weights = v.reshape(self._n, self._work.rows)
        total = [jnp.zeros_like(leaf) for leaf in self._work.network.leaves]
        for start in range(0, self._n, self._size):
            args, live = self._batch(start)
            padded = np.zeros((self._size, self._work.rows))
            padded[:live] = weights[start : start + live]
            cotangent = jnp.asarray(padded, self._work.traced.out.dtype)
            total = self._pull(total, *args, cotangent)
        out = np.empty((self._n, self._work.rows), self.dtype)
        for start in range(0, self._n, self._size):
            args, live = self._batch(start)
            out[start : start + live] = np.asarray(self._push(total, *args))[:live]
        return out.reshape(-1)

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
    """Return the two compiled passes: `total + J^T V` and `J u` of one batch."""
    rows_axis = 0 if work.meant.per_example else None
    jaxpr = work.traced.jaxpr

    def outputs(consts: Any, leaves: Any, x: Any, rows: Array) -> Array:
        """Return the batch's values in the directions asked for: (size, R)."""

        def one(x: Sequence[Array], rows: Array) -> Array:
            (out,) = walk(jaxpr, consts, [*leaves, *x], Taps())
            return jnp.atleast_1d(rows @ out)

        return jax.vmap(one, in_axes=(0, rows_axis))(x, rows)

    def pull(total: Any, consts: Any, leaves: Any, x: Any, rows: Array, weights: Array) -> Any:
        _, back = jax.vjp(lambda leaves: outputs(consts, leaves, x, rows), leaves)
        return jax.tree.map(jnp.add, total, back(weights)[0])

    def push(direction: Any, consts: Any, leaves: Any, x: Any, rows: Array) -> Array:
        return jax.jvp(lambda leaves: outputs(consts, leaves, x, rows), (leaves,), (direction,))[1]

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
