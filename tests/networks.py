"""Closed forms of the kernels of a two-layer network at initialisation, in NumPy alone."""

import numpy as np

import entk


def two_layer(seed, width, outputs, samples, inputs=32, shared=0.0):
    """Return the full kernel, the summed kernel and rho of ``f = V relu(W x) / sqrt(width)``.

    The kernel is ``delta_op phi.phi'/n + (x.x')/n sum_k c_k V_ok V_pk`` with
    ``c_k = relu'_k relu'_k'``; rho is that of the first sample with itself. `shared` adds a
    direction that all rows of the head have in common.
    """
    rng = np.random.default_rng([seed, width, outputs])
    x = rng.standard_normal((samples, inputs)) / np.sqrt(inputs)
    w = rng.standard_normal((width, inputs))
    v = rng.standard_normal((outputs, width)) + shared * rng.standard_normal(width)
    hidden = x @ w.T
    phi, slope = np.maximum(hidden, 0.0), (hidden > 0).astype(float)
    inner, head = x @ x.T, phi @ phi.T / width
    sides = (slope[:, None] * v).reshape(-1, width)
    gram = (sides @ sides.T / width).reshape(samples, outputs, samples, outputs)
    hidden_part = gram * inner[:, None, :, None]
    theta = hidden_part + head[:, None, :, None] * np.eye(outputs)[:, None]
    summed = theta.sum(axis=(1, 3)) / outputs
    return theta.reshape(samples * outputs, -1), summed, _rho(inner, head, slope, width)


def _rho(inner, head, slope, width):
    c = slope[0] * slope[0]
    diagonal = head[0, 0] + inner[0, 0] * c.sum() / width
    return inner[0, 0] * np.sqrt(np.sum(c**2)) / width / diagonal


def two_layer_factors(seed, width, outputs, samples, inputs=32, shared=0.0):
    """Return the factors of the same network, all outputs kept."""
    rng = np.random.default_rng([seed, width, outputs])
    x = rng.standard_normal((samples, inputs)) / np.sqrt(inputs)
    w = rng.standard_normal((width, inputs))
    v = rng.standard_normal((outputs, width)) + shared * rng.standard_normal(width)
    hidden = x @ w.T
    phi, slope = np.maximum(hidden, 0.0), (hidden > 0).astype(float)
    root = np.sqrt(width)
    head = entk.Outer(phi / root, np.tile(np.eye(outputs), (samples, 1, 1)))
    return entk.Factors({"V": head, "W": entk.Outer(x, slope[:, None] * v / root)})
