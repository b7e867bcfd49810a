"""Is this kernel precise enough for that question? The rule, applied and said in words."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from entk import _dense, _floor
from entk._errors import InputError

Task = Literal["regression", "logdet", "spectrum"]

MARGIN = 10.0  # a ridge this many times the floor leaves a tenth of error on the worst mode
LOGDET_MARGIN = 100.0  # times N: less than 0.01 nat in all


class Precision(NamedTuple):
    """Whether a kernel is precise enough, and what would be.

    Attributes
    ----------
    floor
        Noise floor, in units of the kernel.
    needed
        Largest floor that would do for the task and ridge.
    enough
        Whether ``floor <= needed``, or the kernel is float64 and nothing better exists.
    advice
        The same in words, with the arguments of `entk.assemble` that would do.
    """

    floor: float
    needed: float
    enough: bool
    advice: str

    def __str__(self) -> str:
        """Say it in words."""
        return self.advice


def precision(K: Any, ridge: float = 0.0, *, task: Task = "regression") -> Precision:
    """Say whether a kernel is precise enough for a task with a ridge.

    Ridge regression wants a ridge of ten times the noise floor: the worst mode is then off by a
    tenth, those of the data by far less. A log-determinant adds up N such errors: ``100 N`` times
    the floor leaves less than 0.01 nat. The small end of the spectrum, condition numbers and
    anything without a ridge want float64 throughout. The top of the spectrum, alignment and
    attribution want nothing.

    Parameters
    ----------
    K : array, `entk.Kernel` or `entk.KernelOperator`, shape (n, n)
        The kernel; its type, its record and its diagonal are looked at.
    ridge : float
        In units of the kernel.
    task : {"regression", "logdet", "spectrum"}
        What it is for; "spectrum" means its small end.

    Returns
    -------
    Precision

    Raises
    ------
    InputError
        For another task or a negative ridge.

    Notes
    -----
    The floors are those of measured input families, extrapolated by ``sqrt(N)``; see the page on
    precision. The noise of float32 automatic differentiation in the factors is not in them: it
    changes the network by a rounding, not the kernel's positive definiteness.

    Examples
    --------
    >>> import numpy as np
    >>> from entk.linalg import precision
    >>> print(precision(np.eye(1000, dtype=np.float32), ridge=1e-6))
    the ridge is 0.037 times the noise floor 2.7e-05, less than 10: assemble with dtype="float64"
    >>> precision(np.eye(1000), ridge=1e-6).enough
    True
    """
    if task not in ("regression", "logdet", "spectrum"):
        raise InputError(f"task={task!r}; expected 'regression', 'logdet' or 'spectrum'")
    matrix = _dense.read(K)
    shift = float(_dense.ridge_of(ridge, matrix.n))
    n = max(matrix.n, 1)
    unit = float(np.mean(np.abs(matrix.diag))) if matrix.n else 1.0
    factor = {"regression": MARGIN, "logdet": LOGDET_MARGIN * n, "spectrum": np.inf}[task]
    needed = shift / factor
    floor = matrix.noise
    if matrix.dtype == "float64":
        return Precision(floor, needed, enough=True, advice=_for_double(floor, needed, factor))
    if floor <= needed:
        text = f"the ridge is {shift / floor:.3g} times the noise floor {floor:.1e}: enough"
        return Precision(floor, needed, enough=True, advice=text)
    stored = _floor.relative(n, matrix.dtype, "float64") * unit
    better = (stored < 0.5 * floor and stored <= needed) and matrix.dtype == "float32"
    how = 'accumulate="float64"' if better else 'dtype="float64"'
    why = "its small end needs float64"
    if np.isfinite(factor):
        why = f"the ridge is {shift / floor:.2g} times the noise floor {floor:.1e}, less than "
        why += f"{factor:,.0f}"
    return Precision(floor, needed, enough=False, advice=f"{why}: assemble with {how}")


def _for_double(floor: float, needed: float, factor: float) -> str:
    if floor <= needed:
        return "float64 is enough"
    if not np.isfinite(factor):
        return f"float64 is the best there is: eigenvalues below {floor:.1e} are rounding"
    return (
        f"float64 is the best there is, but the ridge is less than {factor:,.0f} times its noise "
        f"floor {floor:.1e}: raise the ridge"
    )
