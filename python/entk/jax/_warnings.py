"""Warnings, at the line of the user's code that called entk."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from entk._errors import ModelWarning

if TYPE_CHECKING:
    from entk.jax._program import Program, Trace

_CAPTURED = 1024
"""Floating-point arrays of two or more axes captured by `f` are reported from this size on."""


def warn_captured(traced: Trace) -> None:
    """Tell of large arrays that `f` uses but that are not in `params`."""
    for const in traced.consts:
        large = np.ndim(const) >= 2 and np.size(const) >= _CAPTURED
        if large and jnp.issubdtype(const.dtype, jnp.inexact):
            _warn(
                f"f captures an array of shape {const.shape} that is not in params: it is taken as"
                " a constant and has no share in the kernel. If it is a parameter, pass it in"
                " params"
            )


def warn_unused(program: Program) -> None:
    """Tell of parameters that the network does not read."""
    unused = [part.name for part in program.parts if part.leaf not in program.taps.used]
    if unused:
        _warn(f"no use of {', '.join(unused)}: the network does not read it, so its share is zero")


def warn_demoted(names: Sequence[str]) -> None:
    """Tell of parameters whose factors did not give their gradient."""
    _warn(
        f"the factors of {', '.join(names)} failed the audit against jax.grad; taken dense, which"
        " is exact. Please report it with the network"
    )


def _warn(text: str) -> None:
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("entk."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(text, ModelWarning, stacklevel=depth + 1)
