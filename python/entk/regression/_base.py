"""What the estimators share: reading kernels and factors, and fitting columns of targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from entk import _dense, _targets
from entk._dense import Float, Matrix
from entk._errors import InputError
from entk._targets import Targets
from entk.linalg import _limits
from entk.regression import _solvers


class KernelEstimator(BaseEstimator):  # type: ignore[misc]
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


def check_given(estimator: object, y: object) -> None:
    if y is None:
        name = type(estimator).__name__
        raise InputError(f"{name} requires y to be passed, but the target y is None")
