"""The user's function and parameters, taken apart once: names, arrays, outputs, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entk._errors import DTypeError, InputError, ModelError
from entk.jax._compat import Array

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Network:
    """`f` with its parameters split into differentiated leaves and the rest."""

    f: Function
    names: tuple[str, ...]
    leaves: list[Array]
    rebuild: Callable[[Sequence[Array]], Any]

    def one(self, leaves: Sequence[Array], x: Any) -> Array:
        """Return the outputs (O,) for one example, flattened in `jax.tree.leaves` order."""
        return self.many(leaves, jax.tree.map(lambda a: a[None], x), 1)[0]

    def many(self, leaves: Sequence[Array], x: Any, n: int) -> Array:
        """Return the outputs (n, O) for a batch."""
        outs = jax.tree.leaves(self.f(self.rebuild(leaves), x))
        if not outs:
            raise ModelError("f returns nothing; it must return an array (batch, ...) or several")
        return jnp.concatenate([_rows(out, n) for out in outs], axis=1)


def network(f: Function, params: Any) -> Network:
    """Split `params` and name its leaves."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    values = [value for _, value in paths]
    inexact = [k for k, value in enumerate(values) if _is_inexact(value)]
    if not inexact:
        raise ModelError(
            "params has no floating-point leaf to differentiate; pass the parameters as a pytree of"
            " arrays"
        )
    names = _names([paths[k][0] for k in inexact])
    for name, k in zip(names, inexact, strict=True):
        if jnp.issubdtype(_dtype(values[k]), jnp.complexfloating):
            raise DTypeError(
                f"layer '{name}': complex parameters are not supported (the kernel would need"
                " conjugates); pass real and imaginary parts as two real leaves"
            )

    def rebuild(leaves: Sequence[Array]) -> Any:
        full = list(values)
        for k, leaf in zip(inexact, leaves, strict=True):
            full[k] = leaf
        return jax.tree.unflatten(treedef, full)

    return Network(f, names, [jnp.asarray(values[k]) for k in inexact], rebuild)


def count_examples(x: Any) -> int:
    """Return N, the length of the leading axis that all arrays of `x` share."""
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(x)[0]:
        shape = np.shape(leaf)
        where = f"x{jax.tree_util.keystr(path)}"
        if not shape:
            raise InputError(f"{where} has no axis; every array of x needs a leading batch axis")
        sizes[where] = shape[0]
    if not sizes:
        raise ModelError("no examples: x holds no array")
    (first, n), *others = sizes.items()
    for where, size in others:
        if size != n:
            raise InputError(f"{where} has {size:,} examples, but {first} has {n:,}")
    if n == 0:
        raise ModelError("no examples: the leading axis of x has length 0")
    return n


def _rows(out: Any, n: int) -> Array:
    shape = jnp.shape(out)
    if not jnp.issubdtype(jnp.result_type(out), jnp.floating):
        raise ModelError(
            f"f returns {jnp.result_type(out)}; only floating-point outputs have a real gradient."
            " Return logits, not classes (and real and imaginary parts apart)"
        )
    # A squeeze() takes the axis of an only example, too; what is meant is seen on several.
    squeezed = n == 1 and 1 not in shape
    if not squeezed and (not shape or shape[0] != n):
        raise ModelError(
            f"f returns shape {shape} for a batch of {n}; the first axis must be the batch. If f is"
            " written for one example, pass jax.vmap(f, in_axes=(None, 0))"
        )
    return jnp.reshape(out, (n, -1))


def _names(paths: Sequence[Any]) -> tuple[str, ...]:
    """Name leaves by their path; where two names would be the same, by the unambiguous form."""
    keystr = jax.tree_util.keystr
    simple = [keystr(path, simple=True, separator=".") or "params" for path in paths]
    often = Counter(simple)
    return tuple(
        name if often[name] == 1 else keystr(path) for name, path in zip(simple, paths, strict=True)
    )


def _is_inexact(value: Any) -> bool:
    dtype = _dtype(value)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))


def _dtype(value: Any) -> Any:
    if isinstance(value, float | complex):
        return jnp.result_type(value)
    return getattr(value, "dtype", None) if hasattr(value, "shape") else None
