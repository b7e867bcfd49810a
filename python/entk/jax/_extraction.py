"""A network traced and compiled, with what to take of it: the same for all batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entk._errors import ModelError
from entk.jax._compat import abstract
from entk.jax._directions import Directions, directions
from entk.jax._independence import check_independence
from entk.jax._network import Function, Network, network
from entk.jax._program import Program, Trace, cached, full_precision, make_program, trace
from entk.jax._warnings import warn_captured

_LOOKED_AT = 3

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

    def run(self, program: Program, x: Any, rows: Any) -> Any:
        """Run one batch."""
        with full_precision():
            cotangents = jnp.asarray(rows, self.traced.out.dtype)
            leaves = jax.tree.leaves(x)
            return program.run(self.traced.consts, self.network.leaves, leaves, cotangents)


def prepare(
    f: Function, params: Any, x: Any, n: int, outputs: Any, *, structure: bool = True
) -> Extraction:
    """Trace the network on the shapes of one example, read `outputs`, check independence."""
    net = network(f, params)
    example = jax.tree.map(_example, x)
    traced = _traced(net, example)
    warn_captured(traced)
    meant = directions(outputs, n, int(traced.out.shape[0]))
    work = Extraction(net, traced, example, meant, structure)
    work.program()  # refuses what has no reverse derivative before anything is run
    passed: set[str] = cached(f, ("independence", traced.text), set)
    if not passed and check_independence(net, examples_at(x, picks(n), min(n, _LOOKED_AT))):
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


def picks(n: int) -> list[int]:
    """Return the few of n examples that checks look at."""
    return sorted(set(np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(int).tolist()))


def examples_at(x: Any, numbers: Sequence[int], size: int) -> Any:
    """Return some examples on the device, the last repeated to make `size`."""

    def cut(leaf: Any) -> Any:
        if isinstance(numbers, range):
            rows = jnp.asarray(leaf[numbers.start : numbers.stop])
        else:
            rows = jnp.concatenate([jnp.asarray(leaf[k : k + 1]) for k in numbers])
        missing = size - len(rows)
        if not missing:
            return rows
        return jnp.concatenate([rows, jnp.broadcast_to(rows[-1:], (missing, *rows.shape[1:]))])

    return jax.tree.map(cut, x)


def _example(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return abstract(leaf.shape[1:], leaf.dtype)
    first = jnp.asarray(leaf[:1])
    return abstract(first.shape[1:], first.dtype)
