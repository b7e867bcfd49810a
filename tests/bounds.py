"""The one place with tolerances: derived error bounds, and the check that asserts them.

Notation. ``u`` is the unit roundoff, ``gamma_n = n u / (1 - n u)`` (Higham), ``m`` the largest
number of roundings between a factor and an entry, ``S`` the kernel of the factors' absolute
values. Any order of the sums that keeps to the chain lengths gives

    |K_hat - K|_ij <= gamma_m S_ij <= gamma_m sqrt(S_ii S_jj),

since S is positive semi-definite; storing adds one rounding. `check` asserts this (hard) and that
the error stays a small multiple of u (soft: 16 as in the BLAS drivers, 30 as in LAPACK's where
positions are summed), because a correct chain loses far less than its guarantee.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from entk import reference
from entk._leaves import Dense, Lookup, Outer, Tied
from entk._outputs import resolve, resolve_pair

U = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SUBNORMAL = {"float64": 2.0**-1074, "float32": 2.0**-149}
# Length of one chain of fused multiply-adds; part of the kernel's ABI.
KC = 256
SOFT = 16.0
SOFT_POSITIONS = 30.0
# "Accumulated in float64, stored in float32" is one rounding of a nearly exact number.
NEARLY_ONE = 1.0 + 2.0**-20
# Factor on the expected spectral norm of random rounding, for errors that are correlated.
FLOOR_FACTOR = 6.0


def gamma(n, u):
    """Return ``n u / (1 - n u)``."""
    assert n * u < 1, f"bound is void: n u = {n * u}"
    return n * u / (1 - n * u)


def chain(d, kc=KC):
    """Return the roundings on the longest path of a sum of `d` products in blocks of `kc`."""
    return min(d, kc) + -(-d // kc) if d else 0


def steps(factors, outputs=None, kc=KC):
    """Return m for one entry of the kernel of `factors`."""
    want = resolve(factors, outputs)
    rows = factors.rows
    extra = {
        "as-is": 0,
        "full": 0,
        "diagonal": 0,
        "index": 0,
        # Contracted before or after the Gram products; scaled once.
        "sum": max(2 * chain(rows, kc), chain(rows * rows, kc)) + 1,
        "trace": chain(rows, kc) + 1,
        "weights": max(2 * chain(rows, kc), 2 * chain(rows * rows, kc)) + 2,
    }[want.mode]
    return max(leaf_steps(factors[name], kc) for name in factors) + len(factors) + extra


def leaf_steps(leaf, kc=KC):
    """Return the roundings on the longest path within one leaf, whatever its contraction plan."""
    if isinstance(leaf, Dense):
        return chain(leaf._jac.shape[2], kc)
    if isinstance(leaf, Tied):
        uses = leaf.uses
        # A cross term may sum the products of any two uses' axes.
        return sum(leaf_steps(use, kc) for use in uses) + chain(len(uses) ** 2, kc)
    if isinstance(leaf, Lookup):
        _, _, t, d = leaf._cots.shape
        return chain(d, kc) + 1 + _sum_of(t * t, kc)
    assert isinstance(leaf, Outer)
    _, g, t, d_in = leaf._acts.shape
    d_out = leaf._cots.shape[4]
    pairs = chain(d_in, kc) + chain(d_out, kc) + 1 + _sum_of(t * t, kc)
    # Each side's table is formed first: t products a side, then one long inner product.
    expanded = 2 * chain(t, kc) + chain(d_in * d_out, kc)
    one_side = chain(t, kc) + chain(d_in, kc) + chain(t * d_out, kc)
    return (pairs if t == 1 else max(pairs, expanded, one_side)) + _sum_of(g, kc)


def _sum_of(terms, kc):
    return chain(terms, kc) if terms > 1 else 0


@dataclass(frozen=True)
class Ratios:
    """How far a kernel is from exact: `m`, errors over u and over the bound, S_ii / K_ii."""

    m: int
    ratio: float
    of_bound: float
    cancel: float


def check(kernel, factors, *, other=None, outputs=None, accumulate=None, soft=None, exact=None):
    """Assert that `kernel` is within its bounds of the kernel of `factors`, and return how far.

    Without `exact` (an array of fractions) the exact kernel is `entk.reference`'s, whose own
    float64 rounding is allowed for.
    """
    kernel = np.asarray(kernel)
    out = kernel.dtype.name
    acc = accumulate or out
    if soft is None:
        soft = SOFT_POSITIONS if has_positions(factors) else SOFT
    near = reference.assemble(factors, other, outputs) if exact is None else exact
    gauge = scale(factors, other, outputs)
    assert kernel.shape == near.shape
    assert np.isfinite(kernel).all()

    one_side = outputs if other is None else _side(factors, other, outputs, 0)
    m = steps(factors, one_side)
    stored = U[out] if U[out] > U[acc] else 0.0
    bound = gamma(m, U[acc]) + stored * (1 + gamma(m, U[acc]))
    if exact is None:
        # NumPy's sums are one chain long at worst.
        bound += gamma(steps(factors, one_side, kc=1 << 62), U["float64"])
    error = _distance(kernel, near)
    error = np.maximum(error - underflow(factors, m, acc, out), 0.0)
    assert (error[gauge == 0] == 0).all(), "an entry without products is not exactly zero"

    relative = (error / np.where(gauge > 0, gauge, 1.0)).max(initial=0.0)
    hard, ratio = relative / bound, relative / max(U[acc], U[out])
    assert hard <= 1, f"error bound violated: {hard:.2f} x gamma_m (m = {m})"
    assert ratio <= soft, f"error of {ratio:.1f} u, more than {soft} u"
    return Ratios(m, float(ratio), float(hard), _cancellation(near.astype(np.float64), gauge))


def _distance(kernel, exact):
    """Return ``|kernel - exact|`` in float64; from fractions, rounded only then."""
    if exact.dtype == object:
        gaps = [abs(Fraction(float(k)) - e) for k, e in zip(kernel.flat, exact.flat, strict=True)]
        return np.array([float(gap) for gap in gaps]).reshape(kernel.shape)
    return np.abs(kernel.astype(np.float64) - exact)


def scale(factors, other=None, outputs=None):
    """Return ``sqrt(S_ii S_jj)`` in the shape of the kernel."""
    left = _self_scale(factors, outputs if other is None else _side(factors, other, outputs, 0))
    right = left if other is None else _self_scale(other, _side(factors, other, outputs, 1))
    return np.sqrt(left[..., :, None]) * np.sqrt(right[..., None, :])


def _side(factors, other, outputs, side):
    """Return the outputs argument of one side of a cross kernel."""
    want = resolve_pair(factors, other, outputs)[side]
    return want.weights if want.mode == "weights" else outputs


def _self_scale(factors, outputs):
    """Return S_ii for every row of a kernel, one example at a time."""
    want = resolve(factors, outputs)
    diagonals = []
    for i in range(factors.n):
        theta = reference.blocks(factors.take(slice(i, i + 1)), each=np.abs)
        one = want
        if want.weights is not None:
            w = np.abs(want.weights if want.weights.ndim == 1 else want.weights[i : i + 1])
            one = type(want)("weights", weights=w)
        diagonals.append(np.diagonal(reference.contract(theta, one, one), axis1=-2, axis2=-1))
    if not diagonals:
        return np.zeros((factors.n_outputs, 0) if want.mode == "diagonal" else 0)
    return np.concatenate(diagonals, axis=-1)


def has_positions(factors):
    """Return whether a leaf sums over positions, so that its guarantee may cancel."""
    uses = (use for leaf in factors.values() for use in getattr(leaf, "uses", (leaf,)))
    return any(not isinstance(u, Dense) and u._cots.shape[-2] > 1 for u in uses)


def underflow(factors, m, acc, out):
    """Return an absolute error that gradual underflow may add to an entry.

    Every rounding of a number near zero errs by half the smallest subnormal; an error in one Gram
    factor is multiplied by the other, one in an entry of a table by the table's other entries.
    """
    worst = 1.0
    for leaf in factors.values():
        numbers = [p.host.values() for p in leaf._parts if not p.word.endswith("ids")]
        peaks = [np.abs(x).max(initial=0.0) for x in numbers]
        pairs = max(np.prod(x.shape[1:-1], dtype=float) for x in numbers) ** 2
        grams = sum(x.shape[-1] * peak**2 for x, peak in zip(numbers, peaks, strict=True))
        table = np.prod([float(x.shape[-1]) * peak for x, peak in zip(numbers, peaks, strict=True)])
        worst += pairs * (1.0 + grams + table)
    with np.errstate(over="ignore"):
        return m * worst * SUBNORMAL[acc] + SUBNORMAL[out]


def _cancellation(exact, gauge):
    if exact.ndim != 2 or exact.shape[0] != exact.shape[1] or not exact.size:
        return 1.0
    diagonal = np.diag(exact)
    return float((np.diag(gauge)[diagonal > 0] / diagonal[diagonal > 0]).max(initial=1.0))


def rms_ratio(kernel, factors, u):
    """Return the rms of ``|dK_ij| / (u sqrt(S_ii S_jj))``."""
    gauge = scale(factors)
    error = np.abs(np.asarray(kernel, np.float64) - reference.assemble(factors))
    used = gauge > 0
    return float(np.sqrt(np.mean((error[used] / (u * gauge[used])) ** 2))) if used.any() else 0.0


def eigenvalue_floor(kernel, factors, *, unit):
    """Return how far below zero an eigenvalue of `kernel` may lie by rounding.

    ``6 * 2 rho_rms u sqrt(N) mean(diag)``: the spectral norm of a random symmetric error matrix,
    times 6 because the errors of a chain are correlated; plus what a float64 solver adds. `unit` is
    the type whose rounding dominates.
    """
    kernel = np.asarray(kernel, np.float64)
    n = len(kernel)
    u = U[unit]
    mean = np.mean(np.diag(kernel))
    assembly = FLOOR_FACTOR * 2 * rms_ratio(kernel, factors, u) * u * np.sqrt(n) * mean
    # LAPACK's eigenvalues are those of a matrix within a small multiple of u |K|.
    return assembly + SOFT_POSITIONS * U["float64"] * n * mean


def assert_same_bits(a, b):
    """Assert that two arrays hold the same bits; NaN payloads do not count."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    bits = np.dtype(f"u{a.dtype.itemsize}")
    same = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    same |= np.isnan(a) & np.isnan(b)
    assert same.all(), f"{(~same).sum()} entries differ, first at {np.argwhere(~same)[0]}"


def assert_close_in_float64(a, b, terms=1):
    """Assert that two float64 sums of `terms` products agree, relative to the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    largest = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    limit = 2 * SOFT_POSITIONS * max(terms, 1) * U["float64"] * largest
    error = np.abs(a - b).max(initial=0.0)
    assert error <= limit, f"they differ by {error}, more than {limit}"


# Solvers ------------------------------------------------------------------------------------------

# LAPACK's own tests accept a scaled residual below this.
LAPACK_RATIO = 30.0
# A mean of many draws further than this many standard errors from its law is a bug, not luck.
SIGMAS = 5.0
# Relative accuracy asked of an ODE solver, and how far it may drift from it over a run.
ODE_RTOL = 1e-10
ODE_DRIFT = 1e3
# Laws that hold in the mean over seeds: slopes of log-log lines, and constants in front of them.
SLOPE = 0.12
LAW = 0.2


def norm1(a):
    """Return the largest sum of absolute values of a column."""
    return float(np.abs(a).sum(axis=0).max(initial=0.0))


def lapack_cholesky(kernel, lower):
    """Return LAPACK's ratio ``|K - L L^T|_1 / (n |K|_1 u)``."""
    n = max(len(kernel), 1)
    scale = norm1(kernel) or 1.0
    # Scaled first: near overflow the products of norms would not be finite.
    root = lower / np.sqrt(scale)
    return norm1(kernel / scale - root @ root.T) / (n * U["float64"])


def lapack_solve(kernel, x, b):
    """Return LAPACK's ratio ``|b - K x|_1 / (|K|_1 |x|_1 u)``."""
    scale = norm1(kernel) * norm1(np.atleast_2d(x.T).T) or 1.0
    return norm1(np.atleast_2d((b - kernel @ x).T).T) / (scale * U["float64"])


def lapack_eigen(kernel, values, vectors):
    """Return LAPACK's ratios of the residual and of orthogonality."""
    n = max(len(kernel), 1)
    scale = norm1(kernel) or 1.0
    residual = norm1(kernel @ vectors - vectors * values) / (scale * n * U["float64"])
    gram = vectors.T @ vectors - np.eye(vectors.shape[1])
    return residual, norm1(gram) / (n * U["float64"])


def solver_rtol(kernel, ridge=0.0):
    """Return the relative error that two backward stable solutions may differ by."""
    n = max(len(kernel), 1)
    kappa = np.linalg.cond(kernel + ridge * np.eye(len(kernel))) if len(kernel) else 1.0
    return 2 * LAPACK_RATIO * n * U["float64"] * float(kappa)


def assert_same_solution(got, want, kernel, ridge=0.0):
    """Assert that two solutions of one system agree as far as its condition allows."""
    want = np.asarray(want, np.float64)
    scale = np.abs(want).max(initial=0.0) or 1.0
    assert np.shape(got) == want.shape
    error = np.abs(got - want).max(initial=0.0) / scale
    assert error <= solver_rtol(kernel, ridge), f"{error:.1e} > {solver_rtol(kernel, ridge):.1e}"


def assert_rounding(got, want, terms, u=U["float64"]):
    """Assert that two sums of `terms` terms agree relative to their largest entry."""
    want = np.asarray(want, np.float64)
    scale = np.abs(want).max(initial=0.0) or 1.0
    error = np.abs(np.asarray(got, np.float64) - want).max(initial=0.0) / scale
    assert np.shape(got) == want.shape
    assert error <= LAPACK_RATIO * max(terms, 1) * u, f"relative error {error:.1e}"


# Kernels of networks against explicit Jacobians, relative to the largest entry. Both sides run the
# network in its own precision, in other orders of summation: a few dozen roundings on each path.
JACOBIAN = {"float64": 1e-12, "float32": 5e-6}


# Front ends ---------------------------------------------------------------------------------------

# Largest error of a kernel against that of explicit gradients, relative to its largest entry.
EXTRACTION = {"float64": 1e-11, "float32": 5e-6, "bfloat16": 0.05, "float16": 0.01}
# Above this two kernels are different kernels, not one with rounding.
DIFFERENT = 1e-3


def assert_extracted(error, dtype="float64"):
    """Assert that the factors of a network explain its gradients."""
    assert error <= EXTRACTION[dtype], f"relative error {error:.1e} in {dtype}"


# Certificates -------------------------------------------------------------------------------------

# The mean square of the errors of some entries is that of all of them up to this factor.
SAMPLING = 3.0
# An entry that is wrong by 1e-3 stands out from rounding by more than this.
PLANTED_RATIO = 1000.0


# Training -----------------------------------------------------------------------------------------

# Halving the step of a method of first order halves its error, up to terms of the next order.
LINEARISED = (1.8, 2.2)


def assert_drift(got, want, steps):
    """Assert that two float64 iterations of contractions agree: each step adds a few roundings."""
    scale = np.abs(want).max()
    error = np.abs(got - want).max() / scale
    limit = 64 * LAPACK_RATIO * max(steps, 1) * U["float64"]
    assert error <= limit, f"relative error {error:.1e} after {steps} steps, more than {limit:.1e}"
