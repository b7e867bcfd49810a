"""The one place that knows JAX's internals and how 0.10 and 0.12 differ in them.

| what | 0.10 | 0.11 and later |
|---|---|---|
| a jaxpr with its constants | `ClosedJaxpr`; remat holds an open one | `Jaxpr` is closed |
| operands of `scan` | `num_consts`, `num_carry` | `ft_in`, a tree of three groups |
| iterating over an array | `slice` and `squeeze` | `unstack` |

Everything here is `jax.extend.core` or an equation's own attributes; no module of `jax._src`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as core
import jax.numpy as jnp

Array: TypeAlias = Any
"""A JAX array or tracer."""

_primitives = core.primitives

INLINE = {
    _primitives.jit_p: "jaxpr",
    _primitives.remat_p: "jaxpr",
    _primitives.closed_call_p: "call_jaxpr",
    _primitives.call_p: "call_jaxpr",
}
"""Calls that only wrap a body. Not custom_jvp and custom_vjp, whose rules inlining would lose."""


COMPILE_QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
"""What `jax_disable_most_optimizations` sets, for functions that run on a few examples only."""


def opened(body: Any) -> tuple[Any, Sequence[Array]]:
    """Return a jaxpr, closed or open, as a jaxpr and its constants."""
    return getattr(body, "jaxpr", body), getattr(body, "consts", ())


def is_literal(atom: Any) -> bool:
    """Tell a constant written into an equation from a variable."""
    return isinstance(atom, core.Literal)


def bind(eqn: Any, operands: Sequence[Array]) -> list[Array]:
    """Run one equation on new operands, keeping its derivative rules."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *operands, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def scan_groups(eqn: Any) -> tuple[int, int]:
    """Return how many constants and how many carries a scan has."""
    if "ft_in" in eqn.params:
        consts, carry, _ = eqn.params["ft_in"].unpack()
        return len(consts), len(carry)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def nested(value: Any) -> list[Any]:
    """Return the jaxprs among an equation's parameter value."""
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        return [value]
    if isinstance(value, list | tuple):
        return [body for item in value for body in nested(item)]
    return []


def abstract(shape: Sequence[int], dtype: Any) -> Any:
    """Return a shape and dtype without values, for `jax.eval_shape` and `jax.make_jaxpr`."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype)  # type: ignore[no-untyped-call]


def machine_eps(dtype: Any) -> float:
    """Return the relative spacing of a floating-point type, bfloat16 included."""
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]
