"""``J (J^T V)`` for all leaves: what the core needs for it, made once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from entk import _core, _options
from entk._arrays import AnyArray
from entk._leaves import Dense, Leaf, Lookup, Outer, Tied
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
    names : list of str
        The leaves.
    rows, cols : list
        Leaves of both sides as the core takes them; `cols` is None for a symmetric kernel.
    known : list of (array or None)
        Per leaf the ids that both sides look up, ascending; None if the table's height is known.
    weights : tuple of array
        Directions of every example's output rows, flat, of both sides.
    """

    names: list[str]
    rows: list[Spec]
    cols: list[Spec] | None
    known: list[Ids | None]
    weights: tuple[AnyArray, AnyArray]
    outputs: Outputs
    factor_rows: int
    threads: int

    @classmethod
    def of(cls, problem: Problem, threads: int) -> Products:
        """Bind the leaves of a checked problem."""
        rows, cols = problem.sides()
        other = problem.other or problem.factors
        known = [_common_ids(problem.factors[name], other[name]) for name in problem.names]
        n, m = problem.examples
        left, right = problem.outputs
        r = problem.factors.rows
        weights = (_directions(left, n, r), _directions(right, m, r))
        return cls(problem.names, rows, cols, known, weights, left, r, threads)

    def select(self, names: list[str]) -> Products:
        """Return the products of some leaves."""
        kept = [self.names.index(name) for name in names]

        def some(of: list[Any]) -> list[Any]:
            return [of[i] for i in kept]

        cols = None if self.cols is None else some(self.cols)
        return replace(self, names=names, rows=some(self.rows), cols=cols, known=some(self.known))

    def add(self, v: AnyArray, y: AnyArray, limit: int) -> None:
        """Add ``K v`` to `y`, both of the type of the sums and in C order.

        Raises
        ------
        MemoryLimitError
            With the bytes that the smallest pieces need, in `needs`, if they are not in `limit`.
        """
        options = self._options(v.shape[1], limit)
        _core.multiply(self.rows, self.cols, self.known, options, v.reshape(-1), y.reshape(-1))

    def work(self, k: int) -> list[int]:
        """Return each leaf's multiplications and additions in a product with `k` vectors."""
        return _core.multiply_work(self.rows, self.cols, self.known, self._options(k, 0))

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
