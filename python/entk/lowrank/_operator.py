"""A low-rank matrix behind the interface of `entk.KernelOperator`."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from entk._dense import Float


class FactorOperator(LinearOperator):  # type: ignore[misc]
    """``F F^T``, never formed."""

    def __init__(self, factor: Float) -> None:
        super().__init__(np.dtype(np.float64), (len(factor), len(factor)))
        self._factor = factor

    def _matmat(self, v: Float) -> Float:
        product: Float = self._factor @ (self._factor.T @ v)
        return product

    def _adjoint(self) -> FactorOperator:
        return self

    def diagonal(self) -> Float:
        """Return the diagonal."""
        return np.asarray(np.einsum("nk,nk->n", self._factor, self._factor))

    def rows(self, index: Any) -> Float:
        """Return the rows `index`."""
        return self.block(index, slice(None))

    def block(self, rows: Any, cols: Any) -> Float:
        """Return the entries of `rows` and `cols`, slices or arrays of integers."""
        product: Float = self._factor[rows] @ self._factor[cols].T
        return product

    def trace(self) -> float:
        """Return the trace."""
        return float(np.vdot(self._factor, self._factor))
