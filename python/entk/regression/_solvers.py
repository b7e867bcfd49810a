"""Three ways to solve ``(K + ridge I) alpha = y``, and what leave-one-out needs of the inverse.

One Cholesky factor serves one ridge, one eigendecomposition serves them all, conjugate gradients
need products only (and give no inverse, so no leave-one-out).
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from entk import _dense
from entk._dense import Float, Matrix
from entk._errors import InputError, NotPositiveDefiniteError
from entk.linalg import _limits, cg, cholesky, factored_solve
from entk.linalg._eigen import eigh

SOLVERS = ("auto", "cholesky", "eigen", "cg")


class Solver(Protocol):
    """A regularised kernel that can be solved with."""

    def dual(self, columns: Float, ridge: float) -> Float:
        """Return ``(K + ridge I)^-1 columns``."""

    def inverse_blocks(self, block: int, ridge: float) -> Float:
        """Return the diagonal blocks of the inverse, ``(N, block, block)``."""


class Factored:
    """A Cholesky factor of ``K + ridge I``."""

    def __init__(self, matrix: Matrix, ridge: Any) -> None:
        self.lower = cholesky(matrix, ridge)

    def dual(self, columns: Float, ridge: float) -> Float:
        """Return ``(K + ridge I)^-1 columns``."""
        return factored_solve(self.lower, columns)

    def inverse_blocks(self, block: int, ridge: float) -> Float:
        """Return the diagonal blocks of the inverse, ``(N, block, block)``."""
        from scipy.linalg.lapack import dtrtri

        n = len(self.lower)
        if n == 0:
            return np.empty((0, block, block))
        inverse = dtrtri(self.lower.T, lower=0)[0]  # L^-T, upper triangular
        rows = inverse.reshape(n // block, block, n)
        return np.asarray(np.einsum("npk,nqk->npq", rows, rows))


class Spectral:
    """Eigenvalues and eigenvectors of `K`: any number of ridges."""

    def __init__(self, matrix: Matrix, ridges: list[float]) -> None:
        _dense.check_symmetric(matrix)
        self.values, self.vectors = eigh(matrix, None)
        lowest = float(np.min(self.values, initial=np.inf))
        if not lowest + min(ridges) > 2.0**-53 * float(np.max(self.values, initial=0.0)):
            raise NotPositiveDefiniteError(
                f"the smallest eigenvalue {lowest:.2g} plus ridge {min(ridges):.2g} is not above "
                f"rounding; the noise floor is {matrix.noise:.1e}; add ridge >= {matrix.noise:.1e}"
            )

    def dual(self, columns: Float, ridge: float) -> Float:
        """Return ``(K + ridge I)^-1 columns``."""
        return self.vectors @ ((self.vectors.T @ columns) / (self.values + ridge)[:, None])

    def inverse_blocks(self, block: int, ridge: float) -> Float:
        """Return the diagonal blocks of the inverse, ``(N, block, block)``."""
        n = len(self.values)
        rows = self.vectors.reshape(n // block, block, n)
        return np.asarray(np.einsum("npk,nqk->npq", rows / (self.values + ridge), rows))


class Iterative:
    """Conjugate gradients on products alone, preconditioned by a low-rank factor.

    The factor has the rank at which making it, ``k n`` entries and ``n k^2`` flops, costs about
    what a handful of products do, or less where a ridge's worth of the trace is left earlier.
    """

    def __init__(self, matrix: Matrix, tol: float, smallest: float) -> None:
        from entk.lowrank import rpcholesky

        self.matrix, self.tol = matrix, tol
        rank = min(matrix.n, 50 + int(4 * np.sqrt(matrix.n)))
        trace = float(np.sum(matrix.diag))
        enough = smallest * matrix.n / trace if trace > 0 else None
        self.factor = rpcholesky(matrix, rank, tol=enough) if matrix.n else None

    def dual(self, columns: Float, ridge: float) -> Float:
        """Return ``(K + ridge I)^-1 columns``."""
        return cg(self.matrix, columns, ridge, self.tol, preconditioner=self.factor).x

    def inverse_blocks(self, block: int, ridge: float) -> Float:
        """Refuse: conjugate gradients give no inverse."""
        raise InputError(
            'leave-one-out and GCV need a factor of the kernel: use solver="cholesky" or "eigen"'
        )


def choose(matrix: Matrix, ridges: list[float], solver: str, tol: float) -> Solver:
    """Pick and prepare a solver.

    "auto": Cholesky for one ridge, an eigendecomposition for several, conjugate gradients for an
    operator whose kernel does not fit memory.

    Raises
    ------
    InputError
        For an unknown word, or Cholesky with several ridges.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver={solver!r}; expected one of {', '.join(SOLVERS)}")
    if solver == "auto":
        needs = 8 * matrix.n**2 * (1 if len(ridges) == 1 else 2)
        dense = "cholesky" if len(ridges) == 1 else "eigen"
        solver = dense if matrix.kind != "operator" or _limits.fits(needs, None) else "cg"
    if solver == "cg":
        return Iterative(matrix, tol, min(ridges))
    if solver == "eigen":
        return Spectral(matrix, ridges)
    if len(ridges) > 1:
        raise InputError('solver="cholesky" factors one ridge; use "eigen" for several')
    return Factored(matrix, ridges[0])


def leave_one_out(solver: Solver, dual: Float, block: int, ridge: float) -> Float:
    """Return ``y - prediction without that sample`` for columns of targets, in closed form.

    ``[(G^-1)_nn]^-1 alpha_n`` with ``G = K + ridge I`` and nn the block of sample n: the solution
    without the sample is the one whose dual coefficients vanish there.
    """
    blocks = solver.inverse_blocks(block, ridge)
    pieces = dual.reshape(len(blocks), block, -1)
    return np.asarray(np.linalg.solve(blocks, pieces).reshape(dual.shape))


def gcv(solver: Solver, dual: Float, ridge: float) -> float:
    """Return generalised cross-validation, ``n |(I - H) y|^2 / tr(I - H)^2``, a column's mean.

    ``I - H = ridge G^-1``, so the ridge cancels and the limit without one exists. Golub, Heath,
    Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter", 1979.
    """
    trace = float(np.sum(solver.inverse_blocks(1, ridge)))
    return float(len(dual) * np.mean(np.sum(np.square(dual), axis=0)) / trace**2)
