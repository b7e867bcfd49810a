"""Exact empirical neural tangent kernels in bounded memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from entk._assemble import assemble as assemble
from entk._assemble import diagonal as diagonal
from entk._assemble import plan as plan
from entk._certify import Certificate as Certificate
from entk._certify import certify as certify
from entk._config import show_config as show_config
from entk._errors import ConvergenceError as ConvergenceError
from entk._errors import DTypeError as DTypeError
from entk._errors import EntkError as EntkError
from entk._errors import ForkedProcessError as ForkedProcessError
from entk._errors import InputChangedError as InputChangedError
from entk._errors import InputError as InputError
from entk._errors import InternalError as InternalError
from entk._errors import KernelOverflowError as KernelOverflowError
from entk._errors import MemoryLimitError as MemoryLimitError
from entk._errors import ModelError as ModelError
from entk._errors import NonFiniteError as NonFiniteError
from entk._errors import NotPositiveDefiniteError as NotPositiveDefiniteError
from entk._errors import SizeError as SizeError
from entk._errors import StoreCorruptError as StoreCorruptError
from entk._errors import StoreError as StoreError
from entk._errors import StoreFormatError as StoreFormatError
from entk._errors import StoreIncompleteError as StoreIncompleteError
from entk._errors import StoreLockedError as StoreLockedError
from entk._errors import StoreMismatchError as StoreMismatchError
from entk._errors import StoreSpaceError as StoreSpaceError
from entk._errors import UnsafeFileError as UnsafeFileError
from entk._errors import UnsafePathError as UnsafePathError
from entk._errors import WorkerLostError as WorkerLostError
from entk._factors import Factors as Factors
from entk._kernel import Kernel as Kernel
from entk._leaves import Dense as Dense
from entk._leaves import Lookup as Lookup
from entk._leaves import Outer as Outer
from entk._leaves import Tied as Tied
from entk._repair import clean as clean
from entk._repair import repair as repair
from entk._store import open as open

if TYPE_CHECKING:
    from entk import dynamics as dynamics
    from entk import jax as jax
    from entk import linalg as linalg
    from entk import lowrank as lowrank
    from entk import metrics as metrics
    from entk import plot as plot
    from entk import reference as reference
    from entk import regression as regression
    from entk import select as select
    from entk import torch as torch
    from entk._operator import KernelOperator as KernelOperator
else:
    # Loaded on first use: each brings what it needs, such as JAX, torch, SciPy or matplotlib.
    _LAZY = frozenset(
        {"dynamics", "jax", "linalg", "lowrank", "metrics", "plot", "reference", "regression"}
        | {"select", "torch"}
    )

    def __getattr__(name: str) -> object:
        if name == "KernelOperator":
            # A LinearOperator, so it brings SciPy.
            return importlib.import_module("entk._operator").KernelOperator
        if name in _LAZY:
            return importlib.import_module(f"entk.{name}")
        raise AttributeError(f"module 'entk' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LAZY, "KernelOperator"})
