"""Kernels without any rounding: integers and fractions, for float64 factors and few entries."""

from fractions import Fraction

import numpy as np

import entk

MANTISSA = 53


def kernel(factors):
    """Return the kernel of `Outer` and `Dense` leaves with R = 1 as an array of fractions."""
    total = np.full((factors.n, factors.n), Fraction(0), object)
    for leaf in factors.values():
        total = total + (_dense(leaf) if isinstance(leaf, entk.Dense) else _outer(leaf))
    return total


def _dense(leaf):
    jac, exponent = _integers(leaf._jac.values()[:, 0])
    return _fractions(jac @ jac.T, 2 * exponent)


def _outer(leaf):
    acts, a = _integers(leaf._acts.values())
    cots, c = _integers(leaf._cots.values()[:, 0])
    n, blocks, t = acts.shape[:3]
    total = np.zeros((n, n), object)
    for g in range(blocks):
        u, v = (x[:, g].reshape(n * t, -1) for x in (acts, cots))
        products = (u @ u.T) * (v @ v.T)
        total = total + products.reshape(n, t, n, t).sum(axis=(1, 3))
    return _fractions(total, 2 * (a + c))


def _integers(values):
    """Return integers and one exponent e with ``values = integers * 2**e``."""
    mantissas, exponents = np.frexp(values)
    lowest = int(exponents.min(initial=0)) - MANTISSA
    whole = [
        int(m * 2.0**MANTISSA) << (int(e) - MANTISSA - lowest)
        for m, e in zip(mantissas.flat, exponents.flat, strict=True)
    ]
    return np.array(whole, object).reshape(values.shape), lowest


def _fractions(integers, exponent):
    unit = Fraction(2) ** exponent
    return np.array([unit * int(k) for k in integers.flat], object).reshape(integers.shape)
