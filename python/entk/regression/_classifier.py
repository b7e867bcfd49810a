"""Classification by kernel ridge regression as a scikit-learn estimator."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from entk import _targets
from entk._dense import Float
from entk._errors import InputError
from entk.regression._base import KernelEstimator, check_given


class KernelClassifier(ClassifierMixin, KernelEstimator):  # type: ignore[misc]
    """Classification by ridge regression on centred one-hot targets.

    Two classes and a kernel of one row a sample give one column of targets, 1 and -1. A block
    kernel needs one output a class.

    Parameters
    ----------
    ridge, solver, outputs, tol
        As in `KernelRidge`. With a list of ridges predictions are stacked on a first axis.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    dual_coef_, gcv_
        As in `KernelRidge`.
    loo_decision_ : ndarray
        Decision values of every training sample from the fit without it.
    loo_accuracy_ : float or ndarray
        Share of the training samples that the fit without them classifies correctly.

    Notes
    -----
    Cost, memory and precision as in `KernelRidge`. There are no probabilities: the squared loss
    calibrates none.

    References
    ----------
    .. [1] R. Rifkin, G. Yeo, T. Poggio, "Regularized Least-Squares Classification", 2003.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.regression import KernelClassifier
    >>> K = np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> KernelClassifier(ridge=1.0).fit(K, ["cat", "dog"]).predict(K).tolist()
    ['cat', 'dog']
    """

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fit to labels.

        Parameters
        ----------
        X : array, `entk.Kernel`, `entk.KernelOperator` or `entk.Factors`
            Training kernel, or the factors of the training points.
        y : array, shape (N,)
            Labels of any kind.

        Returns
        -------
        KernelClassifier
            Itself.

        Raises
        ------
        InputError, NotPositiveDefiniteError
            As `KernelRidge.fit`; also for fewer than two classes.
        """
        check_given(self, y)
        matrix = self._training_kernel(X)
        labels = np.asarray(y)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = _flattened(labels)
        if labels.ndim != 1:
            raise InputError(f"y has shape {labels.shape}; expected one label a sample, (N,)")
        check_classification_targets(labels)
        self.classes_, code = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"y holds one class ({self.classes_.tolist()}); two or more are needed"
            )
        wanted = _targets.targets(self._code(code, matrix.n), matrix.n)
        self._fit_columns(matrix, wanted, None)
        self._labels = code
        return self

    def _code(self, code: Any, rows: int) -> Float:
        count = len(self.classes_)
        if count == 2 and rows == len(code):
            return np.asarray(2.0 * code - 1.0)
        return np.asarray(np.eye(count)[code] - 1.0 / count)

    def decision_function(self, X: Any) -> Float:
        """Return the decision values: (M,) for two classes, else (M, C); the largest wins.

        Parameters
        ----------
        X : array, `entk.Kernel` or `entk.Factors`
            Kernel of test points (rows) with training points, or the factors of the test points.

        Returns
        -------
        ndarray of float64
            With one axis more in front for several ridges.
        """
        check_is_fitted(self, "dual_coef_")
        result: Float = self._per_ridge(self._predict_columns(X, None))
        return result

    def predict(self, X: Any) -> Any:
        """Return the predicted labels, (M,), with one axis more in front for several ridges.

        Parameters
        ----------
        X : array, `entk.Kernel` or `entk.Factors`
            Kernel of test points (rows) with training points, or the factors of the test points.

        Returns
        -------
        ndarray
        """
        check_is_fitted(self, "dual_coef_")
        winners = [self._winner(d) for d in self._predict_columns(X, None)]
        return self.classes_[self._per_ridge(winners)]

    def _winner(self, decision: Float) -> Any:
        return (decision > 0).astype(int) if decision.ndim == 1 else np.argmax(decision, axis=1)

    @property
    def loo_decision_(self) -> Float:
        """Decision values of every training sample from the fit without it."""
        wanted = self._wanted.restore(self._wanted.columns)
        result: Float = self._per_ridge([wanted - e for e in self._loo_errors()])
        return result

    @property
    def loo_accuracy_(self) -> Any:
        """Share of the training samples that the fit without them classifies correctly."""
        wanted = self._wanted.restore(self._wanted.columns)
        scores = [
            float(np.mean(self._winner(wanted - e) == self._labels)) for e in self._loo_errors()
        ]
        return self._per_ridge(scores)


def _flattened(labels: Any) -> Any:
    import warnings

    from sklearn.exceptions import DataConversionWarning

    warnings.warn(
        "A column-vector y was passed when a 1d array was expected", DataConversionWarning,
        stacklevel=3,
    )  # fmt: skip
    return labels[:, 0]
