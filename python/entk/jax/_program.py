"""One network traced, planned and compiled: made once for a function and shapes, kept for reuse."""

from __future__ import annotations

import re
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entk._errors import EntkError, ModelError
from entk.jax._compat import (
    COMPILE_QUICKLY,
    Array,
    abstract,
    is_literal,
    machine_eps,
    nested,
    opened,
)
from entk.jax._example import Arrays, example_factors, in_turn, run_tapped
from entk.jax._footprint import intermediate_bytes, nbytes
from entk.jax._network import Network
from entk.jax._plan import Part, dense_parts, plan_parts
from entk.jax._taps import Taps
from entk.jax._trace import walk

_KEPT = 32
_FEW = 2
_cache: OrderedDict[Any, tuple[weakref.ref[Any], Any]] = OrderedDict()


@dataclass(frozen=True)
class Trace:
    """A function as a jaxpr over (leaves, x); closed-over arrays apart, so that they may change."""

    jaxpr: Any
    consts: Sequence[Array]
    text: str

    @property
    def out(self) -> Any:
        """Shape and dtype of the first output."""
        return self.jaxpr.outvars[0].aval

    @property
    def eps(self) -> float:
        """Relative spacing of the coarsest floating-point type the function computes in."""
        dtypes = {atom.aval.dtype for eqn in _equations(self.jaxpr) for atom in eqn.outvars}
        floats = [d for d in dtypes if jnp.issubdtype(d, jnp.inexact)] or [self.out.dtype]
        return max(machine_eps(dtype) for dtype in floats)


@dataclass(frozen=True)
class Program:
    """What to make of the parameters, and the compiled function that makes it for a batch.

    `run(consts, leaves, x, cotangents)` returns the arrays of every part with a leading batch
    axis; `shapes` are those for one example and `working_bytes` what it takes on the way. `passed`
    names the checks this program has passed on examples that could have failed them.
    """

    parts: tuple[Part, ...]
    taps: Taps
    run: Callable[..., list[Arrays]]
    shapes: list[tuple[jax.ShapeDtypeStruct, ...]]
    working_bytes: int
    passed: set[str]

    def grouped(self, arrays: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return a flat list of arrays (..., size) part by part, each in its own shape."""
        shapes, parts = jax.tree.flatten(self.shapes)
        pairs = zip(arrays, shapes, strict=True)
        shaped = [array.reshape(*array.shape[:-1], *made.shape) for array, made in pairs]
        return jax.tree.unflatten(parts, shaped)  # type: ignore[no-any-return]

    @property
    def result_bytes(self) -> int:
        """Bytes of the factors of one example."""
        return sum(nbytes(array) for part in self.shapes for array in part)


def trace(function: Callable[..., Any], *args: Any) -> Trace:
    """Trace a function with full matmul precision: float32 means float32 on every device."""
    with full_precision():
        # A new function object each time: a trace kept by JAX could hold old closed-over values.
        closed = jax.make_jaxpr(lambda *given: function(*given))(*args)
    jaxpr, consts = opened(closed)
    return Trace(jaxpr, consts, _text(jaxpr, consts))


def full_precision() -> Any:
    """Return the context in which matrix products keep the precision of their operands."""
    return jax.default_matmul_precision("highest")


def cached(owner: Any, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """Return what was made for this very function and key before, or make it.

    Functions are held weakly. Equal texts of two functions are not trusted: their custom
    derivative rules may differ.
    """
    owner, member = _identity(owner)
    full = (id(owner), member, *key)
    kept = _cache.get(full)
    if kept is not None and kept[0]() is owner:
        _cache.move_to_end(full)
        return kept[1]
    made = make()
    try:
        reference = weakref.ref(owner, lambda _: _cache.pop(full, None))
    except TypeError:
        return made
    _cache[full] = (reference, made)
    while len(_cache) > _KEPT:
        _cache.popitem(last=False)
    return made


def runner(jaxpr: Any) -> Callable[..., list[Array]]:
    """Return a compiled function of (constants, *arguments) that runs a trace a few times."""

    def run(consts: Sequence[Array], *args: Any) -> list[Array]:
        return walk(jaxpr, consts, jax.tree.leaves(args), Taps())

    return jax.jit(run, compiler_options=COMPILE_QUICKLY)


def make_program(
    network: Network,
    traced: Trace,
    x: Sequence[Any],
    cotangents: Any,
    *,
    per_example: bool,
    structure: bool,
    demoted: frozenset[str],
) -> Program:
    """Find the sites, choose the form of every leaf, and prepare the batch function."""
    shapes = jax.tree.map(_shape, (list(traced.consts), network.leaves, list(x)))
    taps = _find_sites(traced, *shapes)
    rows = cotangents.shape[0] if cotangents.ndim == 2 else 1
    if structure:
        parts = plan_parts(network.names, network.leaves, taps, rows, demoted)
    else:
        parts = dense_parts(network.names, "structure=False")

    def batch_function(over: Callable[..., Any], *, flat: bool) -> Any:
        def example(consts: Any, leaves: Any, x: Any, cotangents: Any) -> list[Arrays]:
            made = example_factors(
                traced.jaxpr, consts, leaves, x, cotangents, taps.sites, parts, over
            )
            # Flat: axes of length 1 among others have layouts of their own, which XLA copies to.
            return jax.tree.map(jnp.ravel, made) if flat else made

        return over(example, in_axes=(None, None, 0, 0 if per_example else None))

    few = [_shape_of_many(array, _FEW) for array in shapes[2]]
    row = _shape(cotangents)
    args = (*shapes[:2], few, _shape_of_many(row, _FEW) if per_example else row)
    over, many = _differentiated(partial(batch_function, flat=False), args)
    made = jax.tree.map(lambda array: abstract(array.shape[1:], array.dtype), many)
    run = jax.jit(batch_function(over, flat=True))
    # What the forward pass keeps, a cotangent of it for every row, and the results twice.
    on_the_way = (1 + rows) * intermediate_bytes(traced.jaxpr, len(network.leaves))
    size = sum(nbytes(array) for part in made for array in part)
    return Program(tuple(parts), taps, run, made, on_the_way + 2 * size, set())


def _find_sites(traced: Trace, consts: Any, leaves: Any, x: Any) -> Taps:
    taps = Taps()

    def look(consts: Any, leaves: Any, x: Any) -> Array:
        return run_tapped(traced.jaxpr, consts, leaves, x, taps)

    jax.eval_shape(look, consts, leaves, x)
    return taps


def _differentiated(
    batch_function: Callable[..., Any], args: Sequence[Any]
) -> tuple[Callable[..., Any], Any]:
    """Return how to map over examples, and the shapes of a few examples' factors.

    Refuses what has no reverse derivative. What JAX cannot map is done in turn.
    """
    try:
        with full_precision():
            try:
                return jax.vmap, jax.eval_shape(batch_function(jax.vmap), *args)
            except NotImplementedError:
                return in_turn, jax.eval_shape(batch_function(in_turn), *args)
    except EntkError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            "JAX cannot differentiate the network in reverse, so it has no per-example gradient:"
            f" {reason} (a while_loop over values that depend on parameters must become a scan or"
            " a fori_loop with fixed bounds; a callback needs a custom_vjp)"
        ) from error


def _identity(function: Any) -> tuple[Any, Any]:
    """Return the object that lives as long as a function does, and which part of it is meant."""
    if isinstance(function, types.MethodType):
        return function.__self__, function.__func__
    return function, None


def _text(jaxpr: Any, consts: Sequence[Any]) -> str:
    """Return what tells two traces of one function apart."""
    shapes = ", ".join(f"{const.dtype}{const.shape}" for const in consts)
    arrays = "".join(np.asarray(array).tobytes().hex() for array in _array_literals(jaxpr))
    return re.sub(r"0x[0-9a-f]+", "", f"{shapes}\n{jaxpr}\n{arrays}")


def _equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for body in nested(value):
                yield from _equations(opened(body)[0])


def _array_literals(jaxpr: Any) -> Iterator[Any]:
    for eqn in _equations(jaxpr):
        for atom in eqn.invars:
            if is_literal(atom) and np.ndim(atom.val):
                yield atom.val


def _shape(array: Any) -> Any:
    return abstract(jnp.shape(array), jnp.result_type(array))


def _shape_of_many(array: Any, n: int) -> Any:
    return abstract((n, *array.shape), array.dtype)
