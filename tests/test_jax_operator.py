"""`entk.jax.operator`: products with the kernel, nothing stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entk.jax
import jax_functions  # noqa: F401
from bounds import JACOBIAN
from entk import reference
from entk.jax import _operator
from jax_networks import BUILDERS, Numbers
from jax_oracle import jacobian, kernel, summed

NEW = Numbers(jnp.float32)
PARAMS = {"b": NEW(4), "w": NEW(5, 8), "v": NEW(8, 4)}
X = NEW(7, 5)


def net(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"] + p["b"]


@pytest.mark.parametrize("outputs", ["sum", "full", 1])
def test_operator_products_are_those_of_the_assembled_kernel(outputs):
    truth = reference.assemble(entk.jax.factors(net, PARAMS, X, outputs=outputs))
    op = entk.jax.operator(net, PARAMS, X, outputs=outputs, batch_size=3)
    block = np.random.default_rng(0).standard_normal((len(truth), 2))
    want = truth @ block
    assert op.shape == truth.shape
    for got in (op @ block, op.T @ block, np.stack([op @ v for v in block.T], 1)):
        assert np.abs(got - want).max() < JACOBIAN["float32"] * np.abs(want).max()


def test_the_operator_takes_a_direction_per_example():
    weights = np.asarray(NEW(7, 4))
    rows = np.einsum("no,nop->np", weights, jacobian(net, PARAMS, X))[:, None]
    op = entk.jax.operator(net, PARAMS, X, outputs=weights, batch_size=4)
    truth = kernel(rows)
    assert np.abs(op @ np.eye(7) - truth).max() < JACOBIAN["float32"] * np.abs(truth).max()


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5])
def test_blocks_are_multiplied_a_few_vectors_at_a_time(k, monkeypatch):
    truth = kernel(summed(jacobian(net, PARAMS, X)))
    block = np.random.default_rng(0).standard_normal((7, k))
    op = entk.jax.operator(net, PARAMS, X, batch_size=3)
    sizes = []
    real = _operator.NTKOperator._product
    monkeypatch.setattr(_operator, "_VECTORS", 2)
    monkeypatch.setattr(
        _operator.NTKOperator, "_product", lambda self, v: sizes.append(len(v)) or real(self, v)
    )
    got = op @ block
    assert got.shape == (7, k)
    assert sizes == {0: [], 1: [1], 2: [2], 3: [1, 2], 5: [1, 2, 2]}[k]
    if k:
        assert np.abs(got - truth @ block).max() < JACOBIAN["float32"] * np.abs(truth @ block).max()


def test_vectors_that_would_take_too_much_go_one_by_one(monkeypatch):
    monkeypatch.setattr(_operator, "_WORKING", 1)
    op = entk.jax.operator(net, PARAMS, X)
    assert op._spans(3) == [(0, 1), (1, 2), (2, 3)]


def test_networks_that_know_the_way_back_only_are_multiplied():
    """JAX has no forward mode for `custom_vjp`; its rule is what counts, as for the factors."""

    @jax.custom_vjp
    def squash(x):
        return jnp.tanh(x)

    squash.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (0.5 * g * (1 - jnp.tanh(x) ** 2),))

    def f(p, x):
        return squash(x @ p["w"]) @ p["v"]

    params = {"w": PARAMS["w"], "v": PARAMS["v"]}
    for outputs in ("sum", "full"):
        truth = reference.assemble(entk.jax.factors(f, params, X, outputs=outputs))
        op = entk.jax.operator(f, params, X, outputs=outputs, batch_size=3)
        for block in (np.ones(len(truth)), np.eye(len(truth))):
            error = np.abs(op @ block - truth @ block).max()
            assert error < JACOBIAN["float32"] * np.abs(truth @ block).max()


def test_networks_without_a_batching_rule_are_multiplied_in_turn():
    """`ragged_dot` cannot be mapped by JAX."""
    f, params, x, _ = BUILDERS["routed_experts"](jnp.float32)
    truth = kernel(summed(jacobian(f, params, x)))
    for block in (np.eye(len(truth), dtype=np.float32), np.ones(len(truth), np.float32)):
        got = entk.jax.operator(f, params, x, batch_size=3) @ block
        assert np.abs(got - truth @ block).max() < JACOBIAN["float32"] * np.abs(truth).max()
