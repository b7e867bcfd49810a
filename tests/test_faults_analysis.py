"""Rows 20 and 48 to 59 of the table of faults: what solvers do with kernels that are none."""

import numpy as np
import pytest

import entk
from bounds import SOFT, assert_rounding
from entk import dynamics, linalg, lowrank
from entk.linalg import _limits
from entk.regression import KernelRidge, gp_posterior
from kernels import Operator, Stored, gram, smooth


def test_row_20_a_workspace_beyond_32_bits_is_refused_by_name():
    text = r"eigh workspace of 2,147,549,181 elements exceeds this LAPACK's 32-bit integers"
    with pytest.raises(entk.SizeError, match=text):
        _limits.check_lapack("eigh of ?syevd", 32_767)


@pytest.mark.parametrize("call", [linalg.cholesky, lambda k: linalg.solve(k, np.ones(9))])
@pytest.mark.parametrize("zero", [0, 5, 8])
def test_row_48_a_sample_of_zeros_is_named(rng, call, zero):
    k = gram(rng, 9)
    k[zero] = k[:, zero] = 0.0
    with pytest.raises(
        entk.NotPositiveDefiniteError, match=rf"K is singular: sample {zero} has a zero diagonal"
    ):
        call(k)
    assert np.isfinite(linalg.cholesky(k, ridge=0.1)).all()


@pytest.mark.parametrize("d", [700, 2000])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_row_50_a_repeated_sample_is_named_with_its_twin(rng, d, dtype):
    x = rng.standard_normal((600, d)).astype(dtype)
    x[512] = x[40]
    k = x @ x.T
    k[512], k[:, 512] = k[40], k[:, 40]
    k[512, 512] = k[512, 40] = k[40, 512] = k[40, 40]
    with pytest.raises(
        entk.NotPositiveDefiniteError,
        match=r"pivot 512 = \S+ is below the noise floor \S+; samples 512 and 40 are identical; "
        r"add ridge >= \S+\*mean\(diag\) .* or drop one",
    ):
        linalg.cholesky(k)


@pytest.mark.parametrize("n", [2, 3, 10, 100])
def test_row_50_a_repeated_sample_never_passes_for_a_positive_pivot(rng, n):
    for _ in range(50):
        x = rng.standard_normal((n, n + 3))
        x[n - 1] = x[0]
        k = x @ x.T
        k[n - 1], k[:, n - 1] = k[0], k[:, 0]
        k[n - 1, n - 1] = k[n - 1, 0] = k[0, n - 1] = k[0, 0]
        with pytest.raises(entk.NotPositiveDefiniteError, match="are identical"):
            linalg.cholesky(k)


@pytest.mark.parametrize("n", [5, 40])
def test_row_50_a_sample_that_depends_on_two_others_is_named(rng, n):
    for _ in range(50):
        x = rng.integers(-4, 5, (n, n + 3)).astype(float)  # the kernel of integers is exact
        x[n - 1] = x[0] + x[1]
        with pytest.raises(
            entk.NotPositiveDefiniteError, match=rf"pivot {n - 1} = .* sample {n - 1} depends"
        ):
            linalg.cholesky(x @ x.T)


def test_row_51_near_repeats_in_float32_warn_with_the_noise_floor(rng):
    x = rng.standard_normal((40, 100))
    x[20:] = x[:20] + 2e-4 * rng.standard_normal((20, 100))
    k = (x @ x.T).astype(np.float32)
    k = np.tril(k) + np.tril(k, -1).T
    with pytest.warns(linalg.PrecisionWarning, match=r"noise floor \S+\*mean\(diag\) exceeds"):
        linalg.cholesky(k.astype(np.float32), ridge=1e-6 * 100)


def test_row_52_eigenvalues_below_the_floor_are_counted_and_not_clipped():
    k = smooth(150).astype(np.float32)
    values = linalg.eigvalsh(k)
    assert values.min() < 0
    assert values.min() >= -values.floor
    assert values.n_below_floor == int(np.sum(np.asarray(values) <= values.floor)) > 75
    assert linalg.eigsh(k, 150).n_below_floor == values.n_below_floor


def test_row_53_layers_of_sizes_far_apart_keep_the_small_one_in_float64(rng):
    """A layer 1e8 times another in the kernel: float32 sums lose it, float64 sums do not.

    The large layer has rank 5 alone, so every further eigenvalue is of the small one.
    """
    large = 1e4 * rng.integers(-4, 5, (20, 5)).astype(np.float32)
    small = rng.standard_normal((20, 40)).astype(np.float32)
    factors = entk.Factors({"large": entk.Dense(large), "small": entk.Dense(small)})
    alone = small.astype(float) @ small.astype(float).T
    wide = entk.assemble(factors, dtype="float64")
    values = linalg.eigvalsh(wide)
    assert values.n_below_floor == 0
    # Between those of the small layer and of what is left of it beside five directions (Cauchy).
    low, high = np.linalg.eigvalsh(alone)[[0, -1]]
    assert (np.asarray(values[:15]) >= low * (1 - SOFT * 2.0**-26)).all()
    assert (np.asarray(values[:15]) <= high * (1 + SOFT * 2.0**-26)).all()
    assert linalg.eigvalsh(entk.assemble(factors)).n_below_floor >= 15


@pytest.mark.parametrize(
    "call", [linalg.cholesky, linalg.eigvalsh, linalg.condition_number, linalg.logdet]
)
@pytest.mark.parametrize("wrap", [np.asarray, np.asfortranarray])
def test_row_54_an_asymmetric_matrix_is_refused_with_the_entry(rng, call, wrap):
    k = gram(rng, 9)
    k[3, 7] = k[7, 3] + 1.2e-3
    text = r"matrix is not symmetric: K\[3, 7\] - K\[7, 3\] = 0.0012"
    with pytest.raises(entk.InputError, match=text):
        call(wrap(k))


def test_row_54_rounding_is_no_asymmetry(rng):
    k = gram(rng, 50)
    k[3, 7] = np.nextafter(k[3, 7], 2)
    linalg.cholesky(k)


@pytest.mark.parametrize(
    "call",
    [
        linalg.cholesky,
        linalg.eigvalsh,
        lambda k: linalg.eigsh(k, 2),
        lambda k: linalg.cg(k, np.ones(9), 1.0),
        lambda k: lowrank.rpcholesky(k, 9),
        lambda k: dynamics.gradient_flow(k, np.ones(9), 1.0, 1.0),
        lambda k: KernelRidge().fit(k, np.ones(9)),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("wrap", [np.asarray, Stored])
def test_row_55_nan_and_infinity_are_refused(rng, call, value, wrap):
    k = gram(rng, 9)
    k[2, 4] = k[4, 2] = value
    with pytest.raises(entk.NonFiniteError, match=r"is (nan|inf)"):
        call(wrap(k))


@pytest.mark.parametrize(
    ("ridge", "text"),
    [
        (-1e-6, r"ridge must be >= 0 \(got -1e-06\)"),
        (np.nan, r"ridge must be >= 0 \(got nan\)"),
        (np.ones(3), r"ridge has shape \(3,\)"),
    ],
)
def test_row_56_a_ridge_that_is_none_is_refused(rng, ridge, text):
    for call in (linalg.cholesky, linalg.logdet):
        with pytest.raises(entk.InputError, match=text):
            call(gram(rng, 5), ridge=ridge)
    with pytest.raises(entk.InputError, match=text):
        linalg.cg(gram(rng, 5), np.ones(5), ridge)


@pytest.mark.parametrize(
    ("y", "text"),
    [
        ([1.0, np.nan, 0.0], r"y\[1\] is nan"),
        ([1.0, 2.0], r"y has shape \(2,\), but the kernel has 3 rows"),
        ([0, 1, 2], r"y holds integer labels \(0 to 2\); one-hot encode"),
    ],
)
def test_row_57_targets_that_are_none_are_refused(y, text):
    calls = (
        lambda: KernelRidge().fit(np.eye(3), y),
        lambda: gp_posterior(np.eye(3), np.eye(3), np.ones(3), y, 1.0),
        lambda: dynamics.gradient_flow(np.eye(3), y, 1.0, 1.0),
    )
    for call in calls:
        with pytest.raises(entk.InputError, match=text):
            call()


def test_row_58_cg_attaches_its_best_iterate(rng):
    k, b = gram(rng, 60), rng.standard_normal(60)
    with pytest.raises(
        entk.ConvergenceError, match=r"residual \S+ after 5 iterations \(tol 1e-10\)"
    ) as caught:
        linalg.cg(k, b, tol=1e-10, maxiter=5)
    best = caught.value.best
    assert best.x.shape == b.shape
    assert best.iterations == 5
    assert best.residual < 1
    assert_rounding(best.residual, np.linalg.norm(b - k @ best.x) / np.linalg.norm(b), 60)


def test_row_58_an_operator_that_is_not_symmetric_is_named(rng):
    with pytest.raises(entk.ConvergenceError, match="the operator is not symmetric"):
        linalg.cg(Operator(rng.standard_normal((30, 30)) + 6 * np.eye(30)), np.ones(30), maxiter=90)


def test_row_58_lanczos_attaches_what_converged(rng, monkeypatch):
    monkeypatch.setattr("entk.linalg._eigen.DENSE_ROWS", 10)
    k = np.diag(np.linspace(1.0, 1.001, 400))
    with pytest.raises(entk.ConvergenceError, match="Lanczos found") as caught:
        linalg.eigsh(k, 5, maxiter=1)
    assert caught.value.best.values.shape[0] < 5


def test_row_59_a_rank_above_n_is_cut_with_a_warning_and_zero_is_refused(rng):
    k = gram(rng, 6)
    with pytest.warns(UserWarning, match="rank 9 is above the 6 samples; using 6"):
        assert lowrank.rpcholesky(k, 9).rank == 6
    with pytest.warns(UserWarning, match="rank 9 is above the 6 samples"):
        assert lowrank.nystrom(k, 9).rank == 6
    for call in (lowrank.rpcholesky, lowrank.nystrom):
        with pytest.raises(entk.InputError, match="rank must be at least 1"):
            call(k, 0)
