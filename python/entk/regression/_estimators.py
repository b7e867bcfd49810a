"""Scikit-learn estimators on precomputed kernels, stored kernels and factors."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from entk import _dense, _targets
from entk._dense import Float, Matrix
from entk._errors import InputError
from entk._targets import Targets
from entk.linalg import _limits
from entk.regression import _solvers


class _KernelEstimator(BaseEstimator):  # type: ignore[misc]
    """What the regressor and the classifier share: reading kernels and fitting columns."""

    def __init__(
        self,
        ridge: float | ArrayLike = 1.0,
        *,
        solver: str = "auto",
        outputs: Any = None,
        tol: float = 1e-8,
    ) -> None:
        self.ridge = ridge
        self.solver = solver
        self.outputs = outputs
        self.tol = tol

    def __sklearn_tags__(self) -> Any:
        """Say that rows and columns are both samples, so that cross-validation cuts both."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = True
        return tags

    def _ridges(self) -> list[float]:
        values = np.asarray(self.ridge, dtype=np.float64)
        if values.ndim > 1 or values.size == 0:
            raise InputError(f"ridge has shape {values.shape}; expected a number or a list")
        return [float(_dense.ridge_of(r, 0)) for r in values.reshape(-1)]

    def _training_kernel(self, X: Any) -> Matrix:
        """Turn `X` into the training kernel: an array checked as scikit-learn does, or factors."""
        self._factors = X if _is_factors(X) else None
        if self._factors is not None:
            return _dense.read(_kernel_of(X, None, self.outputs))
        if _is_plain(X):
            # A block kernel has more rows than y; scikit-learn must not compare them.
            X = validate_data(self, X, dtype=_KEEP, ensure_all_finite=False)
            _dense.check_finite(_dense.read(X, "X", square=False), "X")
        matrix = _dense.read(X)
        self.n_features_in_ = matrix.n
        _dense.check_symmetric(matrix)
        return matrix

    def _cross_kernel(self, X: Any) -> Matrix:
        """Turn `X` into the kernel of test (rows) with training points."""
        if self._factors is not None:
            if not _is_factors(X):
                raise InputError("fitted on factors: predict takes the factors of the test points")
            return _dense.read(_kernel_of(X, self._factors, self.outputs), "X", square=False)
        if _is_plain(X):
            if isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind == "f":
                _dense.check_finite(_dense.read(X, "X", square=False), "X")
            X = validate_data(self, X, dtype=_KEEP, ensure_all_finite=False, reset=False)
        matrix = _dense.read(X, "X", square=False)
        if matrix.shape[1] != self.n_features_in_:
            raise InputError(
                f"X has {matrix.shape[1]} columns; expected {self.n_features_in_}, one a training "
                "point (test points are rows)"
            )
        _dense.check_finite(matrix, "X")
        return matrix

    def _fit_columns(self, matrix: Matrix, wanted: Targets, f0: ArrayLike | None) -> None:
        ridges = self._ridges()
        base = _targets.prior(0.0 if f0 is None else f0, wanted, matrix.n)
        self._wanted = wanted
        self._solver = _solvers.choose(matrix, ridges, self.solver, self.tol)
        self._duals = [self._solver.dual(wanted.columns - base, r) for r in ridges]
        self.dual_coef_ = self._per_ridge([wanted.restore(d) for d in self._duals])

    def _per_ridge(self, values: list[Any]) -> Any:
        """Stack on a first axis where `ridge` is a list; one number gives the value itself."""
        return values[0] if np.ndim(self.ridge) == 0 else np.stack(values)

    def _predict_columns(self, X: Any, f0: ArrayLike | None) -> list[Float]:
        cross = self._cross_kernel(X)
        base = _targets.prior(0.0 if f0 is None else f0, self._wanted, cross.n)
        side = np.concatenate(self._duals, axis=1)
        parts = np.split(cross.matmat(side), len(self._duals), axis=1)
        return [self._wanted.restore(base + part) for part in parts]

    def _loo_errors(self) -> list[Float]:
        check_is_fitted(self, "dual_coef_")
        block = self._wanted.block
        return [
            self._wanted.restore(_solvers.leave_one_out(self._solver, dual, block, ridge))
            for dual, ridge in zip(self._duals, self._ridges(), strict=True)
        ]

    @property
    def gcv_(self) -> Any:
        """Generalised cross-validation score: a float, or one a ridge; smaller is better."""
        check_is_fitted(self, "dual_coef_")
        pairs = zip(self._duals, self._ridges(), strict=True)
        return self._per_ridge([_solvers.gcv(self._solver, dual, r) for dual, r in pairs])


class KernelRidge(RegressorMixin, _KernelEstimator):  # type: ignore[misc]
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
        _check_given(self, y)
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


class KernelClassifier(ClassifierMixin, _KernelEstimator):  # type: ignore[misc]
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
        _check_given(self, y)
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


_KEEP = [np.float64, np.float32]  # what scikit-learn may leave as it is


def _is_factors(X: Any) -> bool:
    return hasattr(X, "leaves") and hasattr(X, "take")


def _is_plain(X: Any) -> bool:
    stored = hasattr(X, "tiles") or hasattr(X, "matvec") or hasattr(X, "chunks")
    return not stored


def _kernel_of(factors: Any, other: Any, outputs: Any) -> Any:
    """Assemble where it fits, else hand out the operator."""
    import entk
    from entk._assemble import assemble

    rows = factors.n * factors.rows
    columns = rows if other is None else other.n * other.rows
    if _limits.fits(8 * rows * columns, None):
        return assemble(factors, other, outputs=outputs, dtype="float64")
    return entk.KernelOperator(factors, other, outputs=outputs)


def _check_given(estimator: object, y: object) -> None:
    if y is None:
        name = type(estimator).__name__
        raise InputError(f"{name} requires y to be passed, but the target y is None")


def _regression_targets(y: ArrayLike) -> Float:
    values = np.asarray(y)
    if values.dtype.kind in "OUS":
        values = values.astype(np.float64)  # scikit-learn reads objects that hold numbers
    return _targets.numbers(values)


def _flattened(labels: Any) -> Any:
    import warnings

    from sklearn.exceptions import DataConversionWarning

    warnings.warn(
        "A column-vector y was passed when a 1d array was expected", DataConversionWarning,
        stacklevel=3,
    )  # fmt: skip
    return labels[:, 0]
