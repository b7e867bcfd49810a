"""A network traced and compiled, with what to take of it: the same for all batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from entk._errors import ModelError
from entk.jax._compat import Array, abstract
from entk.jax._directions import Directions, directions
from entk.jax._independence import at_least_two, check_independence
from entk.jax._inputs import LOOKED_AT, examples_at, one_example, picks
from entk.jax._network import Function, Network, network
from entk.jax._program import Program, Trace, cached, full_precision, make_program, trace
from entk.jax._warnings import warn_captured
from entk.jax._witness import Witness

_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)

_STATEFUL = ("InvalidRngError", "ModifyScopeVariableError", "TraceContextError", "TraceLevelError")
"""Errors of Flax, by name, for state or random numbers in a function that should have none."""


@dataclass
class Extraction:
    """What is taken of a network; parameters named in `demoted` are taken dense."""

    network: Network
    traced: Trace
    example: Any
    meant: Directions
    structure: bool
    witness: Witness
    demoted: frozenset[str] = frozenset()

    @property
    def n_outputs(self) -> int:
        """Number O of outputs."""
        return int(self.traced.out.shape[0])

    @property
    def rows(self) -> int:
        """Number R of directions an example."""
        return len(self.meant.rows) if self.several else 1

    @property
    def several(self) -> bool:
        """Whether every example has all directions (not one of its own)."""
        return self.meant.rows.ndim == 2 and not self.meant.per_example

    def program(self) -> Program:
        """Return the compiled program, made once for a function, shapes and kind of directions."""
        rows = self.meant.at(0)
        key = (self.traced.text, rows.shape, self.meant.per_example, self.structure, self.demoted)

        def make() -> Program:
            return make_program(
                self.network,
                self.traced,
                jax.tree.leaves(self.example),
                abstract(rows.shape, self.traced.out.dtype),
                per_example=self.meant.per_example,
                structure=self.structure,
                demoted=self.demoted,
            )

        return cached(self.network.f, ("factors", *key), make)  # type: ignore[no-any-return]

    @cached_property
    def processor(self) -> Any:
        """The one processor that holds all arrays, where several batches may run at a time.

        None for other devices, and for networks that call back into Python.
        """
        arrays = [*self.network.leaves, *self.traced.consts]
        places = {d for array in arrays if isinstance(array, jax.Array) for d in array.devices()}
        if len(places) != 1 or self.traced.calls_back:
            return None
        (place,) = places
        return place if place.platform == "cpu" else None

    def begin(self, program: Program, x: Any, rows: Any) -> Callable[[], Sequence[Array]]:
        """Begin a batch; return a function that gives its results, callable from any thread.

        On a processor that function does the work. It is compiled here: how JAX is configured
        (64-bit types, say) is a matter of this thread. Other devices are at work from now on.
        """
        cotangents = np.asarray(rows, self.traced.out.dtype)
        leaves = jax.tree.leaves(x)
        with full_precision():
            if self.processor is None:
                results = program.run(self.traced.consts, self.network.leaves, leaves, cotangents)
                for array in results:
                    array.copy_to_host_async()
                return lambda: results
            args = (self._consts, self.network.leaves)
            args += jax.device_put((leaves, cotangents), self.processor)
            return partial(program.compiled(args, self.processor), *args)

    @cached_property
    def _consts(self) -> Any:
        return jax.device_put(self.traced.consts, self.processor)


def prepare(
    f: Function,
    params: Any,
    x: Any,
    n: int,
    outputs: Any,
    *,
    structure: bool = True,
    audit: bool = False,
) -> Extraction:
    """Trace the network on the shapes of one example, read `outputs`, check independence."""
    net = network(f, params)
    example = one_example(x)
    traced = _traced(net, example)
    warn_captured(traced)
    meant = directions(outputs, n, int(traced.out.shape[0]))
    witness = Witness(net, traced, max(2, min(n, LOOKED_AT)), with_gradient=audit)
    work = Extraction(net, traced, example, meant, structure, witness)
    work.program()  # refuses what has no reverse derivative before anything is run
    passed: set[str] = cached(f, ("independence", traced.text), set)
    if not passed:
        few = at_least_two(examples_at(x, picks(n), min(n, LOOKED_AT)))
        if check_independence(witness, few, traced.eps):
            passed.add("independence")
    return work


def _traced(net: Network, example: Any) -> Trace:
    """Trace the network for one example; say what to do where it cannot be."""
    try:
        return trace(net.one, net.leaves, example)
    except _UNTRACEABLE as error:
        raise ModelError(
            "JAX cannot trace the network, because Python code looks at values that are only known"
            f" when it runs: {_first_line(error)}. Use jnp.where or jax.lax.cond, or close over"
            " what is no parameter"
        ) from error
    except Exception as error:
        if type(error).__name__ not in _STATEFUL:
            raise
        raise ModelError(
            f"the network changes its own state or draws random numbers: {_first_line(error)}."
            " Switch dropout off and BatchNorm to running statistics (NNX: model.eval() before"
            " nnx.split; linen: deterministic=True, use_running_average=True)"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
