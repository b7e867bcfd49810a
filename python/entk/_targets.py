"""Targets and the order of rows of a block kernel.

Targets are ``(N,)`` or ``(N, C)``. A kernel of N rows serves every column alike. A block kernel
has ``N*O`` rows, sample-major (row ``n*O + o``), and one column of ``N*O`` unknowns: its targets
``(N, O)`` are read in C order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from entk._dense import Float, check_finite_array
from entk._errors import DTypeError, InputError

LABELS = "y holds integer labels ({}); one-hot encode them, e.g. numpy.eye(C)[y], use " + (
    "KernelClassifier, or pass y.astype(float) if they are quantities"
)


@dataclass(frozen=True)
class Targets:
    """Targets as columns against the rows of a kernel, and the shape the caller used."""

    columns: Float
    shape: tuple[int, ...]
    block: int

    def restore(self, columns: Float) -> Float:
        """Give ``(..., rows, columns)`` the axes of the caller's targets (rows may differ)."""
        lead, rows = columns.shape[:-2], columns.shape[-2]
        if len(self.shape) == 1:
            return columns.reshape(*lead, rows)
        if self.block > 1:
            return columns.reshape(*lead, rows // self.block, self.block)
        return columns


def numbers(y: ArrayLike, what: str = "y") -> Float:
    """Return `y` as finite float64 numbers; refuse labels.

    Raises
    ------
    InputError
        For NaN, infinity, or a vector of integers with more than two values.
    DTypeError
        For anything that is not real numbers.
    """
    values = np.asarray(y)
    if values.dtype.kind == "c" or values.dtype.kind not in "fiub":
        if values.dtype.name != "bfloat16":
            raise DTypeError(f"{what} has dtype {values.dtype}; expected real numbers")
    elif values.dtype.kind in "iu" and values.ndim == 1:
        distinct = np.unique(values)
        if len(distinct) > 2:
            raise InputError(LABELS.format(f"{distinct[0]} to {distinct[-1]}"))
    values = values.astype(np.float64)
    check_finite_array(values, what)
    return values


def targets(y: ArrayLike, rows: int) -> Targets:
    """Check `y` against a kernel of that many rows; see the module's first lines.

    Raises
    ------
    InputError
        If the number of targets fits neither N nor N*O.
    """
    values = numbers(y)
    if values.ndim not in (1, 2):
        raise InputError(f"y has shape {values.shape}; expected (N,) or (N, C)")
    if len(values) == rows:
        return Targets(values.reshape(rows, -1 if rows else 1), values.shape, 1)
    if values.ndim == 2 and values.size == rows:
        return Targets(values.reshape(rows, 1), values.shape, values.shape[1])
    raise InputError(f"y has shape {values.shape}, but the kernel has {rows} rows")


def prior(f0: ArrayLike, like: Targets, rows: int, what: str = "f0") -> Float:
    """Return a prior mean as columns against `rows` rows of a kernel; a number serves all.

    Raises
    ------
    InputError
        If its shape fits neither the rows nor the targets.
    """
    values = np.asarray(f0, dtype=np.float64)
    check_finite_array(np.atleast_1d(values), what)
    columns = like.columns.shape[1]
    if values.ndim == 0:
        return np.full((rows, columns), float(values))
    wanted = (rows, *like.shape[1:]) if like.block == 1 else (rows // like.block, like.block)
    if values.shape != wanted:
        raise InputError(f"{what} has shape {values.shape}; expected a number or {wanted}")
    return values.reshape(rows, columns)
