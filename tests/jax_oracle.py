"""What the JAX front end is compared with: one pull-back per example and output, nothing mapped."""

import jax
import jax.numpy as jnp
import numpy as np

from entk import reference


def jacobian(f, params, x):
    """Return the Jacobian (N, O, P) of all floating-point parameters, in float64."""
    leaves, tree = jax.tree.flatten(params)
    moving = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def outputs(values, example):
        full = list(leaves)
        for k, value in zip(moving, values, strict=True):
            full[k] = value
        out = f(jax.tree.unflatten(tree, full), jax.tree.map(lambda a: a[None], example))
        return jnp.concatenate([part.reshape(-1) for part in jax.tree.leaves(out)])

    def rows(example):
        out, pull = jax.vjp(lambda values: outputs(values, example), [leaves[k] for k in moving])
        return jax.lax.map(lambda row: pull(row)[0], jnp.eye(out.size, dtype=out.dtype))

    pieces = jax.jit(lambda x: jax.lax.map(rows, x))(x)
    return np.concatenate([np.asarray(p, np.float64).reshape(*p.shape[:2], -1) for p in pieces], 2)


def kernel(jacobians):
    """Return the kernel of gradients (N, R, P)."""
    flat = jacobians.reshape(-1, jacobians.shape[-1])
    return flat @ flat.T


def error(factors, jacobians):
    """Return the largest error of the kernel of `factors`, relative to its largest entry."""
    truth = kernel(jacobians)
    return np.abs(reference.assemble(factors) - truth).max() / np.abs(truth).max()


def summed(jacobians):
    """Return the gradients (N, 1, P) of the scaled sum of all outputs."""
    return jacobians.sum(1, keepdims=True) / np.sqrt(jacobians.shape[1])
