"""Eigenvalues: dense while it fits, Lanczos beyond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from entk import _dense
from entk._dense import Float, Matrix
from entk._errors import ConvergenceError, InputError, InternalError
from entk._floor import ROUNDOFF
from entk.linalg import _limits
from entk.linalg._results import Eigen, Measured, Spectrum

Which = Literal["LM", "LA", "SM", "SA"]

LAPACK_RATIO = 30.0  # its tests accept residuals below this, in units of n u |K|
DENSE_ROWS = 1500  # below this a dense solver beats Lanczos for any k


def eigvalsh(K: Any, *, memory: int | str | None = None) -> Spectrum:
    """Compute all eigenvalues of a kernel in float64, ascending.

    Uses LAPACK's ``?syevr``: the workspace of ``?syevd``, which NumPy calls, overflows 32-bit
    integers at n = 32,767.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Symmetric, finite.
    memory : int, str or None
        Bound on what the call adds: it needs ``8 n^2`` bytes.

    Returns
    -------
    Spectrum
        An ndarray of float64, shape (n,), with `.floor` (the noise floor) and `.n_below_floor`.
        Negative values within the floor are rounding; they are reported, not clipped.

    Raises
    ------
    InputError
        If `K` is not symmetric.
    NonFiniteError
        If `K` holds NaN or infinity.
    MemoryLimitError
        If `K` does not fit: use `eigsh` for some eigenvalues.
    SizeError
        If LAPACK's integers cannot count the workspace.
    InternalError
        If the eigenvalues do not add up to the kernel's trace and Frobenius norm.

    Notes
    -----
    **Cost.** ``4 n^3 / 3`` flops. **Precision.** Backward error of a few ``n u lambda_max``.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import eigvalsh
    >>> values = eigvalsh(np.diag([3.0, 1.0]))
    >>> values.tolist(), values.n_below_floor
    ([1.0, 3.0], 0)
    """
    matrix = _prepare(K)
    return Spectrum.of(_dense_values(matrix, memory), matrix.noise)


def eigsh(
    K: Any,
    k: int,
    which: Which = "LM",
    *,
    tol: float = 0.0,
    maxiter: int | None = None,
    seed: int = 0,
    memory: int | str | None = None,
) -> Eigen:
    """Compute `k` eigenvalues and eigenvectors of a kernel in float64.

    Small kernels, the small end of the spectrum, and `k` above a tenth of n take LAPACK's
    ``?syevr`` while it fits; else implicitly restarted Lanczos [1]_, which needs only products.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Symmetric, finite.
    k : int
        How many, from 1 to n.
    which : {"LM", "LA", "SM", "SA"}
        Largest or smallest, in magnitude or algebraically.
    tol : float
        Relative accuracy of Lanczos; 0 is machine precision.
    maxiter : int or None
        Restarts of Lanczos; None is ``10 n``.
    seed : int
        Of the start vector.
    memory : int, str or None
        Bound on what the call adds.

    Returns
    -------
    Eigen
        ``values (k,)`` ascending, ``vectors (n, k)``, ``floor``, and ``n_below_floor``.

    Raises
    ------
    InputError
        If `k` or `which` is out of range, or `K` is not symmetric.
    NonFiniteError
        If `K` holds NaN or infinity.
    ConvergenceError
        If Lanczos does not converge; `.best` holds the `Eigen` pairs that did.
    MemoryLimitError, SizeError
        As `eigvalsh`.

    Notes
    -----
    **Cost.** Dense ``9 n^3`` flops at most; Lanczos about ``2 n^2`` flops a product, some tens of
    products for the large end. The small end of a kernel is clustered at its noise floor, where
    Lanczos converges slowly: prefer a dense solve there.

    References
    ----------
    .. [1] R. B. Lehoucq, D. C. Sorensen, C. Yang, "ARPACK Users' Guide", SIAM 1998.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import eigsh
    >>> eigsh(np.diag([1.0, 5.0, 3.0]), 2).values.tolist()
    [3.0, 5.0]
    """
    if which not in ("LM", "LA", "SM", "SA"):
        raise InputError(f"which={which!r}; expected 'LM', 'LA', 'SM' or 'SA'")
    matrix = _prepare(K)
    n = matrix.n
    if isinstance(k, bool) or not 1 <= k <= max(n, 1):
        raise InputError(f"k must be between 1 and {n}, the rows of K (got {k})")
    if _dense_is_better(matrix, k, which, memory):
        values, vectors = _dense_pairs(matrix, memory)
    else:
        values, vectors = _lanczos(matrix, k, which, tol, maxiter, seed)
    keep = np.sort(_order(values, which)[:k])
    return Eigen(values[keep], vectors[:, keep], matrix.noise)


def condition_number(K: Any, *, memory: int | str | None = None) -> Measured:
    """Compute the ratio of the largest to the smallest eigenvalue of a kernel.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Symmetric, finite.
    memory : int, str or None
        Bound on what the call adds; beyond it Lanczos finds both ends.

    Returns
    -------
    Measured
        A float; infinity if the smallest eigenvalue is not positive. `.error` is what the noise
        floor can change, infinity if the smallest eigenvalue lies below it: then the number
        belongs to the rounding, not to the network. A float32 kernel cannot carry a condition
        number above some 1e7.

    Raises
    ------
    InputError, NonFiniteError, ConvergenceError, SizeError
        As `eigsh`.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import condition_number
    >>> condition_number(np.diag([4.0, 2.0]))
    2.0
    """
    matrix = _prepare(K)
    if matrix.n == 0:
        return Measured(1.0, error=0.0, floor=0.0)
    if _limits.fits(8 * matrix.n**2, memory):
        values = _dense_values(matrix, memory)
        low, high = float(values[0]), float(values[-1])
    else:
        low = float(_lanczos(matrix, 1, "SA", 0.0, None, 0)[0][0])
        high = float(_lanczos(matrix, 1, "LA", 0.0, None, 0)[0][0])
    noise = matrix.noise
    ratio = high / low if low > 0 else float("inf")
    error = ratio * noise / (low - noise) if low > noise else float("inf")
    return Measured(ratio, error=error, floor=noise)


def eigh(matrix: Matrix, memory: int | str | None) -> tuple[Float, Float]:
    """Return all eigenvalues (ascending) and eigenvectors; for the modules that need them."""
    return _dense_pairs(matrix, memory)


def _prepare(K: Any) -> Matrix:
    matrix = _dense.read(K)
    _dense.check_symmetric(matrix)
    return matrix


def _dense_is_better(matrix: Matrix, k: int, which: Which, memory: int | str | None) -> bool:
    n = matrix.n
    few = which in ("LM", "LA") and 10 * k <= n
    if n <= DENSE_ROWS or k >= n - 1:
        return True
    return not few and _limits.fits(24 * n * n, memory)


def _order(values: Float, which: Which) -> np.ndarray[Any, np.dtype[np.intp]]:
    key = np.abs(values) if which in ("LM", "SM") else values
    order = np.argsort(key, kind="stable")
    return order[::-1] if which in ("LM", "LA") else order


def _dense_values(matrix: Matrix, memory: int | str | None) -> Float:
    from scipy.linalg import eigh as lapack

    n = matrix.n
    if n == 0:
        return np.empty(0)
    _limits.check_lapack("eigh of ?syevr", n)
    advice = "entk.linalg.eigsh finds some eigenvalues by Lanczos"
    _limits.require(8 * n * n, memory, f"all eigenvalues of a {n} x {n} kernel", advice)
    dense = matrix.dense().T
    values: Float = lapack(
        dense, lower=False, eigvals_only=True, driver="evr", overwrite_a=True, check_finite=False
    )
    _check_values(matrix, values)
    return values


def _dense_pairs(matrix: Matrix, memory: int | str | None) -> tuple[Float, Float]:
    from scipy.linalg import eigh as lapack

    n = matrix.n
    if n == 0:
        return np.empty(0), np.empty((0, 0))
    _limits.check_lapack("eigh of ?syevr", n)
    advice = "entk.linalg.eigsh finds some eigenpairs by Lanczos"
    _limits.require(16 * n * n, memory, f"all eigenvectors of a {n} x {n} kernel", advice)
    dense = matrix.dense().T
    values, vectors = lapack(dense, lower=False, driver="evr", overwrite_a=True, check_finite=False)
    _check_pairs(matrix, values, vectors)
    return values, vectors


def _rounding(values: Float) -> float:
    """Return the error of an eigenvalue beyond which LAPACK's own tests call it a fault."""
    return LAPACK_RATIO * len(values) * ROUNDOFF["float64"] * float(np.max(np.abs(values)))


def _check_values(matrix: Matrix, values: Float) -> None:
    """Check the sum of the eigenvalues, and of their squares, against the kernel's entries.

    Overflowing workspaces have returned zeros and NaN without an error.

    Raises
    ------
    InternalError
        If they disagree beyond rounding.
    """
    allowed, scale = len(values) * _rounding(values), float(np.max(np.abs(values))) or 1.0
    off = abs(float(np.sum(values)) - float(np.sum(matrix.diag)))
    # Squares of extreme numbers would overflow. The entries of an operator are not made again.
    excess = 0.0
    if matrix.kind != "operator":
        squares = [np.sum(np.square(matrix.block(s, slice(0, matrix.n)) / scale))
                   for s in matrix.strips()]  # fmt: skip
        excess = abs(float(np.sum(np.square(values / scale)) - np.sum(squares)))
    if not (off <= allowed and excess <= 2.0 * allowed / scale):
        raise InternalError(
            "the eigenvalues do not add up to the kernel: their sum is off by "
            f"{off:.2g}, rounding allows {allowed:.2g}; the LAPACK in use may be faulty"
        )


def _check_pairs(matrix: Matrix, values: Float, vectors: Float) -> None:
    """Check ``Q diag(w) Q^T v = K v`` for one random vector of signs.

    Raises
    ------
    InternalError
        If it fails beyond rounding.
    """
    n = matrix.n
    scale = float(np.max(np.abs(values))) or 1.0  # squares of extreme numbers would overflow
    signs = np.random.default_rng(n).choice([-1.0, 1.0], n) / scale
    off = np.linalg.norm(vectors @ (values * (vectors.T @ signs)) - matrix.matmat(signs))
    allowed = _rounding(values) / scale * np.sqrt(n)
    if not off <= allowed:
        raise InternalError(
            f"the eigenvectors do not reproduce the kernel: a product is off by {off:.2g} of the "
            f"largest eigenvalue, rounding allows {allowed:.2g}; the LAPACK in use may be faulty"
        )


def _lanczos(
    matrix: Matrix, k: int, which: Which, tol: float, maxiter: int | None, seed: int
) -> tuple[Float, Float]:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator
    from scipy.sparse.linalg import eigsh as arpack

    n = matrix.n
    if n <= DENSE_ROWS or k >= n - 1:  # also what ARPACK cannot do
        return _dense_pairs(matrix, None)
    basis = min(n, max(2 * k + 1, 20))
    _limits.check_lapack("lanczos", n, columns=basis)
    product: Callable[[Float], Float] = matrix.matmat
    op = LinearOperator((n, n), matvec=product, matmat=product, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(n)
    try:
        values, vectors = arpack(op, k, which=which, tol=tol, maxiter=maxiter, v0=start, ncv=basis)
    except ArpackNoConvergence as error:
        raise _not_converged(matrix, error, k) from error
    order = np.argsort(values)
    return values[order], vectors[:, order]


def _not_converged(matrix: Matrix, error: Any, k: int) -> ConvergenceError:
    order = np.argsort(error.eigenvalues)
    best = Eigen(error.eigenvalues[order], error.eigenvectors[:, order], matrix.noise)
    failure = ConvergenceError(
        f"Lanczos found {len(best.values)} of {k} eigenvalues ({error}); allow more `maxiter`, "
        "loosen `tol`, or give `memory` for a dense solve; `.best` holds what converged"
    )
    failure.best = best
    return failure
