"""The examples: their shapes, and how a few or a batch of them are taken out.

On the host this is NumPy's work: operations of JAX outside a compiled function would each be
compiled for every new shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entk.jax._compat import abstract

LOOKED_AT = 3
"""Examples that checks look at."""


def readable(x: Any) -> Any:
    """Return the arrays of `x` as NumPy arrays, without a copy, where they are on the host."""
    return jax.tree.map(_readable, x)


def one_example(x: Any) -> Any:
    """Return the shapes and types of one example."""
    return jax.tree.map(_one, x)


def picks(n: int) -> list[int]:
    """Return the few of n examples that checks look at."""
    return sorted(set(np.linspace(0, n - 1, min(n, LOOKED_AT)).astype(int).tolist()))


def examples_at(x: Any, numbers: Sequence[int], size: int) -> Any:
    """Return some examples, the last repeated to make `size`."""
    return jax.tree.map(lambda leaf: _rows(leaf, numbers, size), x)


def own(leaf: Any, dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array of `x` on the host, copied where its owner could change it."""
    array = np.asarray(leaf)
    return array.astype(dtype, copy=array.flags.writeable)


def _readable(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    plain = leaf.is_fully_addressable and all(d.platform == "cpu" for d in leaf.devices())
    if not plain or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    return np.asarray(leaf)


def _one(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return abstract(leaf.shape[1:], leaf.dtype)
    first = leaf[:1]
    first = jnp.asarray(_plain(first)) if isinstance(first, np.ndarray) else jnp.asarray(first)
    return abstract(first.shape[1:], first.dtype)


def _rows(leaf: Any, numbers: Sequence[int], size: int) -> Any:
    if isinstance(numbers, range):
        rows = leaf[numbers.start : numbers.stop]
    elif isinstance(leaf, np.ndarray):
        rows = leaf[list(numbers)]
    else:
        rows = jnp.concatenate([jnp.asarray(leaf[k : k + 1]) for k in numbers])
    rows = _plain(rows) if isinstance(rows, np.ndarray) else jnp.asarray(rows)
    missing = size - len(rows)
    if not missing:
        return rows
    joined = np if isinstance(rows, np.ndarray) else jnp
    return joined.concatenate([rows, joined.broadcast_to(rows[-1:], (missing, *rows.shape[1:]))])


def _plain(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array that JAX takes: no subclass such as a memory map, in native byte order."""
    return np.asarray(rows, rows.dtype.newbyteorder("="))
