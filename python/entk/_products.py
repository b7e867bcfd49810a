"""``J (J^T V)`` for all leaves: what the core needs for it, made once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from entk import _core, _options, _plan
from entk._arrays import AnyArray
from entk._errors import MemoryLimitError
from entk._leaves import Dense, Leaf, Lookup, Outer, Tied
from entk._options import Memory
from entk._outputs import Outputs
from entk._problem import Problem, Spec

Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

# Ids looked at in one go.
_SOME = 1 << 20


@dataclass(frozen=True, eq=False)
class Products:
    """A kernel as products with the Jacobians of its two sides.

    Attributes
    ----------
    rows, cols : list
        Leaves of both sides as the core takes them; `cols` is None for a symmetric kernel.
    known : list of (array or None)
        Per leaf the ids that both sides look up, ascending; None if the table's height is known.
    weights : tuple of array
        Directions of every example's output rows, flat, of both sides.
    shape : tuple of int
        Examples and kept output rows of the row side, and of the column side.
    """

    rows: list[Spec]
    cols: list[Spec] | None
    known: list[Ids | None]
    weights: tuple[AnyArray, AnyArray]
    shape: tuple[int, int, int]
    outputs: Outputs
    factor_rows: int
    dtype: np.dtype[Any]
    memory: Memory
    threads: int

    @classmethod
    def of(cls, problem: Problem, accumulate: str, memory: Memory, threads: int) -> Products:
        """Bind the leaves of a checked problem."""
        rows, cols = problem.sides()
        other = problem.other or problem.factors
        known = [_common_ids(problem.factors[name], other[name]) for name in problem.names]
        n, m = problem.examples
        left, right = problem.outputs
        r = problem.factors.rows
        weights = (_directions(left, n, r), _directions(right, m, r))
        shape = (n, m, problem.block)
        return cls(
            rows, cols, known, weights, shape, left, r, np.dtype(accumulate), memory, threads
        )

    def turned(self) -> Products:
        """Return the products of the transposed kernel."""
        if self.cols is None:
            return self
        n, m, kept = self.shape
        changed = {"rows": self.cols, "cols": self.rows, "weights": self.weights[::-1]}
        return Products(**{**self.__dict__, **changed, "shape": (m, n, kept)})

    def apply(self, v: AnyArray) -> AnyArray:
        """Return ``K v`` for `v` (columns of the kernel, k) of any type.

        Raises
        ------
        MemoryLimitError
            If the vectors and the smallest pieces do not fit.
        """
        n, m, kept = self.shape
        k, item = v.shape[1], self.dtype.itemsize
        native = v.dtype == self.dtype and v.flags.c_contiguous and v.flags.aligned
        held = item * k * kept * (n + (0 if native else m))
        left = self.memory.limit - held
        if left < 0:
            raise self._too_small(held, k)
        vectors = np.require(v, self.dtype, ["C", "A"])
        y = np.zeros((n * kept, k), self.dtype)
        if not (k and n and m and self.rows):
            return y
        try:
            _core.multiply(
                self.rows, self.cols, self.known, self._options(k, left), vectors.ravel(), y.ravel()
            )
        except MemoryLimitError as error:
            needs = getattr(error, "needs", None)
            if needs is None:
                raise
            raise self._too_small(held + needs, k) from None
        return y

    def _options(self, k: int, limit: int) -> dict[str, Any]:
        mode = {"weights": "contract", "sum": "contract"}.get(self.outputs.mode, self.outputs.mode)
        return {
            "r": self.factor_rows,
            "mode": mode,
            "index": self.outputs.index or 0,
            "row_weights": self.weights[0],
            "col_weights": self.weights[1],
            "scale": self.outputs.scale,
            "threads": self.threads,
            "limit": limit,
            "isa": _options.instruction_set(),
            "vectors": k,
        }

    def _too_small(self, needs: int, k: int) -> MemoryLimitError:
        return MemoryLimitError(
            f"needs at least {_plan.in_bytes(needs + 1023)} for a product with {k:,} vectors; got "
            f"{_plan.in_bytes(self.memory.limit)} ({self.memory.source}); multiply with fewer "
            "vectors at a time"
        )


def _directions(outputs: Outputs, n: int, rows: int) -> AnyArray:
    """Return the weights of every example's output rows, flat; none where rows are not summed."""
    if outputs.mode not in ("sum", "weights"):
        return np.empty(0)
    given = np.ones(rows) if outputs.weights is None else outputs.weights
    return np.broadcast_to(given, (n, rows)).reshape(-1)


def _common_ids(leaf: Leaf, other: Leaf) -> Ids | None:
    """Return the ids that both sides look up, ascending; None if the table's height is known."""
    if isinstance(leaf, Dense | Outer):
        return None
    if isinstance(leaf, Tied) and any(isinstance(use, Outer) for use in leaf._uses):
        return None
    mine = _ids(leaf)
    return mine if leaf is other else np.intersect1d(mine, _ids(other), assume_unique=True)


def _ids(leaf: Leaf) -> Ids:
    found = np.empty(0, np.int64)
    for use in leaf._uses if isinstance(leaf, Tied) else (leaf,):
        assert isinstance(use, Lookup), "checked by the caller"
        ids = use._ids.array
        step = max(1, _SOME // max(1, ids.shape[1]))
        for first in range(0, len(ids), step):
            some = ids[first : first + step]
            found = np.union1d(found, some[some >= 0].astype(np.int64))
    return found
