"""What each training sample does to each prediction, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from entk import _dense, _targets
from entk._dense import Float
from entk._errors import InputError
from entk.regression._solvers import Factored


def influence(K: Any, K_star: Any, y: ArrayLike, ridge: float, *, f0: ArrayLike = 0.0) -> Float:
    r"""Compute how each prediction would change if one training sample were left out.

    Entry (m, n) is the prediction at test point m minus the prediction of the same ridge
    regression refitted without training sample n,

    .. math:: (K_* G^{-1})_{m,n} \, [(G^{-1})_{nn}]^{-1} \alpha_n, \qquad G = K + \mathrm{ridge}\, I

    exactly, without refitting: deletion diagnostics [1]_ in kernel form. Influence functions [2]_
    are its first-order version.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        Training kernel; ``n = N*C`` rows for a block kernel.
    K_star : array or `entk.Kernel`, shape (m, n)
        Kernel of test (rows) with training points.
    y : array, shape (N,) or (N, C)
        Targets.
    ridge : float
        Added to the diagonal.
    f0 : float or array of the shape of `y`
        Prior mean on the training points.

    Returns
    -------
    ndarray of float64, shape (M, N) or (M, N, C)
        Positive where the sample raises the prediction.

    Raises
    ------
    InputError, NotPositiveDefiniteError
        As `entk.linalg.cholesky`.

    Notes
    -----
    **Cost.** ``n^3 + n^2 m`` flops. **Memory.** ``8 (2 n^2 + n m)`` bytes.

    References
    ----------
    .. [1] R. D. Cook, "Detection of Influential Observation in Linear Regression", Technometrics 19
       (1977).
    .. [2] P. W. Koh, P. Liang, "Understanding Black-box Predictions via Influence Functions",
       ICML 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.regression import influence
    >>> influence(np.eye(2), np.array([[1.0, 0.0]]), [2.0, 4.0], ridge=1.0).round(12).tolist()
    [[1.0, 0.0]]
    """
    matrix = _dense.read(K)
    cross = _dense.read(K_star, "K_star", square=False)
    wanted = _targets.targets(y, matrix.n)
    if cross.shape[1] != matrix.n:
        raise InputError(f"K_star has shape {cross.shape}; expected (m, {matrix.n}): tests as rows")
    solver = Factored(matrix, ridge)
    block = wanted.block
    dual = solver.dual(wanted.columns - _targets.prior(f0, wanted, matrix.n), ridge)
    blocks = solver.inverse_blocks(block, ridge)
    samples = len(blocks)
    change = np.linalg.solve(blocks, dual.reshape(samples, block, -1))
    weights = solver.dual(cross.dense().T, ridge).reshape(samples, block, cross.n)
    out = np.einsum("nbm,nbc->mnc", weights, change)
    if block > 1:
        return np.asarray(out.reshape(-1, block, samples).transpose(0, 2, 1))
    return np.asarray(out if len(wanted.shape) == 2 else out[:, :, 0])
