"""The Nystrom approximation on given or uniformly drawn landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from entk import _dense
from entk._errors import InputError
from entk._floor import ROUNDOFF
from entk.linalg import _limits
from entk.lowrank._result import LowRank, from_factor, read
from entk.lowrank._rpcholesky import check_rank


def nystrom(K_or_factors: Any, landmarks: int | ArrayLike, *, seed: int = 0) -> LowRank:
    r"""Approximate a kernel by :math:`K_{NS} K_{SS}^{+} K_{SN}` on a set S of landmarks [1]_.

    Parameters
    ----------
    K_or_factors : array, `entk.Kernel`, `entk.KernelOperator` or `entk.Factors`
        Kernel (N, N), or what it is made from.
    landmarks : int or array of int
        How many to draw uniformly without replacement, or their indices (such as `select` gives).
    seed : int
        Of the draw.

    Returns
    -------
    LowRank
        Its exact `trace_residual` bounds the spectral norm of what is left, since
        ``K - F F^T`` is positive semi-definite. The rank is below the number of landmarks where
        these depend on each other.

    Raises
    ------
    InputError
        If there is no landmark, or an index is out of range or repeated.

    Notes
    -----
    **Cost.** ``k N`` entries, ``N k^2`` flops. **Memory.** ``16 N k`` bytes. `rpcholesky` chooses
    better landmarks for the same number of entries.

    References
    ----------
    .. [1] C. K. I. Williams, M. Seeger, "Using the Nystrom Method to Speed Up Kernel Machines",
       NeurIPS 2000.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.lowrank import nystrom
    >>> round(nystrom(np.diag([1.0, 2.0, 3.0]), [2, 1]).trace_residual, 12)
    1.0
    """
    from scipy.linalg import eigh

    matrix = read(K_or_factors)
    index = _landmarks(landmarks, matrix.n, seed)
    _limits.require(16 * matrix.n * len(index), None, "a Nystrom factor", "take fewer landmarks")
    rows = matrix.rows(index)
    _dense.check_finite_array(rows, "K")
    corner = rows[:, index]
    values, vectors = eigh((corner + corner.T) / 2.0, driver="evr")
    keep = values > ROUNDOFF["float64"] * len(index) * max(float(values[-1]), 0.0)
    factor = rows.T @ (vectors[:, keep] / np.sqrt(values[keep]))
    return from_factor(factor, index, matrix.diag)


def _landmarks(given: int | ArrayLike, n: int, seed: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    if np.ndim(given) == 0:
        rank = check_rank(int(np.asarray(given)), n)
        return np.random.default_rng(seed).choice(n, size=rank, replace=False)
    index = np.asarray(given)
    if index.ndim != 1 or index.dtype.kind not in "iu" or len(index) == 0:
        raise InputError(f"landmarks: expected a number or a vector of indices (got {given!r})")
    if index.min() < 0 or index.max() >= n or len(np.unique(index)) < len(index):
        raise InputError(f"landmarks must be different indices from 0 to {n - 1}")
    return index.astype(np.intp)
