"""Cholesky factorisation in RAM (LAPACK) or by tiles, checked, and what follows from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from entk import _dense
from entk._dense import Float, Matrix
from entk._errors import DTypeError, InputError, InternalError
from entk._floor import ROUNDOFF
from entk.linalg import _limits, _pivots, _tiled
from entk.linalg._results import Measured

Out = NDArray[np.float64] | str | os.PathLike[str] | None
U64 = ROUNDOFF["float64"]


def cholesky(
    K: Any, ridge: ArrayLike = 0.0, out: Out = None, memory: int | str | None = None
) -> Float:
    r"""Factor a kernel as :math:`L L^\top = K + \mathrm{ridge}\, I`, in RAM or out of core.

    In RAM this is LAPACK's ``?potrf`` in float64, whatever `K` is stored in. A file, or a limit
    that the factor does not fit, switches to a left-looking factorisation by tiles that reads `K`
    and the finished part of `L` block by block. Nothing is ever added to the diagonal but `ridge`.
    The result is checked: the residual of ``L (L^T v) - (K + ridge I) v`` for a random `v` must
    meet the rounding bound of the factorisation.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Symmetric. Of an array the lower triangle is used after both halves were compared.
    ridge : float or array of shape (n,)
        Added to the diagonal, in units of the kernel.
    out : array, path or None
        Where to write: a float64 array (n, n), or a path ending in ``.npy``. None allocates.
    memory : int, str or None
        Bound in bytes (or "4GiB") on what the call adds, an allocated result included.

    Returns
    -------
    ndarray of float64, shape (n, n)
        Lower triangular, zeros above the diagonal: `out`, or for a path a read-only memory map.

    Raises
    ------
    InputError
        If `K` is not symmetric or not square, or `ridge` is negative.
    NonFiniteError
        If `K` holds NaN or infinity.
    NotPositiveDefiniteError
        Naming the pivot, its value, the noise floor and a sample it depends on.
    MemoryLimitError
        If the factor fits neither the limit nor a file was named.
    InternalError
        If the check of the factor fails.

    Warns
    -----
    PrecisionWarning
        If `K` is stored narrower than float64 and a pivot lies below its noise floor.

    Notes
    -----
    **Cost.** ``n^3 / 3`` flops; by tiles of side b also ``n^3 / (3 b)`` entries read.
    **Memory.** ``8 n^2`` bytes in RAM; by tiles ``8 (n b + 4 b^2)``.
    **Precision.** Backward error ``gamma_{n+1} sqrt(K_ii K_jj)`` [1]_, theorem 10.3.

    References
    ----------
    .. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", SIAM 2002, chapter 10.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import cholesky
    >>> cholesky(np.array([[4.0, 2.0], [2.0, 5.0]]))
    array([[2., 0.],
           [1., 2.]])
    """
    matrix = _dense.read(K)
    shift = _dense.ridge_of(ridge, matrix.n)
    _limits.check_lapack("cholesky", matrix.n)
    _dense.check_symmetric(matrix)
    _pivots.check_diagonal(matrix, shift)
    if isinstance(out, (str, os.PathLike)):
        return _to_file(matrix, shift, Path(out), memory)
    lower = _factor(matrix, shift, _check_out(out, matrix.n), memory)
    verify(matrix, shift, lower)
    return lower


def _check_out(out: Float | None, n: int) -> Float | None:
    if out is None:
        return None
    if out.dtype != np.float64:
        raise DTypeError(f"out is {out.dtype}; needs float64")
    if out.shape != (n, n):
        raise InputError(f"out has shape {out.shape}; needs ({n}, {n})")
    if not out.flags.writeable:
        raise InputError("out is read-only")
    return out


def _factor(matrix: Matrix, ridge: Float, out: Float | None, memory: int | str | None) -> Float:
    n = matrix.n
    if out is not None and matrix.kind == "array" and np.may_share_memory(out, matrix.source):
        raise InputError("out shares memory with K")
    if out is None:
        advice = 'write to disk with out="L.npy"'
        _limits.require(8 * n * n, memory, f"the factor of a {n} x {n} kernel", advice)
        out = np.empty((n, n))
    if out.flags.c_contiguous and type(out) is np.ndarray:
        return _in_place(matrix, ridge, out)
    _tiled.factor(matrix, ridge, out, memory)
    return out


def _in_place(matrix: Matrix, ridge: Float, out: Float) -> Float:
    from scipy.linalg.lapack import dpotrf

    if matrix.n == 0:
        return out
    matrix.dense(out)
    out[np.diag_indices(matrix.n)] += ridge
    # The transpose of a C-ordered array is the Fortran-ordered array LAPACK wants: no copy. Its
    # upper triangle is our lower one.
    upper, info = dpotrf(out.T, lower=0, clean=1, overwrite_a=1)
    if not np.shares_memory(upper, out):  # f2py copies when it dislikes the layout
        out[...] = upper.T
    if info < 0:
        raise InternalError(f"?potrf refused argument {-info}")
    _pivots.check_pivots(matrix, ridge, np.diagonal(out), int(info) - 1 if info else None)
    return out


def _to_file(matrix: Matrix, ridge: Float, path: Path, memory: int | str | None) -> Float:
    with _tiled.finished_file(path, matrix.n) as target:
        _tiled.factor(matrix, ridge, target, memory)
        verify(matrix, ridge, target)
    # An empty file cannot be mapped.
    return np.load(path, mmap_mode="r", allow_pickle=False) if matrix.n else np.empty((0, 0))


def verify(matrix: Matrix, ridge: Float, lower: Float) -> None:
    """Check ``L (L^T v) = (K + ridge I) v`` for one random vector of signs.

    The bound is Higham's theorem 10.3 row by row, with room for the two products:
    ``|r_i| <= 4 gamma_{n+1} sqrt(A_ii) sum_j sqrt(A_jj)``.

    Raises
    ------
    InternalError
        If it fails: the BLAS in use gave a wrong factor.
    """
    n = matrix.n
    if n == 0:
        return
    scale = np.sqrt(matrix.diag + ridge)
    signs = np.random.default_rng(n).choice([-1.0, 1.0], n) / scale.max()
    left = _times(lower, _times_transposed(lower, signs))
    right = matrix.matmat(signs) + ridge * signs
    bound = 4 * (n + 1) * U64 * scale * np.sum(scale * np.abs(signs))
    bad = ~(np.abs(left - right) <= bound)
    if bad.any():
        i = int(np.argmax(bad))
        raise InternalError(
            f"the Cholesky factor does not reproduce the kernel: row {i} is off by "
            f"{abs(left[i] - right[i]):.2g}, rounding allows {bound[i]:.2g}; the BLAS in use "
            "may be faulty (entk.show_config() names it)"
        )


def _strips(lower: Float) -> list[slice]:
    n = len(lower)
    step = max(1, _dense.STRIP_BYTES // (8 * n))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _times(lower: Float, v: Float) -> Float:
    return np.concatenate([lower[s, : s.stop] @ v[: s.stop] for s in _strips(lower)])


def _times_transposed(lower: Float, v: Float) -> Float:
    out = np.zeros_like(v)
    for s in _strips(lower):
        out[: s.stop] += lower[s, : s.stop].T @ v[s]
    return out


def factored_solve(lower: Float, b: Float) -> Float:
    """Solve ``L L^T x = b`` for a factor from `cholesky`, in RAM or memory-mapped.

    Parameters
    ----------
    lower : array, shape (n, n)
        Lower triangular factor.
    b : array, shape (n,) or (n, m)
        Right-hand sides.

    Returns
    -------
    ndarray of float64, the shape of `b`

    Notes
    -----
    **Cost.** ``2 n^2 m`` flops, two passes over the lower half.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import cholesky, factored_solve
    >>> factored_solve(cholesky(4.0 * np.eye(2)), np.array([8.0, 4.0]))
    array([2., 1.])
    """
    from scipy.linalg import solve_triangular

    x = np.array(b, dtype=np.float64)
    if not len(x) or not x.size:
        return x
    if type(lower) is np.ndarray and lower.flags.c_contiguous:
        half = solve_triangular(lower.T, x, trans="T", lower=False, check_finite=False)
        whole: Float = solve_triangular(lower.T, half, lower=False, check_finite=False)
        return whole
    strips = _strips(lower)
    for s in strips:
        x[s] -= lower[s, : s.start] @ x[: s.start]
        x[s] = solve_triangular(lower[s, s], x[s], lower=True)
    for s in reversed(strips):
        x[s] = solve_triangular(lower[s, s], x[s], lower=True, trans="T")
        x[: s.start] -= lower[s, : s.start].T @ x[s]
    return x


def solve(
    K: Any, b: ArrayLike, ridge: ArrayLike = 0.0, *, memory: int | str | None = None
) -> Float:
    r"""Solve :math:`(K + \mathrm{ridge}\, I)\, x = b` by Cholesky factorisation in float64.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Symmetric positive definite with its ridge.
    b : array, shape (n,) or (n, m)
        Right-hand sides, finite.
    ridge : float or array of shape (n,)
        Added to the diagonal, in units of the kernel.
    memory : int, str or None
        Bound on what the call adds.

    Returns
    -------
    ndarray of float64, the shape of `b`

    Raises
    ------
    InputError
        If `b` has another length, or as `cholesky`.
    NotPositiveDefiniteError, MemoryLimitError
        As `cholesky`. Beyond RAM use `cholesky` with a path and `factored_solve`, or `cg`.

    Notes
    -----
    **Cost.** ``n^3 / 3 + 2 n^2 m`` flops. **Memory.** ``8 n^2`` bytes.
    **Precision.** Backward stable: the residual is of the order of ``n u |K| |x|``.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import solve
    >>> solve(np.eye(2), np.array([3.0, 6.0]), ridge=2.0)
    array([1., 2.])
    """
    values = np.asarray(b, dtype=np.float64)
    matrix = _dense.read(K)
    if values.ndim not in (1, 2) or len(values) != matrix.n:
        raise InputError(f"b has shape {values.shape}; expected ({matrix.n},) or ({matrix.n}, m)")
    _dense.check_finite_array(values, "b")
    return factored_solve(cholesky(K, ridge, memory=memory), values)


def logdet(K: Any, ridge: ArrayLike = 0.0, *, memory: int | str | None = None) -> Measured:
    r"""Compute :math:`\log\det(K + \mathrm{ridge}\, I)` exactly, by Cholesky factorisation.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Symmetric positive definite with its ridge.
    ridge : float or array of shape (n,)
        Added to the diagonal, in units of the kernel.
    memory : int, str or None
        Bound on what the call adds. Beyond RAM: factor into a file with `cholesky` and sum
        ``2 log L_ii``, or `slq_logdet`.

    Returns
    -------
    Measured
        A float; `.error` bounds what the noise of the kernel can change, ``n * floor / s`` with
        `s` the smallest pivot (an upper bound of the smallest eigenvalue: read it as an order of
        magnitude), and is infinite if the floor reaches that pivot.

    Raises
    ------
    NotPositiveDefiniteError, InputError, MemoryLimitError
        As `cholesky`.

    Notes
    -----
    A kernel of summed logits is no substitute for the full kernel here: log-determinants of
    trained networks were off by 75 to 123 % [1]_. Use ``outputs="full"`` in float64.

    References
    ----------
    .. [1] S. Ameli et al., "Determinant Estimation under Memory Constraints and Neural Scaling
       Laws", ICML 2025, table 2.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import logdet
    >>> round(logdet(np.diag([1.0, np.e])), 12)
    1.0
    """
    matrix = _dense.read(K)
    pivots = np.diagonal(cholesky(K, ridge, memory=memory))
    value = 2.0 * float(np.sum(np.log(pivots)))
    smallest = float(np.min(pivots) ** 2) if matrix.n else 1.0
    noise = matrix.noise
    error = matrix.n * noise / smallest if noise < smallest else float("inf")
    return Measured(value, error=error, floor=noise)
