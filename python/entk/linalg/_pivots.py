"""Why a factorisation failed, in words: the pivot, the noise floor, and the sample it repeats."""

from __future__ import annotations

import math
import warnings

import numpy as np

from entk._dense import Float, Matrix
from entk._errors import NotPositiveDefiniteError
from entk._floor import ROUNDOFF

U64 = ROUNDOFF["float64"]
# In units of the diagonal entry. Smaller negative pivots can be rounding that a nearly singular
# leading part has amplified: 3e-9 was seen on smooth kernels in float64.
INDEFINITE = 1e-6


class PrecisionWarning(UserWarning):
    """The kernel's own rounding is larger than what was asked of it."""


def check_diagonal(matrix: Matrix, ridge: Float) -> None:
    """Refuse a diagonal that is not positive, before any work.

    Raises
    ------
    NotPositiveDefiniteError
        Naming the first such sample.
    """
    bad = ~(matrix.diag + ridge > 0)
    if bad.any():
        i = int(np.argmax(bad))
        value = matrix.diag[i]
        how = "zero" if value == 0 else f"negative ({value:.2g})"
        what = "singular" if value == 0 else "not positive definite"
        raise NotPositiveDefiniteError(
            f"K is {what}: sample {i} has a {how} diagonal; drop it or add a ridge"
        )


def tolerance(n: int) -> float:
    """Size of a pivot that is zero but for rounding, in units of the diagonal entry.

    Pivots of samples that depend exactly on others came out up to 4.3 u for n from 3 to 1,200 and,
    once in 200 draws, 7.7 u for n = 3; the growth with n is that of a random walk. A matrix at the
    limit of float64, with a condition number of 0.1 / u as LAPACK tests, has pivots of 10 u.
    """
    return 8.0 * U64 * max(1.0, math.sqrt(n) / 8.0)


def check_pivots(
    matrix: Matrix, ridge: Float, roots: Float, failed: int | None = None, first: int = 0
) -> None:
    """Refuse a factorisation whose pivots are not above rounding; warn below the noise floor.

    Parameters
    ----------
    matrix, ridge
        What was factored.
    roots
        Diagonal of the factor from row `first` on. Where the factorisation stopped, LAPACK leaves
        the offending pivot there, not its root.
    failed
        Row at which it stopped, None if it did not.
    first
        Row of the first root.
    """
    n = matrix.n
    rows = slice(first, first + len(roots))
    if failed is not None:
        raise NotPositiveDefiniteError(describe(matrix, failed, float(roots[failed - first])))
    pivots = np.square(roots)
    zero = pivots <= tolerance(n) * (matrix.diag + ridge)[rows]
    low = pivots < matrix.noise
    bare = np.broadcast_to(ridge, (n,))[rows] == 0
    for i in np.flatnonzero(zero | (low & bare)).tolist():
        if zero[i] or identical(matrix, first + i) is not None:
            raise NotPositiveDefiniteError(describe(matrix, first + i, float(pivots[i])))
    if low.any() and matrix.dtype != "float64":
        i = int(np.argmin(pivots))
        warnings.warn(
            f"noise floor {matrix.floor:.1e}*mean(diag) exceeds pivot {first + i} = "
            f"{pivots[i]:.1e} (ridge {np.max(ridge):.3g}): the factor follows the rounding of this "
            f"{matrix.dtype} kernel; add a ridge above the floor or assemble with dtype='float64'",
            PrecisionWarning,
            stacklevel=4,
        )


def identical(matrix: Matrix, i: int) -> int | None:
    """Return the first other sample whose row of the kernel has the same bits, if any."""
    row = matrix.rows([i])[0]
    # An operator may compute its diagonal in another order than its rows: look nearby first.
    near = 8 * ROUNDOFF[matrix.dtype] * abs(matrix.diag[i])
    candidates = (np.abs(row - row[i]) <= near) & (np.abs(matrix.diag - matrix.diag[i]) <= near)
    for j in np.flatnonzero(candidates).tolist():
        if j != i and np.array_equal(matrix.rows([j])[0], row):
            return int(j)
    return None


def describe(matrix: Matrix, i: int, pivot: float) -> str:
    """Say what failed at row `i`, why, and what to do."""
    twin = identical(matrix, i)
    if twin is None and pivot < -max(100 * matrix.noise, INDEFINITE * float(matrix.diag[i])):
        return (
            f"pivot {i} = {pivot:.2g} is negative far beyond the noise floor {matrix.noise:.1e}: "
            "K + ridge is not positive definite, so K is no kernel; a ridge must exceed its most "
            "negative eigenvalue (entk.linalg.eigsh(K, 1, 'SA') finds it)"
        )
    why = f"samples {i} and {twin} are identical" if twin is not None else _culprit(matrix, i)
    enough = max(matrix.noise, -2.0 * pivot)
    unit = float(np.mean(np.abs(matrix.diag))) or 1.0
    return (
        f"pivot {i} = {pivot:.2g} is below the noise floor {matrix.noise:.1e}; {why}; "
        f"add ridge >= {enough / unit:.1e}*mean(diag) = {enough:.1e} or drop one"
    )


def _culprit(matrix: Matrix, i: int) -> str:
    size = np.sqrt(np.abs(matrix.diag) * abs(matrix.diag[i]))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.abs(matrix.rows([i])[0]) / size
    cosine[i] = 0.0
    j = int(np.nanargmax(cosine)) if matrix.n > 1 else i
    return (
        f"sample {i} depends linearly on earlier ones (closest: sample {j}, "
        f"1 - |cosine| = {1 - cosine[j]:.1e})"
    )
