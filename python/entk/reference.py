"""The definitions, in plain NumPy float64. Slow and obvious; everything fast is tested against it.

For a network with O outputs and the Jacobian rows ``J[n, o]`` the kernel is

    Theta[(n, o), (m, q)] = J[n, o] . J[m, q],

and a leaf whose gradient is a sum of outer products ``sum_uses sum_t U_t (x) V_t`` contributes

    sum over pairs of uses, sum_{t, t'} <U_nt, U'_mt'> <V_nrt, V'_mst'>.

`jacobian` forms J, `blocks` the sums of inner products; both give the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from entk._errors import InputError
from entk._factors import Factors, FactorsLike, as_factors, check_cross
from entk._leaves import Dense, Leaf, Lookup, Outer, Tied
from entk._outputs import Outputs, resolve, resolve_pair

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Elementwise: TypeAlias = Callable[[Array], Array]


def assemble(
    factors: FactorsLike, other: FactorsLike | None = None, outputs: object = None
) -> Array:
    """Return the kernel by its definition.

    Parameters
    ----------
    factors, other : Factors, or what `entk.Factors` accepts
        As in `entk.assemble`; `other` gives the columns.
    outputs : optional
        As in `entk.assemble`.

    Returns
    -------
    numpy.ndarray, float64
        ``(N, M)``; ``(N R, M R)`` sample-major for ``"full"``; ``(O, N, M)`` for ``"diagonal"``.

    Notes
    -----
    **Cost**: as many flops as pairs of positions ask for. **Memory**: ``(N R)(M R)`` numbers, and
    ``(N T)(M T)`` twice. **Precision**: float64 sums in NumPy's order.

    References
    ----------
    Jacot, Gabriel, Hongler 2018 (the kernel); Mohamadi, Bae, Sutherland 2023, eq. 2 (``"sum"``).

    Examples
    --------
    >>> import numpy as np, entk
    >>> entk.reference.assemble({"w": entk.Outer(np.array([[1.0, 2.0]]), np.array([[3.0]]))})
    array([[45.]])
    """
    f = as_factors(factors)
    if other is None:
        want = resolve(f, outputs)
        return contract(blocks(f), want, want)
    g = as_factors(other)
    check_cross(f, g)
    return contract(blocks(f, g), *resolve_pair(f, g, outputs))


def contract(theta: Array, left: Outputs, right: Outputs) -> Array:
    """Contract blocks ``(N, R, M, R)`` to the kernel that `left` and `right` ask for."""
    n, r, m, s = theta.shape
    kernel: Array
    if left.mode in ("as-is", "full"):
        kernel = theta.reshape(n * r, m * s)
    elif left.mode == "sum":
        kernel = left.scale * theta.sum(axis=(1, 3))
    elif left.mode == "trace":
        kernel = left.scale * np.einsum("nomo->nm", theta)
    elif left.mode == "diagonal":
        kernel = np.einsum("nomo->onm", theta)
    elif left.mode == "index":
        kernel = theta[:, left.index, :, left.index]
    else:
        assert left.weights is not None
        assert right.weights is not None
        w = np.broadcast_to(left.weights, (n, r))
        v = np.broadcast_to(right.weights, (m, s))
        kernel = np.einsum("no,nomq,mq->nm", w, theta, v)
    return kernel


def blocks(
    factors: Factors, other: Factors | None = None, *, each: Elementwise = np.asarray
) -> Array:
    """Return ``Theta[n, r, m, s]`` as the sum of the leaves' Gram products.

    `each` is applied to every number first; ``np.abs`` gives the S of rounding error bounds.
    """
    columns = factors if other is None else other
    shape = (factors.n, factors.rows, columns.n, columns.rows)
    theta = np.zeros(shape)
    for name in factors:
        theta += leaf_blocks(factors[name], columns[name], each=each)
    return theta


def leaf_blocks(leaf: Leaf, other: Leaf, *, each: Elementwise = np.asarray) -> Array:
    """Return one leaf's ``Theta[n, r, m, s]``."""
    if isinstance(leaf, Dense):
        assert isinstance(other, Dense)
        jac, columns = each(leaf._jac.values()), each(other._jac.values())
        dense: Array = np.tensordot(jac, columns, axes=(2, 2))
        return dense
    pairs = [(a, b) for a in _uses(leaf) for b in _uses(other)]
    return sum((_pair(a, b, each) for a, b in pairs), np.zeros(()))


def jacobian(factors: Factors, *, heights: dict[str, int] | None = None) -> list[Array]:
    """Return the Jacobian, one array ``(N, R, P)`` for each leaf.

    Parameters
    ----------
    factors : Factors
        With few parameters: everything is formed.
    heights : dict, optional
        Number of rows of the tables that are only looked up; by default the ids say it.
    """
    heights = heights or {}
    return [leaf_jacobian(leaf, heights.get(name, 0)) for name, leaf in factors.items()]


def leaf_jacobian(leaf: Leaf, height: int = 0) -> Array:
    """Return one leaf's Jacobian ``(N, R, P)``, P running over the table row by row."""
    if isinstance(leaf, Dense):
        return leaf._jac.values()
    height = max([height, *map(_height, _uses(leaf))])
    jac: Array = sum((_table(use, height) for use in _uses(leaf)), np.zeros(()))
    n, r = jac.shape[:2]
    return jac.reshape(n, r, int(np.prod(jac.shape[2:])))


def _uses(leaf: Leaf) -> tuple[Outer | Lookup, ...]:
    if isinstance(leaf, Tied):
        return leaf._uses
    assert isinstance(leaf, Outer | Lookup)
    return (leaf,)


def _height(use: Outer | Lookup) -> int:
    if isinstance(use, Lookup):
        return int(use._ids.array.max(initial=-1)) + 1
    return use._table[0] or 0


def _table(use: Outer | Lookup, height: int) -> Array:
    """Return the gradient of a use's table, ``(N, R, G, rows, columns)``."""
    if isinstance(use, Outer):
        spec = "ngta,nrgtb->nrgba" if use.transposed else "ngta,nrgtb->nrgab"
        outer: Array = np.einsum(spec, use._acts.values(), use._cots.values())
        return outer
    cots = use._cots.values()
    n, r, _, d = cots.shape
    table = np.zeros((n, r, 1, height, d))
    for i, t in np.argwhere(use._ids.array >= 0):
        table[i, :, 0, use._ids.array[i, t]] += cots[i, :, t]
    return table


def _pair(a: Outer | Lookup, b: Outer | Lookup, each: Elementwise) -> Array:
    """Return ``sum_{g, t, t'} <U, U'> <V, V'>`` for one pair of uses, ``(N, R, M, S)``."""
    rows_a, columns_a = _row_side(a, each), _column_side(a, each)
    rows_b, columns_b = _row_side(b, each), _column_side(b, each)
    r, s = a._rows, b._rows
    result = np.zeros((a._n, r, b._n, s))
    for g in range(columns_a.shape[2]):
        for i in range(r):
            for j in range(s):
                u = _row_gram(_row(rows_a, i, g), _row(rows_b, j, g))
                v = _gram(_row(columns_a, i, g), _row(columns_b, j, g))
                result[:, i, :, j] += (u * v).sum(axis=(1, 3))
    return result


def _row_side(use: Outer | Lookup, each: Elementwise) -> Array | Ids:
    """Return what runs along the rows of the table: ids, or ``(N, R or 1, G, T, d)``."""
    if isinstance(use, Lookup):
        return use._ids.array.astype(np.int64)
    if use.transposed:
        return each(use._cots.values())
    return each(use._acts.values())[:, None]


def _column_side(use: Outer | Lookup, each: Elementwise) -> Array:
    """Return what runs along the columns of the table, ``(N, R or 1, G, T, d)``."""
    if isinstance(use, Lookup):
        return each(use._cots.values())[:, :, None]
    if use.transposed:
        return each(use._acts.values())[:, None]
    return each(use._cots.values())


def _row(side: Array | Ids, row: int, block: int) -> Array | Ids:
    """Return ids as they are, else the part of one output row and block, ``(N, T, d)``."""
    return side if side.ndim == 2 else side[:, row if side.shape[1] > 1 else 0, block]


def _row_gram(a: Array | Ids, b: Array | Ids) -> Array:
    """Return the inner products along the rows of a table, ``(N, T, M, T')``; ids are unit rows."""
    if a.ndim == 2 and b.ndim == 2:
        same: Array = ((a[:, :, None, None] == b) & (a >= 0)[:, :, None, None]).astype(np.float64)
        return same
    if a.ndim == 2:
        return _looked_up(b, a).transpose(2, 3, 0, 1)
    if b.ndim == 2:
        return _looked_up(a, b)
    return _gram(a, b)


def _looked_up(dense: Array | Ids, ids: Array | Ids) -> Array:
    """Return ``dense[n, t, ids[m, t']]``, 0 where the id is -1."""
    if ids.size and int(ids.max()) >= dense.shape[2]:
        raise InputError(
            f"id {int(ids.max())} is outside of the tied table, which has {dense.shape[2]} rows"
        )
    found = np.zeros((*dense.shape[:2], *ids.shape))
    used = ids >= 0
    found[:, :, used] = dense[:, :, ids[used]]
    return found


def _gram(a: Array | Ids, b: Array | Ids) -> Array:
    gram: Array = np.tensordot(a, b, axes=(2, 2))
    return gram
