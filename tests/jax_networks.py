"""Small JAX networks of every style, with the kind of leaf each parameter must become.

A builder takes a dtype and returns `(f, params, x, kinds)`. Widths are chosen so that structure is
smaller where it is expected. The networks are in `jax_functions`, `jax_joins`, `jax_loops`,
`jax_libraries`.
"""

import jax
import jax.numpy as jnp
import numpy as np

BUILDERS = {}

# Compilation is most of the time of these tests; what is compiled runs for microseconds.
jax.config.update("jax_disable_most_optimizations", True)


def network(build):
    """Register a builder under its name."""
    BUILDERS[build.__name__] = build
    return build


class Numbers:
    """Normal numbers of one dtype, different at every call, the same in every run."""

    def __init__(self, dtype):
        self.dtype, self.rng = dtype, np.random.default_rng(0)

    def __call__(self, *shape, scale=1.0):
        return jnp.asarray(scale * self.rng.standard_normal(shape), self.dtype)


def ids(*shape, below):
    return jnp.asarray(np.random.default_rng(1).integers(0, below, shape), jnp.int32)


def shaken(params, dtype):
    """Return parameters away from their start, where zeros and ones would hide mistakes."""
    new = Numbers(dtype)
    return jax.tree.map(
        lambda leaf: jnp.asarray(np.asarray(leaf) + 0.3 * np.asarray(new(*leaf.shape)), dtype),
        params,
    )
