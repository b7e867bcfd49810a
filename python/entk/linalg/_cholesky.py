"""Cholesky factorisation in RAM (LAPACK) or by tiles, and the check of the factor."""

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
from entk._options import memory_limit
from entk.linalg import _limits, _pivots, _tiled

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
    **Memory.** ``8 n^2`` bytes in RAM; by tiles ``8 (n b + 6 b^2)``, pages of a mapped
    file not counted.
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
    if memory is not None:
        matrix = matrix.within(memory_limit(memory).limit)
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


def strips_of(lower: Float) -> list[slice]:
    """Cut a factor into strips of rows that are small in memory."""
    n = len(lower)
    step = max(1, _dense.STRIP_BYTES // (8 * n))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _times(lower: Float, v: Float) -> Float:
    return np.concatenate([lower[s, : s.stop] @ v[: s.stop] for s in strips_of(lower)])


def _times_transposed(lower: Float, v: Float) -> Float:
    out = np.zeros_like(v)
    for s in strips_of(lower):
        out[: s.stop] += lower[s, : s.stop].T @ v[s]
    return out
