"""Training of the linearised network against an ODE solver and plain gradient descent."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from bounds import ODE_DRIFT, ODE_RTOL, assert_rounding, assert_same_solution
from entk import dynamics
from entk._errors import InputError, NotPositiveDefiniteError
from kernels import Operator, Stored, gram, smooth


def problem(rng, columns=None, n=12, m=5):
    both = gram(rng, n + m)
    shape = (n,) if columns is None else (n, columns)
    return both[:n, :n], both[n:, :n], rng.standard_normal(shape)


@pytest.mark.parametrize("columns", [None, 2])
def test_the_flow_is_the_solution_of_its_differential_equation(rng, columns):
    k, k_star, y = problem(rng, columns)
    f0, f0_star = rng.standard_normal(y.shape), rng.standard_normal((5, *y.shape[1:]))
    rate, times = 0.7, np.array([0.1, 1.0, 4.0])

    def slope(_, state):
        f = state[: y.size].reshape(y.shape)
        return -rate * np.concatenate([(k @ (f - y)).ravel(), (k_star @ (f - y)).ravel()])

    start = np.concatenate([f0.ravel(), f0_star.ravel()])
    run = solve_ivp(slope, (0, 4), start, t_eval=times, rtol=ODE_RTOL, atol=ODE_RTOL)
    train, test = dynamics.gradient_flow(k, y, times, rate, f0, k_star, f0_star)
    limit = ODE_DRIFT * ODE_RTOL
    np.testing.assert_allclose(train.reshape(3, -1), run.y[: y.size].T, atol=limit, rtol=0)
    np.testing.assert_allclose(test.reshape(3, -1), run.y[y.size :].T, atol=limit, rtol=0)


def test_descent_is_that_many_steps_of_gradient_descent(rng):
    k, k_star, y = problem(rng, 2)
    f, f_star = np.zeros_like(y), np.zeros((5, 2))
    for _ in range(7):
        f, f_star = f - 0.3 * k @ (f - y), f_star - 0.3 * k_star @ (f - y)
    train, test = dynamics.gradient_flow(k, y, 7, 0.3, K_star=k_star, method="descent")
    assert_rounding(train, f, 12 * 7)
    assert_rounding(test, f_star, 12 * 7)


@pytest.mark.parametrize("method", ["flow", "descent"])
def test_training_without_end_interpolates_and_predicts_by_ridgeless_regression(rng, method):
    k, k_star, y = problem(rng)
    train, test = dynamics.gradient_flow(k, y, np.inf, 0.1, K_star=k_star, method=method)
    assert_rounding(train, y, 12)
    assert_same_solution(test, k_star @ np.linalg.solve(k, y), k)


def test_time_zero_is_the_start(rng):
    k, k_star, y = problem(rng)
    train, test = dynamics.gradient_flow(k, y, 0.0, 1.0, 0.5, k_star, 0.25)
    assert_rounding(train, np.full(12, 0.5), 12)
    assert_rounding(test, np.full(5, 0.25), 1)


def test_results_have_the_shape_of_the_targets_with_times_in_front(rng):
    k, _, y = problem(rng, 3)
    assert dynamics.gradient_flow(k, y, 1.0, 1.0).shape == (12, 3)
    assert dynamics.gradient_flow(k, y, [1.0], 1.0).shape == (1, 12, 3)
    assert dynamics.gradient_flow(k, y[:, 0], [1.0, np.inf], 1.0).shape == (2, 12)


def test_a_block_kernel_of_independent_outputs_trains_them_apart(rng):
    k, k_star, y = problem(rng, 3)
    block, block_star = np.kron(k, np.eye(3)), np.kron(k_star, np.eye(3))
    got = dynamics.gradient_flow(block, y, [0.5, 2.0], 1.0, K_star=block_star)
    want = dynamics.gradient_flow(k, y, [0.5, 2.0], 1.0, K_star=k_star)
    for one, other in zip(got, want, strict=True):
        assert_rounding(one, other, 36)


def test_modes_below_the_noise_floor_do_not_train(rng):
    k, y = smooth(40), rng.standard_normal(40)
    f = dynamics.gradient_flow(k, y, np.inf, 1.0)
    assert np.isfinite(f).all()
    assert np.abs(f).max() < 10 * np.abs(y).max()
    split = dynamics.modes(k, y, 1.0)
    assert np.isinf(split.times[split.values <= split.floor]).all()
    assert np.isinf(split.times).any()


def test_modes_hold_what_the_flow_does(rng):
    k, _, y = problem(rng)
    split = dynamics.modes(k, y, 0.5)
    f = y + split.vectors @ (np.exp(-2.0 / split.times)[:, None] * split.start)[:, 0]
    assert_rounding(f, dynamics.gradient_flow(k, y, 2.0, 0.5), 12)


@pytest.mark.parametrize("wrap", [Stored, Operator])
def test_stored_kernels_and_operators_train_alike(rng, wrap):
    k, k_star, y = problem(rng)
    got = dynamics.gradient_flow(wrap(k), y, 1.0, 1.0, K_star=Stored(k_star))
    for one, other in zip(got, dynamics.gradient_flow(k, y, 1.0, 1.0, K_star=k_star), strict=True):
        assert_rounding(one, other, 12)


def test_the_largest_learning_rate_is_where_descent_stops_converging(rng):
    k, _, y = problem(rng)
    limit = dynamics.max_learning_rate(k)
    assert_rounding(limit, 2 / np.linalg.eigvalsh(k)[-1], 12)
    with pytest.raises(InputError, match=r"diverges: .* 2 / lambda_max"):
        dynamics.gradient_flow(k, y, np.inf, 1.01 * limit, method="descent")
    dynamics.gradient_flow(k, y, np.inf, 0.99 * limit, method="descent")


def test_a_start_that_is_not_zero_needs_its_test_points(rng):
    k, k_star, y = problem(rng)
    with pytest.raises(InputError, match="f0_star"):
        dynamics.gradient_flow(k, y, 1.0, 1.0, f0=1.0, K_star=k_star)


@pytest.mark.parametrize("t", [-1.0, np.nan, [[1.0]]])
def test_times_that_mean_nothing_are_refused(t):
    with pytest.raises(InputError, match="t must be"):
        dynamics.gradient_flow(np.eye(2), [1.0, 2.0], t, 1.0)


def test_a_kernel_with_a_negative_mode_is_refused():
    with pytest.raises(NotPositiveDefiniteError, match="grow without bound"):
        dynamics.gradient_flow(np.diag([1.0, -1.0]), [1.0, 2.0], 1.0, 1.0)
