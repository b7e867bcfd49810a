"""Kernels of networks of Flax, Equinox and Haiku are those of their explicit Jacobians."""

import jax
import jax.numpy as jnp
import pytest

import entk.jax
import jax_libraries  # noqa: F401
from bounds import JACOBIAN
from jax_networks import BUILDERS
from jax_oracle import error, jacobian, summed

NAMES = [name for name in BUILDERS if BUILDERS[name].__module__ == "jax_libraries"]


@pytest.mark.parametrize("name", NAMES)
def test_kernels_equal_the_explicit_jacobians_in_float64(name):
    with jax.enable_x64(True):
        f, params, x, kinds = BUILDERS[name](jnp.float64)
        factors = entk.jax.factors(f, params, x)
        assert error(factors, summed(jacobian(f, params, x))) < JACOBIAN["float64"]
    assert {name: type(factors[name]).__name__ for name in kinds} == kinds


@pytest.mark.parametrize("name", ["linen_lstm", "linen_cnn"])
def test_kernels_equal_the_explicit_jacobians_in_float32(name):
    f, params, x, _ = BUILDERS[name](jnp.float32)
    factors = entk.jax.factors(f, params, x)
    assert factors.dtype == "float32"
    assert error(factors, summed(jacobian(f, params, x))) < JACOBIAN["float32"]
