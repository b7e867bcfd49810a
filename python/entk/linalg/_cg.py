"""Conjugate gradients on many right-hand sides at once, with a low-rank preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from entk import _dense
from entk._dense import Float, Matrix
from entk._errors import ConvergenceError, InputError
from entk.linalg._results import Solution

Apply = Callable[[Float], Float]


def cg(
    op: Any,
    b: ArrayLike,
    ridge: ArrayLike = 0.0,
    tol: float = 1e-8,
    *,
    preconditioner: Any = None,
    maxiter: int | None = None,
    x0: ArrayLike | None = None,
) -> Solution:
    r"""Solve :math:`(K + \mathrm{ridge}\, I)\, x = b` by preconditioned conjugate gradients.

    All columns of `b` advance together, each with its own step lengths, so that one product with
    `K` serves them all; a column leaves when it has converged.

    Parameters
    ----------
    op : `entk.KernelOperator`, any LinearOperator, array or `entk.Kernel`, shape (n, n)
        Symmetric positive definite with its ridge.
    b : array, shape (n,) or (n, m)
        Right-hand sides.
    ridge : float or array of shape (n,)
        Added to the diagonal, in units of the kernel.
    tol : float
        Largest allowed ``|b - (K + ridge) x| / |b|``, column by column.
    preconditioner : low-rank result, LinearOperator, callable or None
        A result of `entk.lowrank` is used as ``(F F^T + s I)^-1`` with `s` the ridge plus the mean
        of what the factor left of the trace [1]_; anything else is applied as it is.
    maxiter : int or None
        Largest number of products; None is ``10 n``, at least 100.
    x0 : array or None
        Where to start.

    Returns
    -------
    Solution
        ``x`` of the shape of `b`, ``residual`` (the largest true relative residual, recomputed at
        the end), ``iterations``.

    Raises
    ------
    ConvergenceError
        If the tolerance is not met, or the operator turns out not to be symmetric positive
        definite; `.best` is the `Solution` with the smallest residual seen.
    InputError
        If shapes disagree, or an array is not symmetric.

    Notes
    -----
    **Cost.** One product with `m` columns an iteration; about ``sqrt(kappa)`` iterations without,
    a few tens with, a preconditioner of rank above the number of eigenvalues larger than the
    ridge [1]_. **Memory.** ``4 n m`` numbers.

    References
    ----------
    .. [1] M. Diaz, E. N. Epperly, Z. Frangella, J. A. Tropp, R. J. Webber, "Robust, randomized
       preconditioning for kernel ridge regression", arXiv:2304.12465.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import cg
    >>> cg(np.diag([1.0, 3.0]), np.array([2.0, 4.0]), ridge=1.0).x.round(12).tolist()
    [1.0, 1.0]
    """
    matrix = _dense.read(op, "op")
    n = matrix.n
    shift = _dense.ridge_of(ridge, n)
    rhs = np.asarray(b, dtype=np.float64)
    if rhs.ndim not in (1, 2) or len(rhs) != n:
        raise InputError(f"b has shape {rhs.shape}; expected ({n},) or ({n}, m)")
    _dense.check_finite_array(rhs, "b")
    if not tol > 0:
        raise InputError(f"tol must be > 0 (got {tol})")
    _dense.check_symmetric(matrix, "op")
    columns = rhs.reshape(n, -1)
    start = np.zeros_like(columns) if x0 is None else np.array(x0, float).reshape(columns.shape)
    run = _Run(matrix, shift, columns, tol, _preconditioner(preconditioner, shift, n))
    solution = run.solve(start, max(100, 10 * n) if maxiter is None else maxiter)
    return solution._replace(x=solution.x.reshape(rhs.shape))


def _preconditioner(given: Any, ridge: Float, n: int) -> Apply:
    if given is None:
        return lambda r: r
    if hasattr(given, "factor") and hasattr(given, "trace_residual"):
        left = max(float(given.trace_residual), 0.0) / max(n, 1)
        shift = float(np.mean(ridge)) + left
        return lambda r: np.asarray(given.solve(r, shift if shift > 0 else _tiny(given)))
    if hasattr(given, "matmat") or isinstance(given, np.ndarray):
        return lambda r: np.asarray(given @ r)
    if callable(given):
        return lambda r: np.asarray(given(r))
    raise InputError(f"preconditioner is a {type(given).__name__}; expected a low-rank result, "
                     "a LinearOperator or a function")  # fmt: skip


def _tiny(given: Any) -> float:
    # A factor that is exact, and no ridge: any shift far below the kernel keeps it invertible.
    return float(np.sum(np.square(given.factor)) / len(given.factor) * 2.0**-40)


class _Run:
    """One call of `cg`: the operator, the columns, and the best iterate seen."""

    def __init__(
        self, matrix: Matrix, ridge: Float, b: Float, tol: float, precondition: Apply
    ) -> None:
        self.matrix = matrix
        self.ridge = ridge if ridge.ndim == 0 else ridge[:, None]
        self.b = b
        self.tol = tol
        self.precondition = precondition
        self.norms = np.linalg.norm(b, axis=0)

    def apply(self, v: Float) -> Float:
        return self.matrix.matmat(v) + self.ridge * v

    def relative(self, r: Float, active: Any) -> Float:
        norms = self.norms[active]
        size = np.linalg.norm(r, axis=0)
        return np.asarray(np.divide(size, norms, out=size.copy(), where=norms > 0))

    def solve(self, x: Float, maxiter: int) -> Solution:
        """Iterate until all columns have converged; restart once if the recurrence drifted."""
        done = 0
        for _ in range(3):
            x, used, trouble = self._sweep(x, maxiter - done)
            done += used
            every = np.arange(self.b.shape[1])
            residual = float(np.max(self.relative(self.b - self.apply(x), every), initial=0.0))
            if residual <= self.tol:
                return Solution(x, residual, done)
            if trouble or done >= maxiter:
                break
        raise self._failure(Solution(x, residual, done), trouble)

    def _sweep(self, x: Float, budget: int) -> tuple[Float, int, str]:
        x = x.copy()
        r = self.b - self.apply(x) if x.any() else self.b.copy()
        active = np.flatnonzero(self.relative(r, slice(None)) > self.tol)
        best, best_size = x.copy(), self.relative(r, slice(None))
        r = r[:, active]
        z = self.precondition(r)
        p = z.copy()
        rz = np.sum(r * z, axis=0)
        for step in range(budget):
            if not len(active):
                return best, step, ""
            ap = self.apply(p)
            curvature = np.sum(p * ap, axis=0)
            if not (curvature > 0).all() or not (rz > 0).all():
                return best, step, "the operator is not positive definite"
            alpha = rz / curvature
            x[:, active] += alpha * p
            r = r - alpha * ap
            size = self.relative(r, active)
            better = size < best_size[active]
            best[:, active[better]] = x[:, active[better]]
            best_size[active[better]] = size[better]
            stay = size > self.tol
            active, r, p, rz = active[stay], r[:, stay], p[:, stay], rz[stay]
            z = self.precondition(r) if len(active) else r
            new = np.sum(r * z, axis=0)
            p = z + (new / rz) * p
            rz = new
        return best, budget, ""

    def _failure(self, best: Solution, trouble: str) -> ConvergenceError:
        reason = self._asymmetry() or trouble
        advice = "raise the ridge, or give a preconditioner (entk.lowrank.rpcholesky)"
        error = ConvergenceError(
            f"residual {best.residual:.2g} after {best.iterations} iterations (tol {self.tol:g}); "
            f"{reason or advice}; `.best` holds the best iterate"
        )
        error.best = best._replace(x=best.x if self.b.shape[1] > 1 else best.x[:, 0])
        return error

    def _asymmetry(self) -> str:
        u, v = np.random.default_rng(0).standard_normal((2, self.matrix.n))
        ku, kv = self.matrix.matmat(u), self.matrix.matmat(v)
        gap = abs(float(u @ kv - v @ ku))
        size = float(np.linalg.norm(u) * np.linalg.norm(kv))
        if gap <= size * 2.0**-20:
            return ""
        return f"the operator is not symmetric: u'Kv - v'Ku = {gap:.2g} for random u, v"
