"""Ridge regression, classification, Gaussian process posteriors and influence on kernels.

The estimators need scikit-learn (``pip install "entk[sklearn]"``) and load it on first use; the
functions do not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from entk.regression._influence import influence as influence
from entk.regression._posterior import Posterior as Posterior
from entk.regression._posterior import gp_posterior as gp_posterior

if TYPE_CHECKING:
    from entk.regression._classifier import KernelClassifier as KernelClassifier
    from entk.regression._ridge import KernelRidge as KernelRidge
else:
    _HOME = {"KernelClassifier": "_classifier", "KernelRidge": "_ridge"}

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'entk.regression' has no attribute {name!r}")
        try:
            home = importlib.import_module(f"entk.regression.{_HOME[name]}")
        except ImportError as error:
            raise ImportError(
                f'entk.regression.{name} needs scikit-learn: pip install "entk[sklearn]"'
            ) from error
        return getattr(home, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOME})
