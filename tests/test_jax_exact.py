"""Kernels of plain functions and loops are those of their explicit Jacobians."""

import jax
import jax.numpy as jnp
import pytest

import entk.jax
import jax_functions  # noqa: F401
import jax_joins  # noqa: F401
import jax_loops  # noqa: F401
from bounds import JACOBIAN
from jax_networks import BUILDERS
from jax_oracle import error, jacobian, summed

# All outputs share everything with their sum but the axis of rows; a few networks of each shape.
FULL = ["mlp", "fused_qkv", "heads", "tied_table", "lookups", "nested_loops", "routed_experts"]
FULL += ["branches_of_a_loop", "chosen_branches", "gates_of_a_cell"]


NAMES = [name for name in BUILDERS if BUILDERS[name].__module__ != "jax_libraries"]


@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_the_explicit_jacobians_in_float64(name):
    with jax.enable_x64(True):
        f, params, x, kinds = BUILDERS[name](jnp.float64)
        rows = jacobian(f, params, x)
        one = entk.jax.factors(f, params, x)
        assert error(one, summed(rows)) < JACOBIAN["float64"]
        if name in FULL:
            every = entk.jax.factors(f, params, x, outputs="full", batch_size=2)
            assert error(every, rows) < JACOBIAN["float64"]
    assert {name: type(one[name]).__name__ for name in kinds} == kinds


@pytest.mark.parametrize("name", ["mlp", "tied_table", "nested_loops"])
def test_kernels_equal_the_explicit_jacobians_in_float32(name):
    f, params, x, _ = BUILDERS[name](jnp.float32)
    factors = entk.jax.factors(f, params, x)
    assert factors.dtype == "float32"
    assert error(factors, summed(jacobian(f, params, x))) < JACOBIAN["float32"]
