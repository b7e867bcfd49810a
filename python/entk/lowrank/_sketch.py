"""Random features of a kernel, straight from its factors: no gradient is ever written out.

A leaf's gradient is ``sum_t u_t (x) v_t``. Its inner product with a random rank-one table
``g (x) h`` of independent signs is ``sum_t (u_t . g)(v_t . h)``: two thin products and a sum. The
features of a leaf are unbiased, those of different leaves independent, so their sum is unbiased
for the whole kernel. The fourth moment of such a form is at most 9 times its squared second, hence
``Var (F F^T)_ij <= (9 K_ii K_jj - K_ij^2) / dim``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from entk._assemble import diagonal
from entk._dense import Float
from entk._errors import InputError
from entk._factors import Factors
from entk._leaves import Dense, Lookup, Outer, Tied
from entk.linalg import _limits
from entk.lowrank._result import Sketch

FEATURES = 256  # features made at a time: part of what a seed means
PARAMETERS = 1 << 16  # rows of random signs made at a time
EXAMPLES_BYTES = 1 << 26


def sketch(factors: Factors, dim: int, seed: int = 0) -> Sketch:
    r"""Draw random features whose inner products are the kernel's entries on average.

    Gradients are projected on `dim` random rank-one directions, leaf by leaf, from their outer
    factors; a Johnson-Lindenstrauss projection [1]_ in the product form of [2]_.

    Parameters
    ----------
    factors : `entk.Factors`
        Of N examples with R output rows; to sketch another kernel, `contract` them first.
    dim : int
        Number of features.
    seed : int
        Of the directions. They depend on seed, leaf name and sizes only, so that sketches of other
        examples (test points, later batches) belong together.

    Returns
    -------
    Sketch
        `.factor` of shape (N*R, dim), sample-major, `.entry_error` and `.diagonal_error`.

    Raises
    ------
    InputError
        If `dim` < 1.
    MemoryLimitError
        If the features do not fit.

    Notes
    -----
    **Cost.** ``2 N T dim (d_in + R d_out)`` flops a leaf. **Memory.** ``8 N R dim`` bytes and some
    tens of MiB. **Precision.** Entrywise standard deviation at most
    ``sqrt((9 K_ii K_jj - K_ij^2) / dim)``, typically ``sqrt(K_ii K_jj / dim)`` off the diagonal:
    10,240 features give about 1 %. For exact entries assemble; for a low rank with a bound use
    `rpcholesky`.

    References
    ----------
    .. [1] W. B. Johnson, J. Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space",
       1984.
    .. [2] T. D. Ahle et al., "Oblivious Sketching of High-Degree Polynomial Kernels", SODA 2020.

    Examples
    --------
    >>> import numpy as np, entk
    >>> from entk.lowrank import sketch
    >>> F = entk.Factors([(np.ones((3, 5)), np.ones((3, 2)))])
    >>> low = sketch(F, 64)
    >>> low.factor.shape, round(low.entry_error, 3)
    ((3, 64), 0.375)
    """
    if isinstance(dim, bool) or int(dim) != dim or dim < 1:
        raise InputError(f"dim must be at least 1 (got {dim})")
    rows = factors.n * factors.rows
    _limits.require(8 * rows * dim, None, f"{dim} features", "lower dim")
    out = np.zeros((factors.n, factors.rows, int(dim)))
    for name in factors:
        for start in range(0, dim, FEATURES):
            _add_leaf(factors, name, seed, out[:, :, start : start + FEATURES], start)
    out /= np.sqrt(dim)
    return _result(factors, out.reshape(rows, dim), int(dim), seed)


def _result(factors: Factors, features: Float, dim: int, seed: int) -> Sketch:
    exact = np.asarray(diagonal(factors), dtype=np.float64).reshape(-1)
    got = np.einsum("nk,nk->n", features, features)
    used = exact > 0
    off = (got[used] - exact[used]) / exact[used]
    error = float(np.sqrt(np.mean(np.square(off)))) if used.any() else 0.0
    empty = np.empty(0, dtype=np.intp)
    residual, trace = float(np.sum(exact - got)), float(np.sum(exact))
    return Sketch(features, empty, residual, trace, None, dim, seed, error)


def _add_leaf(factors: Factors, name: str, seed: int, out: Float, start: int) -> None:
    """Add the features of one leaf, for one block of features, over batches of examples."""
    signs = _Signs(name, seed, start, out.shape[2])
    for batch in _batches(factors, name, out.shape[2]):
        leaf = factors.take(batch)[name]
        if isinstance(leaf, Dense):
            out[batch] += signs.project(leaf._jac.values(), "dense")
            continue
        uses = leaf._uses if isinstance(leaf, Tied) else (leaf,)
        for use in uses:
            assert isinstance(use, Outer | Lookup)
            out[batch] += _use(use, signs)


def _batches(factors: Factors, name: str, width: int) -> Iterator[slice]:
    """Cut the examples so that one leaf's projections stay small."""
    leaf = factors[name]
    numbers = sum(int(np.prod(p.host.shape[1:-1])) * (width + p.host.shape[-1])
                  for p in leaf._parts)  # fmt: skip
    step = max(1, EXAMPLES_BYTES // (8 * max(1, numbers)))
    return (slice(i, min(i + step, factors.n)) for i in range(0, factors.n, step))


def _use(use: Outer | Lookup, signs: _Signs) -> Float:
    """Return one use's features, ``(n, R, width)``."""
    if isinstance(use, Lookup):
        ids, cots = use._ids.array.astype(np.int64), use._cots.values()
        left = signs.rows(ids, "rows 0")[:, None]
        return np.asarray(np.sum(left * signs.project(cots, "columns 0"), axis=2))
    acts, cots = use._acts.values(), use._cots.values()
    a, c = ("columns", "rows") if use.transposed else ("rows", "columns")
    total = np.zeros((cots.shape[0], cots.shape[1], signs.width))
    for g in range(acts.shape[1]):
        left = signs.project(acts[:, g], f"{a} {g}")
        right = signs.project(cots[:, :, g], f"{c} {g}")
        total += np.sum(left[:, None] * right, axis=2)
    return total


class _Signs:
    """Random signs for one leaf and one block of features, made again whenever they are needed."""

    def __init__(self, name: str, seed: int, start: int, width: int) -> None:
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        self._key = [seed, int.from_bytes(digest, "little"), start]
        self.width = width

    def _stream(self, side: str, rows: int) -> Iterator[tuple[int, Float]]:
        """Yield blocks of rows of signs; the first rows are the same for any number of them."""
        key = int.from_bytes(hashlib.blake2b(side.encode(), digest_size=8).digest(), "little")
        rng = np.random.default_rng([*self._key, key])
        for first in range(0, rows, PARAMETERS):
            count = min(PARAMETERS, rows - first)
            bits = rng.integers(0, 2, size=(count, FEATURES), dtype=np.uint8)
            yield first, bits[:, : self.width].astype(np.float64) * 2.0 - 1.0

    def project(self, values: Float, side: str) -> Float:
        """Return ``values @ signs`` over the last axis."""
        out = np.zeros((*values.shape[:-1], self.width))
        for first, signs in self._stream(side, values.shape[-1]):
            out += values[..., first : first + len(signs)] @ signs
        return out

    def rows(self, ids: Any, side: str) -> Float:
        """Return the rows of signs that `ids` name, zeros for -1."""
        out = np.zeros((*ids.shape, self.width))
        for first, signs in self._stream(side, int(ids.max(initial=-1)) + 1):
            here = (ids >= first) & (ids < first + len(signs))
            out[here] = signs[ids[here] - first]
        return out
