"""One network traced, planned and compiled: made once for a function and shapes, kept for reuse."""

from __future__ import annotations

import re
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from entk.jax._inputs import own
from entk.jax._network import Network
from entk.jax._outlets import Outlets, Source, outlets
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

    @property
    def back_only(self) -> bool:
        """Whether the function has a part with a rule for the way back (`custom_vjp`) only."""
        names = {eqn.primitive.name for eqn in _equations(self.jaxpr)}
        return any(name.startswith("custom_vjp_call") for name in names)

    @property
    def calls_back(self) -> bool:
        """Whether the function calls Python when it runs."""
        return any(eqn.primitive.name.endswith("callback") for eqn in _equations(self.jaxpr))


@dataclass(frozen=True)
class Program:
    """What to make of the parameters, and the compiled function that makes it for a batch.

    `run(consts, leaves, x, cotangents)` returns flat arrays with a leading batch axis, each once;
    `outlets` says which of them the arrays of the parts are, `shapes` their shapes for one example,
    `working_bytes` what an example takes on the way. `passed` names the checks this program has
    passed on examples that could have failed them, `kept` what `compiled` made. `over` maps a
    function over examples: `jax.vmap`, or `in_turn` for what cannot be mapped.
    """

    parts: tuple[Part, ...]
    taps: Taps
    run: Callable[..., list[Array]]
    outlets: Outlets
    shapes: list[tuple[jax.ShapeDtypeStruct, ...]]
    working_bytes: int
    over: Callable[..., Any]
    passed: set[str]
    kept: dict[Any, Callable[..., list[Array]]]

    def compiled(self, args: tuple[Any, ...], device: Any) -> Callable[..., list[Array]]:
        """Return `run` compiled for arguments of these shapes and types on a device."""
        key = (device, *(jax.typeof(array) for array in jax.tree.leaves(args)))
        if key not in self.kept:
            self.kept[key] = self.run.lower(*args).compile()  # type: ignore[attr-defined]
        return self.kept[key]

    def grouped(self, arrays: Sequence[Any], x: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return the arrays of each part, from those of `run` and from `x`, of some examples."""
        shapes, parts = jax.tree.flatten(self.shapes)
        shaped = [
            self._taken(source, arrays, x, made)
            for source, made in zip(self.outlets.sources, shapes, strict=True)
        ]
        return jax.tree.unflatten(parts, shaped)  # type: ignore[no-any-return]

    def _taken(self, source: Source, arrays: Sequence[Any], x: Sequence[Any], made: Any) -> Any:
        array = own(x[source.place], made.dtype) if source.of_input else arrays[source.place]
        return array.reshape(len(array), *made.shape)

    @property
    def results(self) -> list[jax.ShapeDtypeStruct]:
        """Shapes and types of what `run` returns, for one example and before it is flattened."""
        shapes = jax.tree.leaves(self.shapes)
        return [shapes[k] for k in self.outlets.computed]

    @property
    def result_bytes(self) -> int:
        """Bytes of the factors of one example."""
        return sum(nbytes(array) for array in self.results)


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

    row = _shape(cotangents)
    args = (*shapes, row)

    def example(over: Callable[..., Any]) -> Callable[..., list[Arrays]]:
        def factors(consts: Any, leaves: Any, x: Any, cotangents: Any) -> list[Arrays]:
            return example_factors(
                traced.jaxpr, consts, leaves, x, cotangents, taps.sites, parts, over
            )

        return factors

    run, found, made, over = _for_batches(example, args, per_example=per_example)
    # What the forward pass keeps, a cotangent of it for every row, and the results twice.
    on_the_way = (1 + rows) * intermediate_bytes(traced.jaxpr, len(network.leaves))
    program = Program(tuple(parts), taps, jax.jit(run), found, made, on_the_way, over, set(), {})
    return replace(program, working_bytes=on_the_way + 2 * program.result_bytes)


def _find_sites(traced: Trace, consts: Any, leaves: Any, x: Any) -> Taps:
    taps = Taps()

    def look(consts: Any, leaves: Any, x: Any) -> Array:
        return run_tapped(traced.jaxpr, consts, leaves, x, taps)

    jax.eval_shape(look, consts, leaves, x)
    taps.spread.clear()  # no array of this run may outlive it
    return taps


def _for_batches(
    example: Callable[[Callable[..., Any]], Callable[..., list[Arrays]]],
    args: Sequence[Any],
    *,
    per_example: bool,
) -> tuple[Callable[..., list[Array]], Outlets, list[Any], Callable[..., Any]]:
    """Return the function of a batch, what its results are, their shapes, and what maps it.

    Refuses what has no reverse derivative. What JAX cannot map is done in turn.
    """
    with full_precision():
        try:
            return *_mapped(example(jax.vmap), args, jax.vmap, per_example=per_example), jax.vmap
        except EntkError:
            raise
        except Exception as error:
            try:
                return *_mapped(example(in_turn), args, in_turn, per_example=per_example), in_turn
            except Exception:
                reason = str(error).strip().split("\n")[0]
                raise ModelError(
                    "JAX cannot differentiate the network in reverse, so it has no per-example"
                    f" gradient: {reason} (a while_loop over values that depend on parameters must"
                    " become a scan or a fori_loop with fixed bounds; a callback needs a"
                    " custom_vjp)"
                ) from error


def _mapped(
    example: Callable[..., list[Arrays]],
    args: Sequence[Any],
    over: Callable[..., Any],
    *,
    per_example: bool,
) -> tuple[Callable[..., list[Array]], Outlets, list[Any]]:
    """Trace the factors of one example, and map what is computed of them over a batch."""
    made: list[Any] = []

    def flat(*args: Any) -> list[Array]:
        arrays = example(*args)
        made[:] = jax.tree.map(_shape, arrays)
        # Axes of length 1 among others have layouts of their own, which XLA would copy to.
        return [jnp.ravel(array) for array in jax.tree.leaves(arrays)]

    jaxpr, constants = opened(jax.make_jaxpr(flat)(*args))
    first, n_x = len(args[0]) + len(args[1]), len(args[2])
    found = outlets(jaxpr, jaxpr.invars[first : first + n_x])

    def one(consts: Any, leaves: Any, x: Any, cotangents: Any) -> list[Array]:
        out = walk(jaxpr, constants, [*consts, *leaves, *x, cotangents], Taps())
        return [out[k] for k in found.computed]

    run = over(one, in_axes=(None, None, 0, 0 if per_example else None))
    few = [_shape_of_many(array, _FEW) for array in args[2]]
    row = _shape_of_many(args[3], _FEW) if per_example else args[3]
    jax.eval_shape(run, *args[:2], few, row)
    return run, found, made


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
