"""From a network to its predictions: kernels against training the linearised network itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entk
import entk.jax
from bounds import LINEARISED, assert_drift
from entk import dynamics
from entk.regression import KernelRidge

N, M, OUT = 9, 5, 3


def network(params, x):
    hidden = jax.nn.tanh(x @ params["w"] + params["b"])
    return hidden @ params["v"]


@pytest.fixture(scope="module")
def problem():
    """Kernels of the full output, in float64; the network's values; its linearisation."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 5)
        params = {
            "w": jax.random.normal(keys[0], (4, 30), jnp.float64) / 2.0,
            "b": jax.random.normal(keys[1], (30,), jnp.float64),
            "v": jax.random.normal(keys[2], (30, OUT), jnp.float64) / 5.0,
        }
        x = jax.random.normal(keys[3], (N + M, 4), jnp.float64)
        y = np.asarray(jax.random.normal(keys[4], (N, OUT), jnp.float64))
        factors = entk.jax.factors(network, params, np.asarray(x), outputs="full")
        near, far = factors.take(slice(0, N)), factors.take(slice(N, None))
        values, push = jax.linearize(lambda p: network(p, x), params)
        pull = jax.linear_transpose(push, params)
    return entk.assemble(near), entk.assemble(far, near), y, np.asarray(values), push, pull


def descend(problem, rate, steps, ridge=0.0):
    """Train the linearised network by gradient descent on all parameters; return its outputs."""
    _, _, y, values, push, pull = problem
    with jax.enable_x64(True):
        moved = jax.tree.map(jnp.zeros_like, pull(jnp.asarray(values))[0])

        def step(moved, _):
            error = values + push(moved) - jnp.pad(y, ((0, M), (0, 0)))
            (slope,) = pull(error.at[N:].set(0.0))
            return jax.tree.map(lambda a, b: a - rate * (b + ridge * a), moved, slope), None

        moved, _ = jax.lax.scan(step, moved, None, length=steps)
        found = np.asarray(values + push(moved))
    return found[:N], found[N:]


@pytest.mark.parametrize("steps", [1, 20, 300])
def test_descent_is_that_of_the_linearised_network(problem, steps):
    kernel, cross, y, values, *_ = problem
    rate = 0.5 * dynamics.max_learning_rate(kernel)
    got = dynamics.gradient_flow(
        kernel, y, steps, rate, values[:N], cross, values[N:], method="descent"
    )
    for one, other in zip(got, descend(problem, rate, steps), strict=True):
        assert_drift(one, other, steps)


def test_small_steps_of_the_linearised_network_follow_the_flow(problem):
    """Halving the step halves the distance: descent is the Euler method of the flow."""
    kernel, cross, y, values, *_ = problem
    top = dynamics.max_learning_rate(kernel)
    flow = dynamics.gradient_flow(kernel, y, 4.0, top, values[:N], cross, values[N:])[1]
    off = [
        np.abs(descend(problem, top * 4.0 / steps, steps)[1] - flow).max() for steps in (400, 800)
    ]
    assert LINEARISED[0] < off[0] / off[1] < LINEARISED[1]


def test_ridge_regression_is_where_weight_decay_brings_the_linearised_network(problem):
    kernel, cross, y, values, *_ = problem
    ridge = 0.3 * float(np.mean(np.diag(kernel)))
    rate = 1.0 / (2.0 / dynamics.max_learning_rate(kernel) + ridge)
    found = descend(problem, rate, 2_000, ridge)[1]
    model = KernelRidge(ridge=ridge).fit(kernel, y, f0=values[:N])
    assert_drift(model.predict(cross, f0=values[N:]), found, 2_000)
