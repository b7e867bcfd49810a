"""Results that know how far they may be trusted."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np

from entk._dense import Float


class Measured(float):
    """A number with the error it may carry.

    Attributes
    ----------
    error
        First-order bound on the error that the kernel's own noise causes; infinity if the noise
        can make the number anything.
    floor
        Noise floor of the kernel, in its own units.
    """

    error: float
    floor: float

    def __new__(cls, value: float, *, error: float, floor: float) -> Self:
        """Attach `error` and `floor` to `value`."""
        self = super().__new__(cls, value)
        self.error, self.floor = float(error), float(floor)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, float]]:
        """Copy and pickle with the attributes."""
        return (float(self),), {"error": self.error, "floor": self.floor}


class Spectrum(np.ndarray[Any, np.dtype[np.float64]]):
    """Eigenvalues in ascending order: an array with a noise floor.

    Attributes
    ----------
    floor
        Noise floor in units of the kernel. Eigenvalues of smaller size may be rounding; they are
        reported as they came out, negative ones too, never clipped.
    """

    floor: float = 0.0

    @classmethod
    def of(cls, values: Float, floor: float) -> Spectrum:
        """Attach a floor to eigenvalues."""
        self = np.asarray(values, dtype=np.float64).view(cls)
        self.floor = float(floor)
        return self

    def __array_finalize__(self, source: object) -> None:
        """Carry the floor through slices and arithmetic."""
        self.floor = getattr(source, "floor", 0.0)

    @property
    def n_below_floor(self) -> int:
        """How many eigenvalues are not above the noise floor."""
        return int(np.sum(np.asarray(self) <= self.floor))


class Eigen(NamedTuple):
    """Eigenvalues (ascending), eigenvectors (columns), and the noise floor of the kernel."""

    values: Float
    vectors: Float
    floor: float

    @property
    def n_below_floor(self) -> int:
        """How many of `values` are not above the noise floor."""
        return int(np.sum(np.asarray(self.values) <= self.floor))


class Solution(NamedTuple):
    """An iterative solution: `x`, the largest true relative residual, iterations taken."""

    x: Float
    residual: float
    iterations: int


class LogdetEstimate(NamedTuple):
    """A stochastic log-determinant, its standard error, and the probes it rests on."""

    value: float
    stderr: float
    probes: int
