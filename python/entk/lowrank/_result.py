"""A kernel approximated as ``F F^T``, and what can be done with it in O(N k)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entk import _dense
from entk._dense import Float
from entk._errors import InputError


@dataclass(frozen=True, eq=False)
class LowRank:
    """A low-rank approximation ``K ~ F F^T``.

    Attributes
    ----------
    factor
        F, float64, (N, k).
    pivots
        Columns of the kernel it rests on, in the order they were chosen; empty for a sketch.
    trace_residual
        ``trace(K - F F^T)``. For a Nystrom factor ``K - F F^T`` is positive semi-definite, so this
        bounds its spectral and Frobenius norms, and no entry is off by more.
    trace
        ``trace(K)``.
    """

    factor: Float
    pivots: NDArray[np.intp]
    trace_residual: float
    trace: float
    _random: Mapping[str, Any] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Show size and error, not numbers."""
        return (
            f"{type(self).__name__}(N={len(self.factor)}, rank={self.rank}, "
            f"trace_residual={self.trace_residual:.3g} of {self.trace:.3g})"
        )

    @property
    def rank(self) -> int:
        """Number of columns of the factor."""
        return int(self.factor.shape[1])

    def matvec(self, v: ArrayLike) -> Float:
        """Return ``F F^T v``, for one vector or several as columns."""
        result: Float = self.factor @ (self.factor.T @ np.asarray(v, dtype=np.float64))
        return result

    def solve(self, b: ArrayLike, ridge: float) -> Float:
        """Solve ``(F F^T + ridge I) x = b``.

        Parameters
        ----------
        b : array, shape (N,) or (N, m)
            Right-hand sides.
        ridge : float
            Positive, in units of the kernel.

        Returns
        -------
        ndarray of float64, the shape of `b`

        Raises
        ------
        InputError
            If `ridge` is not positive: the low-rank matrix is singular.

        Notes
        -----
        **Cost.** ``N k^2`` flops once, then ``4 N k m``. Through the singular value decomposition
        of the factor, which stays accurate where the Woodbury formula does not.
        """
        if not (np.isfinite(ridge) and ridge > 0):
            raise InputError(f"ridge must be > 0 to solve with a low-rank matrix (got {ridge})")
        values = np.asarray(b, dtype=np.float64)
        if values.ndim not in (1, 2) or len(values) != len(self.factor):
            raise InputError(f"b has shape {values.shape}; expected ({len(self.factor)}, ...)")
        left, squares = self._svd
        inner = left.T @ values
        share = squares / (squares + ridge)
        part = left @ (share[:, None] * inner if values.ndim == 2 else share * inner)
        return np.asarray((values - part) / ridge)

    @cached_property
    def _svd(self) -> tuple[Float, Float]:
        from scipy.linalg import svd

        if not self.factor.size:
            return np.empty((len(self.factor), 0)), np.empty(0)
        left, values, _ = svd(self.factor, full_matrices=False, check_finite=False)
        return left, np.square(values)

    def extend(self, cross: ArrayLike) -> Float:
        r"""Return the rows of the factor that new points would have.

        :math:`F_* = K_{*P} F_P^{-\top}` with P the pivots, the Nystrom extension [1]_: ``F_* F^T``
        is the kernel of the new points with the old ones, exact at the pivots.

        Parameters
        ----------
        cross : array, shape (M, p)
            Kernel of the new points (rows) with the p pivots, in their order.

        Returns
        -------
        ndarray of float64, shape (M, k)

        Raises
        ------
        InputError
            If `cross` has another number of columns, or this is a sketch, which has no pivots:
            sketch the new points with the same seed.

        Notes
        -----
        **Cost.** ``k^3 + M k^2`` flops.

        References
        ----------
        .. [1] C. Williams, M. Seeger, "Using the Nystrom Method to Speed Up Kernel Machines",
           NIPS 2000.

        Examples
        --------
        >>> import numpy as np
        >>> from entk.lowrank import rpcholesky
        >>> x = np.arange(8.0).reshape(4, 2)
        >>> K = x @ x.T
        >>> low = rpcholesky(K[:3, :3], 2)
        >>> bool(np.allclose(low.extend(K[3:, low.pivots]) @ low.factor.T, K[3:, :3]))
        True
        """
        values = np.asarray(cross, dtype=np.float64)
        pivots = len(self.pivots)
        if pivots < self.rank:
            raise InputError("a sketch has no pivots; sketch the new points with the same seed")
        if values.ndim != 2 or values.shape[1] != pivots:
            raise InputError(
                f"cross has shape {values.shape}; expected (M, {pivots}), the kernel of the new "
                "points with the pivots"
            )
        _dense.check_finite_array(values, "cross")
        at_pivots = self.factor[self.pivots]
        if pivots == self.rank:
            return np.asarray(np.linalg.solve(at_pivots, values.T).T)
        # Landmarks that depend on each other: more of them than columns.
        return np.asarray(np.linalg.lstsq(at_pivots, values.T, rcond=None)[0].T)

    def eigenvalues(self) -> Float:
        """Return the nonzero eigenvalues of ``F F^T``, ascending."""
        return self._svd[1][::-1].copy()

    def to_operator(self) -> Any:
        """Return a `scipy.sparse.linalg.LinearOperator` that multiplies by ``F F^T``.

        It has `diagonal()`, `rows(index)`, `block(rows, cols)` and `trace()` as
        `entk.KernelOperator` has, so that everything that takes one takes it.
        """
        from entk.lowrank._operator import FactorOperator

        return FactorOperator(self.factor)

    def resume(self, K_or_factors: Any, rank: int, *, tol: float | None = None) -> LowRank:
        """Continue to a higher rank, as `rpcholesky` with ``state=self``.

        Parameters
        ----------
        K_or_factors, rank, tol
            As in `rpcholesky`.

        Returns
        -------
        LowRank
            Its first columns are those of this one.
        """
        from entk.lowrank._rpcholesky import rpcholesky

        return rpcholesky(K_or_factors, rank, tol=tol, state=self)


@dataclass(frozen=True, eq=False, repr=False)
class Sketch(LowRank):
    """Random features ``F`` with ``E[F F^T] = K``.

    Attributes
    ----------
    dim, seed
        How it was made; features of other data made with the same two match these.
    entry_error
        ``3 / sqrt(dim)``: no entry of ``F F^T`` has a standard deviation above this times
        ``sqrt(K_ii K_jj)``.
    diagonal_error
        What the diagonal really is off by, root mean square, relative.
    """

    dim: int = 0
    seed: int = 0
    diagonal_error: float = 0.0

    @property
    def entry_error(self) -> float:
        """Bound on the relative standard deviation of an entry."""
        return 3.0 / float(np.sqrt(self.dim))


def from_factor(
    factor: Float, pivots: ArrayLike, diag: Float, random: Mapping[str, Any] | None = None
) -> LowRank:
    """Make a result whose trace residual is exact: it is summed from the diagonals themselves."""
    left = diag - np.einsum("nk,nk->n", factor, factor)
    residual = max(float(np.sum(left)), 0.0)
    index = np.asarray(pivots, dtype=np.intp)
    return LowRank(factor, index, residual, float(np.sum(diag)), random)


def read(K_or_factors: Any) -> _dense.Matrix:
    """Read a kernel whose diagonal is finite and not negative.

    Raises
    ------
    InputError
        If the diagonal says that it is no kernel.
    """
    matrix = _dense.read(K_or_factors)
    diag = matrix.diag
    _dense.check_finite_array(diag, "diagonal of K")
    if (diag < 0).any():
        i = int(np.argmax(diag < 0))
        raise InputError(f"K is no kernel: sample {i} has a negative diagonal {diag[i]:.2g}")
    return matrix
