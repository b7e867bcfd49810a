"""Regression against scikit-learn, refitting without each sample, and the definitions."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge as Theirs
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KernelCenterer
from sklearn.utils.estimator_checks import check_estimator

import entk
from bounds import assert_rounding, assert_same_solution
from entk.regression import KernelClassifier, KernelRidge, gp_posterior, influence
from kernels import Operator, Stored, gram, smooth

N, M = 24, 7


def problem(rng, columns=None, blocks=1):
    both = gram(rng, (N + M) * blocks)
    cut = N * blocks
    y = rng.standard_normal(N if columns is None else (N, columns))
    return both[:cut, :cut], both[cut:, :cut], y


@pytest.mark.parametrize("solver", ["auto", "cholesky", "eigen", "cg"])
@pytest.mark.parametrize("columns", [None, 3])
def test_predictions_are_those_of_scikit_learn(rng, solver, columns):
    k, k_star, y = problem(rng, columns)
    ours = KernelRidge(ridge=0.3, solver=solver, tol=1e-13).fit(k, y)
    theirs = Theirs(alpha=0.3, kernel="precomputed").fit(k, y)
    assert_same_solution(ours.predict(k_star), theirs.predict(k_star), k, 0.3)
    assert_same_solution(ours.dual_coef_, theirs.dual_coef_, k, 0.3)
    assert ours.score(k_star, np.zeros_like(y[:M])) <= 1.0


@pytest.mark.parametrize("wrap", [Stored, Operator, np.asfortranarray])
def test_every_kind_of_kernel_fits_alike(rng, wrap):
    k, k_star, y = problem(rng)
    ours = KernelRidge(ridge=0.3).fit(wrap(k), y).predict(Stored(k_star))
    assert_same_solution(ours, KernelRidge(ridge=0.3).fit(k, y).predict(k_star), k, 0.3)


def test_several_ridges_are_stacked_on_a_first_axis(rng):
    k, k_star, y = problem(rng, 2)
    ridges = [0.1, 1.0, 10.0]
    many = KernelRidge(ridge=ridges).fit(k, y)
    assert many.predict(k_star).shape == (3, M, 2)
    assert many.loo_predictions_.shape == (3, N, 2)
    assert many.gcv_.shape == (3,)
    for i, ridge in enumerate(ridges):
        one = KernelRidge(ridge=ridge).fit(k, y)
        assert_same_solution(many.predict(k_star)[i], one.predict(k_star), k, ridge)
        assert_same_solution(many.loo_errors_[i], one.loo_errors_, k, ridge)
        assert_rounding(many.gcv_[i], one.gcv_, N * N)


@pytest.mark.parametrize("columns", [None, 2])
@pytest.mark.parametrize("ridge", [0.5, [0.5, 2.0]])
def test_leave_one_out_is_what_refitting_gives(rng, columns, ridge):
    k, _, y = problem(rng, columns)
    f0 = rng.standard_normal(y.shape)
    model = KernelRidge(ridge=ridge).fit(k, y, f0=f0)
    for i in range(0, N, 5):
        rest = np.delete(np.arange(N), i)
        refit = KernelRidge(ridge=ridge).fit(k[np.ix_(rest, rest)], y[rest], f0=f0[rest])
        alone = refit.predict(k[[i]][:, rest], f0=f0[[i]])
        got = np.take(model.loo_predictions_, [i], axis=np.ndim(ridge))
        assert_same_solution(got, alone, k, 0.5)
    np.testing.assert_array_equal(model.loo_errors_ + model.loo_predictions_,
                                  y - model.loo_errors_ + model.loo_errors_)  # fmt: skip


def test_leave_one_out_of_a_block_kernel_leaves_out_the_sample(rng):
    k, k_star, y = problem(rng, 3, blocks=3)
    model = KernelRidge(ridge=0.5).fit(k, y)
    assert model.dual_coef_.shape == (N, 3)
    assert model.predict(k_star).shape == (M, 3)
    direct = np.linalg.solve(k + 0.5 * np.eye(3 * N), y.ravel())
    assert_same_solution(model.predict(k_star), (k_star @ direct).reshape(M, 3), k, 0.5)
    for i in (0, 11, N - 1):
        here = np.arange(3 * i, 3 * i + 3)
        rest = np.delete(np.arange(3 * N), here)
        refit = KernelRidge(ridge=0.5).fit(k[np.ix_(rest, rest)], np.delete(y, i, axis=0))
        assert_same_solution(model.loo_predictions_[[i]], refit.predict(k[here][:, rest]), k, 0.5)


def test_gcv_follows_its_definition(rng):
    k, _, y = problem(rng)
    hat = k @ np.linalg.inv(k + 0.7 * np.eye(N))
    want = N * np.sum((y - hat @ y) ** 2) / np.trace(np.eye(N) - hat) ** 2
    assert_rounding(KernelRidge(ridge=0.7).fit(k, y).gcv_, want, N * N)


def test_conjugate_gradients_know_no_leave_one_out(rng):
    k, _, y = problem(rng)
    with pytest.raises(entk.InputError, match="leave-one-out and GCV need a factor"):
        _ = KernelRidge(ridge=1.0, solver="cg").fit(k, y).loo_errors_


def test_cross_validation_cuts_both_axes_of_the_kernel(rng):
    k, _, y = problem(rng)
    folds = KFold(N)
    got = cross_val_predict(KernelRidge(ridge=0.5), k, y, cv=folds)
    assert_same_solution(got, KernelRidge(ridge=0.5).fit(k, y).loo_predictions_, k, 0.5)
    search = GridSearchCV(KernelRidge(), {"ridge": [0.1, 1.0]}, cv=3).fit(k, y)
    assert search.best_params_["ridge"] in (0.1, 1.0)


def test_estimators_work_in_pipelines_and_clones(rng):
    k, k_star, y = problem(rng)
    pipe = make_pipeline(KernelCenterer(), KernelRidge(ridge=0.5)).fit(k, y)
    assert pipe.predict(k_star).shape == (M,)
    assert clone(KernelRidge(ridge=[1.0, 2.0])).get_params()["ridge"] == [1.0, 2.0]


class RealTargets(KernelRidge):
    """The checks below fit class labels as numbers, which entk refuses: make them numbers."""

    def fit(self, X, y):
        if y is not None and np.asarray(y).dtype.kind in "iu":
            y = np.asarray(y, dtype=float)
        return super().fit(X, y)


INDEFINITE = "the check breaks the kernel: it is not positive definite any more"


@pytest.mark.parametrize("estimator", [RealTargets(), KernelClassifier()])
def test_the_estimators_pass_the_checks_of_scikit_learn(estimator):
    expected = dict.fromkeys(
        ["check_positive_only_tag_during_fit", "check_estimators_dtypes"], INDEFINITE
    )
    check_estimator(estimator, expected_failed_checks=expected, on_skip=None)


def labelled(rng, classes):
    centres = 3 * rng.standard_normal((classes, 6))
    code = np.arange(N + M) % classes
    x = centres[code] + rng.standard_normal((N + M, 6))
    names = np.array(["ant", "bee", "cat", "dog"])[code]
    k = x @ x.T + 1.0
    return k[:N, :N], k[N:, :N], names[:N], names[N:]


@pytest.mark.parametrize("classes", [2, 4])
def test_the_classifier_separates_classes_and_leaves_one_out(rng, classes):
    k, k_star, train, test = labelled(rng, classes)
    model = KernelClassifier(ridge=0.5).fit(k, train)
    assert model.classes_.tolist() == sorted(set(train))
    assert model.score(k_star, test) > 1.5 / classes
    assert model.decision_function(k_star).shape == ((M,) if classes == 2 else (M, classes))
    right = []
    for i in range(N):
        rest = np.delete(np.arange(N), i)
        refit = KernelClassifier(ridge=0.5).fit(k[np.ix_(rest, rest)], train[rest])
        right.append(refit.predict(k[[i]][:, rest])[0] == train[i])
    assert model.loo_accuracy_ == np.mean(right)


def test_the_classifier_takes_block_kernels_and_several_ridges(rng):
    k, k_star, train, _ = labelled(rng, 2)
    plain = KernelClassifier(ridge=[0.5, 5.0]).fit(k, train)
    block = KernelClassifier(ridge=[0.5, 5.0]).fit(np.kron(k, np.eye(2)), train)
    assert plain.predict(k_star).shape == (2, M)
    assert (plain.predict(k_star) == block.predict(np.kron(k_star, np.eye(2)))).all()


def test_the_posterior_is_that_of_scikit_learn(rng):
    x, x_star = rng.standard_normal((N, 2)), rng.standard_normal((M, 2))
    y, rbf = rng.standard_normal(N), RBF(0.7)
    theirs = GaussianProcessRegressor(rbf, alpha=0.2, optimizer=None).fit(x, y)
    mean, covariance = theirs.predict(x_star, return_cov=True)
    k, cross = rbf(x), rbf(x_star, x)
    for prior in (np.ones(M), rbf(x_star)):
        got = gp_posterior(k, cross, prior, y, noise=0.2)
        assert_same_solution(got.mean, mean, k, 0.2)
        assert_same_solution(got.variance, np.diag(covariance), k, 0.2)
    assert_same_solution(got.covariance, covariance, k, 0.2)
    assert gp_posterior(k, cross, np.ones(M), y, 0.2).covariance is None


def test_the_posterior_mean_is_ridge_regression_with_a_prior_mean(rng):
    k, k_star, y = problem(rng, 2)
    f0, f0_star = rng.standard_normal((N, 2)), rng.standard_normal((M, 2))
    prior = np.full(M, 100.0)
    got = gp_posterior(Stored(k), Stored(k_star), prior, y, 0.4, f0=f0, f0_star=f0_star)
    want = KernelRidge(ridge=0.4).fit(k, y, f0=f0).predict(k_star, f0=f0_star)
    assert_same_solution(got.mean, want, k, 0.4)


def test_the_posterior_of_a_block_kernel_has_a_variance_an_output(rng):
    k, k_star, y = problem(rng, 3)
    block = gp_posterior(np.kron(k, np.eye(3)), np.kron(k_star, np.eye(3)),
                         np.full(3 * M, 50.0), y, 0.4)  # fmt: skip
    plain = gp_posterior(k, k_star, np.full(M, 50.0), y, 0.4)
    assert_same_solution(block.mean, plain.mean, k, 0.4)
    assert_same_solution(block.variance, np.repeat(plain.variance[:, None], 3, axis=1), k, 0.4)


def test_a_prior_variance_of_another_kernel_is_found_out(rng):
    k, k_star, y = problem(rng)
    with pytest.raises(entk.InputError, match=r"posterior variance .* not of one kernel"):
        gp_posterior(k, 10 * k_star, np.ones(M), y, 0.1)


@pytest.mark.parametrize("columns", [None, 2])
def test_influence_is_what_leaving_a_sample_out_changes(rng, columns):
    k, k_star, y = problem(rng, columns)
    got = influence(k, k_star, y, 0.5)
    assert got.shape == (M, *y.shape)
    full = KernelRidge(ridge=0.5).fit(k, y).predict(k_star)
    for i in (0, 9, N - 1):
        rest = np.delete(np.arange(N), i)
        refit = KernelRidge(ridge=0.5).fit(k[np.ix_(rest, rest)], y[rest])
        assert_same_solution(got[:, i], full - refit.predict(k_star[:, rest]), k, 0.5)


def test_influence_in_a_block_kernel_leaves_out_all_outputs(rng):
    k, k_star, y = problem(rng, 3, blocks=3)
    got = influence(k, k_star, y, 0.5)
    assert got.shape == (M, N, 3)
    rest = np.arange(3, 3 * N)
    full = KernelRidge(ridge=0.5).fit(k, y).predict(k_star)
    refit = KernelRidge(ridge=0.5).fit(k[np.ix_(rest, rest)], y[1:])
    assert_same_solution(got[:, 0], full - refit.predict(k_star[:, rest]), k, 0.5)


def test_a_singular_kernel_needs_a_ridge_with_either_solver():
    k, y = smooth(50), np.ones(50)
    for solver in ("cholesky", "eigen"):
        with pytest.raises(entk.NotPositiveDefiniteError, match="noise floor"):
            KernelRidge(ridge=0.0, solver=solver).fit(k, y)


def test_an_estimator_that_is_not_fitted_says_so():
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        _ = KernelRidge().loo_predictions_
