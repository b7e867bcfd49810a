"""From factors to answers: arrays, stored kernels, operators and factors agree end to end."""

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score

import entk
from bounds import assert_rounding, assert_same_solution
from entk import dynamics, linalg, lowrank, metrics, select
from entk.regression import KernelClassifier, KernelRidge, gp_posterior
from networks import two_layer, two_layer_factors

N, M, OUT, WIDTH = 24, 6, 3, 64
TERMS = (N + M) * OUT * WIDTH


@pytest.fixture(scope="module")
def factors():
    return two_layer_factors(0, WIDTH, OUT, N + M)


@pytest.fixture(scope="module")
def near(factors):
    return factors.take(slice(0, N))


@pytest.fixture(scope="module")
def far(factors):
    return factors.take(slice(N, None))


@pytest.fixture(params=["npy", "lower.zarr"])
def stored(near, request, tmp_path):
    triangle = "lower" if request.param.startswith("lower") else "full"
    out = tmp_path / f"K.{request.param}"
    return entk.assemble(near, out=str(out), tile=10, triangle=triangle)


def test_the_assembled_kernel_is_the_closed_form(near):
    full, summed, _ = two_layer(0, WIDTH, OUT, N + M)
    cut = N * OUT
    assert_rounding(entk.assemble(near), full[:cut, :cut], TERMS)
    assert_rounding(entk.assemble(near, outputs="sum"), summed[:N, :N], TERMS)


def test_solvers_agree_on_all_forms_of_a_kernel(near, stored):
    kernel = entk.assemble(near)
    b = np.linspace(-1.0, 1.0, N * OUT)
    exact = np.linalg.solve(kernel + 0.1 * np.eye(N * OUT), b)
    for form in (kernel, stored, entk.KernelOperator(near), near):
        assert_same_solution(linalg.solve(form, b, 0.1), exact, kernel, 0.1)
        assert_rounding(linalg.eigvalsh(form), np.linalg.eigvalsh(kernel), TERMS)
        assert_rounding(linalg.logdet(form, 0.1), linalg.logdet(kernel, 0.1), TERMS)
        assert linalg.cg(form, b, 0.1, 1e-9).residual <= 1e-9


def test_low_rank_factors_are_those_of_the_kernel_whatever_its_form(near, stored):
    kernel = entk.assemble(near)
    want = lowrank.rpcholesky(kernel, 30, seed=2)
    for form in (stored, entk.KernelOperator(near), near):
        got = lowrank.rpcholesky(form, 30, seed=2)
        np.testing.assert_array_equal(got.pivots, want.pivots)
        assert_rounding(got.factor, want.factor, TERMS * N * OUT)


def test_a_low_rank_preconditioner_of_the_factors_speeds_up_products_with_them(near):
    op, b = entk.KernelOperator(near), np.ones(N * OUT)
    low = lowrank.rpcholesky(near, 40)
    plain = linalg.cg(op, b, 1e-3, 1e-8)
    fast = linalg.cg(op, b, 1e-3, 1e-8, preconditioner=low)
    assert fast.iterations < plain.iterations


def test_designs_are_those_of_the_kernel(near):
    kernel = entk.assemble(near, outputs="sum")
    op = entk.KernelOperator(near, outputs="sum")
    np.testing.assert_array_equal(select.maximin(op, 5).chosen, select.maximin(kernel, 5).chosen)


@pytest.mark.parametrize("outputs", ["sum", "trace", None])
@pytest.mark.parametrize("ridge", [0.1, [0.1, 1.0]])
def test_estimators_take_factors(near, far, rng, outputs, ridge):
    y = rng.standard_normal((N, OUT))
    kernel, cross = entk.assemble(near, outputs=outputs), entk.assemble(far, near, outputs=outputs)
    ours = KernelRidge(ridge=ridge, outputs=outputs).fit(near, y)
    want = KernelRidge(ridge=ridge).fit(kernel, y)
    assert_same_solution(ours.predict(far), want.predict(cross), kernel, 0.1)
    assert_same_solution(ours.loo_errors_, want.loo_errors_, kernel, 0.1)
    labels = np.array(["ant", "bee", "cat"])[np.arange(N) % OUT]
    model = KernelClassifier(ridge=ridge, outputs=outputs).fit(near, labels)
    assert (model.predict(far) == KernelClassifier(ridge=ridge).fit(kernel, labels)
            .predict(cross)).all()  # fmt: skip


def test_estimators_fitted_on_factors_predict_from_factors(near, far, rng):
    model = KernelRidge().fit(near, rng.standard_normal((N, OUT)))
    with pytest.raises(entk.InputError, match="predict takes the factors"):
        model.predict(entk.assemble(far, near))


def test_an_operator_too_large_for_a_factor_is_fitted_by_products(near, far, rng, monkeypatch):
    y = rng.standard_normal((N, OUT))
    want = KernelRidge(ridge=0.1).fit(near, y).predict(far)
    monkeypatch.setattr("entk.linalg._limits.fits", lambda size, memory: size < 1000)
    monkeypatch.setattr("entk.linalg._limits.require", lambda *_: None)
    model = KernelRidge(ridge=0.1, tol=1e-12).fit(near, y)
    assert_same_solution(model.predict(far), want, entk.assemble(near), 0.1)


def test_posteriors_and_dynamics_take_stored_kernels(near, far, rng, stored, tmp_path):
    y = rng.standard_normal((N, OUT))
    kernel, cross = entk.assemble(near), entk.assemble(far, near)
    on_disk = entk.assemble(far, near, out=str(tmp_path / "cross.npy"))
    prior = entk.diagonal(far)
    got, want = (gp_posterior(k, c, prior, y, 0.1) for k, c in ((stored, on_disk), (kernel, cross)))
    assert_same_solution(got.mean, want.mean, kernel, 0.1)
    assert_same_solution(got.variance, want.variance, kernel, 0.1)
    pair = [
        dynamics.gradient_flow(k, y, [1.0, 10.0], 0.1, K_star=c)
        for k, c in ((stored, on_disk), (kernel, cross))
    ]
    for one, other in zip(*pair, strict=True):
        assert_rounding(one, other, TERMS)


def test_comparison_streams_kernels_of_any_form(near, stored):
    summed = entk.assemble(near, outputs="sum")
    want = metrics.compare(summed, entk.assemble(near))
    for form in (stored, entk.KernelOperator(near)):
        assert_rounding(metrics.compare(summed, form)[:3], want[:3], TERMS)


def test_a_repeated_example_is_named_in_every_form(near, tmp_path):
    twice = near.take([*range(10), 4])
    forms = [
        entk.assemble(twice, outputs="sum"),
        entk.assemble(twice, outputs="sum", out=str(tmp_path / "K.npy")),
        entk.KernelOperator(twice, outputs="sum"),
    ]
    for form in forms:
        with pytest.raises(entk.NotPositiveDefiniteError, match="samples 10 and 4 are identical"):
            linalg.cholesky(form)


def test_cross_validation_reads_folds_from_a_stored_kernel(near, stored, rng):
    y = rng.standard_normal(N * OUT)
    kernel = entk.assemble(near)
    scores = [cross_val_score(KernelRidge(ridge=0.1), k, y, cv=3) for k in (stored, kernel)]
    assert_same_solution(scores[0], scores[1], kernel, 0.1)
