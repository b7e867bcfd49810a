"""Kernel ridge regression as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted

from entk import _targets
from entk._dense import Float
from entk.regression._base import KernelEstimator, check_given


class KernelRidge(RegressorMixin, KernelEstimator):  # type: ignore[misc]
    r"""Ridge regression with a precomputed kernel or with factors.

    Minimises :math:`|y - f|^2 + \mathrm{ridge}\, |f|_K^2`; its predictions are
    :math:`f_0(x) + K_* (K + \mathrm{ridge}\, I)^{-1} (y - f_0)`, the limit of training the
    linearised network (ridge 0) or of training it with early stopping's cousin, a ridge.

    Parameters
    ----------
    ridge : float or list of float
        Added to the diagonal, in units of the kernel (scikit-learn's `alpha`). A list fits them
        all from one eigendecomposition; results are then stacked on a first axis.
    solver : {"auto", "cholesky", "eigen", "cg"}
        "auto" takes Cholesky for one ridge, an eigendecomposition for several, and conjugate
        gradients when the kernel of an operator does not fit memory.
    outputs : None, str, int or array
        With factors: the kernel to assemble, as in `entk.assemble`.
    tol : float
        Relative residual of conjugate gradients.

    Attributes
    ----------
    dual_coef_ : ndarray
        ``(K + ridge I)^-1 (y - f0)``, the shape of `y`.
    loo_predictions_, loo_errors_ : ndarray
        For every training sample the prediction of the fit without it, and ``y`` minus that; in
        closed form, at the first use. For a block kernel all outputs of the sample are left out.
    gcv_ : float or ndarray
        Generalised cross-validation score, smaller is better.
    n_features_in_ : int
        Rows of the training kernel.

    Notes
    -----
    ``fit(X, y)`` takes a kernel (N, N), a block kernel (N*C, N*C) with `y` (N, C), an
    `entk.Kernel`, an `entk.KernelOperator`, or `entk.Factors`. Pipelines, `GridSearchCV` and
    `cross_val_score` work with kernels as arrays: the pairwise tag makes them cut both axes.
    **Cost.** ``n^3 / 3`` flops (one ridge) or ``9 n^3``. **Memory.** ``8 n^2`` or ``16 n^2`` bytes,
    kept for leave-one-out. **Precision.** float64 throughout.

    References
    ----------
    .. [1] R. M. Rifkin, R. A. Lippert, "Notes on Regularized Least Squares", MIT 2007
       (leave-one-out in closed form).

    Examples
    --------
    >>> import numpy as np
    >>> from entk.regression import KernelRidge
    >>> K = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> model = KernelRidge(ridge=[1.0, 3.0]).fit(K, [1.0, -1.0])
    >>> model.predict(K).round(12).tolist()
    [[0.5, -0.5], [0.25, -0.25]]
    """

    def __sklearn_tags__(self) -> Any:
        """Say that targets may have several columns."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: ArrayLike, *, f0: ArrayLike | None = None) -> Self:
        """Fit to targets.

        Parameters
        ----------
        X : array, `entk.Kernel`, `entk.KernelOperator` or `entk.Factors`
            Training kernel (N, N) or (N*C, N*C), or the factors of the training points.
        y : array, shape (N,) or (N, C)
            Targets.
        f0 : float or array of the shape of `y`, optional
            Prior mean, such as the outputs of the network at the start.

        Returns
        -------
        KernelRidge
            Itself.

        Raises
        ------
        InputError
            For NaN, wrong lengths, integer class labels, a negative ridge, an asymmetric kernel.
        NotPositiveDefiniteError
            If the kernel with its ridge cannot be factored.
        """
        check_given(self, y)
        matrix = self._training_kernel(X)
        values = _regression_targets(y)
        self._fit_columns(matrix, _targets.targets(values, matrix.n), f0)
        self._y = values
        return self

    def predict(self, X: Any, *, f0: ArrayLike | None = None) -> Float:
        """Predict.

        Parameters
        ----------
        X : array, `entk.Kernel` or `entk.Factors`
            Kernel of test points (rows) with training points, or the factors of the test points.
        f0 : float or array, optional
            Prior mean on the test points.

        Returns
        -------
        ndarray of float64, shape (M,), (M, C), or with one axis more in front for several ridges
        """
        check_is_fitted(self, "dual_coef_")
        result: Float = self._per_ridge(self._predict_columns(X, f0))
        return result

    @property
    def loo_errors_(self) -> Float:
        """``y`` minus the prediction of the fit without that sample."""
        result: Float = self._per_ridge(self._loo_errors())
        return result

    @property
    def loo_predictions_(self) -> Float:
        """The prediction at every training sample of the fit without it."""
        check_is_fitted(self, "dual_coef_")
        return np.asarray(self._y - self.loo_errors_)


def _regression_targets(y: ArrayLike) -> Float:
    values = np.asarray(y)
    if values.dtype.kind in "OUS":
        values = values.astype(np.float64)  # scikit-learn reads objects that hold numbers
    return _targets.numbers(values)
