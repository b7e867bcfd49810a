"""Posterior of a Gaussian process with a neural tangent kernel as its covariance."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from entk import _dense, _targets
from entk._dense import Float
from entk._errors import InputError
from entk._floor import ROUNDOFF
from entk.linalg import cholesky


class Posterior(NamedTuple):
    """Posterior of a Gaussian process.

    Attributes
    ----------
    mean
        (M,) or (M, C), as the targets.
    variance
        (M,), or (M, C) for a block kernel; the diagonal of the covariance where that was asked.
    covariance
        (m, m) over the rows of `K_star`, or None if only the diagonal was given.
    """

    mean: Float
    variance: Float
    covariance: Float | None


def gp_posterior(
    K: Any,
    K_star: Any,
    k_star_diag: ArrayLike,
    y: ArrayLike,
    noise: ArrayLike,
    *,
    f0: ArrayLike = 0.0,
    f0_star: ArrayLike = 0.0,
) -> Posterior:
    r"""Condition a Gaussian process on noisy targets.

    Mean :math:`m_* + K_* (K + \sigma^2 I)^{-1} (y - m)` and covariance
    :math:`K_{**} - K_* (K + \sigma^2 I)^{-1} K_*^\top` [1]_.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Prior covariance of the training outputs; ``n = N*C`` rows for a block kernel.
    K_star : array or `entk.Kernel`, shape (m, n)
        Covariance of test (rows) with training outputs.
    k_star_diag : array, shape (m,) or (m, m)
        Prior variance of the test outputs (`entk.diagonal`), or their whole covariance. For a block
        kernel (M, C) does as well as (m,).
    y : array, shape (N,) or (N, C)
        Targets.
    noise : float or array of shape (n,)
        Variance of the noise on the targets.
    f0, f0_star : float or arrays
        Prior mean on the training and the test points.

    Returns
    -------
    Posterior
        `.mean`, `.variance`, and `.covariance` if the whole prior covariance was given. The
        variance is that of the function, without the noise.

    Raises
    ------
    InputError
        If shapes disagree, or a posterior variance is negative beyond rounding (then the three
        kernels do not belong together).
    NotPositiveDefiniteError
        If ``K + noise I`` cannot be factored.

    Notes
    -----
    **Cost.** ``n^3 / 3 + n^2 m`` flops. **Memory.** ``8 (n^2 + n m)`` bytes.
    **Precision.** Negative variances within rounding (``n u`` of the prior variance, and the noise
    floor of the kernel) are set to 0.

    References
    ----------
    .. [1] C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006,
       equations 2.23 and 2.24.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.regression import gp_posterior
    >>> p = gp_posterior(np.eye(1), np.ones((1, 1)), np.ones(1), [2.0], noise=1.0)
    >>> p.mean.round(12).tolist(), p.variance.round(12).tolist()
    ([1.0], [0.5])
    """
    from scipy.linalg import solve_triangular

    matrix = _dense.read(K)
    cross = _dense.read(K_star, "K_star", square=False)
    wanted = _targets.targets(y, matrix.n)
    if cross.shape[1] != matrix.n:
        raise InputError(f"K_star has shape {cross.shape}; expected (m, {matrix.n}): tests as rows")
    prior = _prior(k_star_diag, cross.shape[0])
    resid = wanted.columns - _targets.prior(f0, wanted, matrix.n)
    base = _targets.prior(f0_star, wanted, cross.shape[0], "f0_star")
    lower = cholesky(matrix, noise)
    half = (
        solve_triangular(lower, cross.dense().T, lower=True) if matrix.n else np.empty((0, cross.n))
    )
    mean = base + half.T @ solve_triangular(lower, resid, lower=True) if matrix.n else base
    own = np.diagonal(prior) if prior.ndim == 2 else prior
    variance = _clip(own - np.sum(np.square(half), axis=0), own, matrix)
    if wanted.block > 1:
        variance = variance.reshape(-1, wanted.block)
    return Posterior(wanted.restore(mean), variance, _covariance(prior, half))


def _prior(given: ArrayLike, rows: int) -> Float:
    values = np.asarray(given, dtype=np.float64)
    _dense.check_finite_array(np.atleast_1d(values), "k_star_diag")
    if values.shape == (rows, rows) and rows != 1:
        return values
    if values.size != rows:
        raise InputError(
            f"k_star_diag has shape {values.shape}; expected ({rows},) or ({rows}, {rows})"
        )
    return values if values.shape == (1, 1) else values.reshape(rows)


def _covariance(prior: Float, half: Float) -> Float | None:
    if prior.ndim == 1:
        return None
    covariance = prior - half.T @ half
    return (covariance + covariance.T) / 2.0


def _clip(variance: Float, own: Float, matrix: _dense.Matrix) -> Float:
    allowed = 8 * (matrix.n + 1) * ROUNDOFF["float64"] * np.abs(own) + matrix.noise
    bad = variance < -allowed
    if bad.any():
        i = int(np.argmax(bad))
        raise InputError(
            f"posterior variance of test row {i} is {variance[i]:.2g}: K, K_star and k_star_diag "
            "are not of one kernel (same network, outputs and scale?)"
        )
    return np.maximum(variance, 0.0)
