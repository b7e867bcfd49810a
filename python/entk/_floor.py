"""The noise floor of a kernel: the size below which an eigenvalue or a pivot says nothing.

Rounding the entries of a kernel adds a random symmetric matrix. Its spectral norm is

    floor = 2 rho u sqrt(N) mean(diag K)

where `u` is the unit roundoff and `rho` the root mean square of ``|dK_ij| / (u sqrt(K_ii K_jj))``
(the norm of a Wigner matrix). A solver in float64 adds ``u64 N mean(diag K)`` of its own, a bound
on ``u64 lambda_max``. A finished kernel carries the measured `rho`; without one the constants below
are used, the worst of the measured input families (random, clustered, smooth).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
RHO_STORED = 0.36  # sums in a wider type, entries rounded once
RHO_SUMMED = 7.2  # sums in the type itself: their errors are correlated


def relative(n: int, dtype: str, accumulate: str | None = None, rho: float | None = None) -> float:
    """Return the noise floor in units of the mean diagonal.

    Parameters
    ----------
    n
        Rows of the kernel.
    dtype
        Type the entries are stored in.
    accumulate
        Type they were summed in; None is `dtype`, the cautious guess.
    rho
        Measured error of the entries in units of ``u sqrt(K_ii K_jj)``; None uses the table.
    """
    unit = ROUNDOFF.get(dtype, ROUNDOFF["float64"])
    wider = accumulate is not None and ROUNDOFF.get(accumulate, unit) < unit
    size = rho if rho is not None else RHO_STORED if wider else RHO_SUMMED
    return float(2.0 * size * unit * np.sqrt(n) + ROUNDOFF["float64"] * n)


def of_record(n: int, dtype: str, info: object) -> float:
    """Return the relative floor of a stored kernel from its record, or from its type alone."""
    record: Mapping[str, Any] = info if isinstance(info, Mapping) else {}
    accumulate = record.get("accumulate")
    certificate = record.get("certificate")
    rho = certificate.get("rho_rms") if isinstance(certificate, Mapping) else None
    known = isinstance(rho, (int, float)) and np.isfinite(rho) and rho > 0
    return relative(
        n,
        dtype,
        accumulate if isinstance(accumulate, str) else None,
        float(rho) if known and rho is not None else None,
    )
