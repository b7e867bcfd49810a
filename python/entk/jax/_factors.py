"""`entk.jax.factors`: from a function and its parameters to `entk.Factors`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entk._errors import ModelError, ModelWarning
from entk._factors import Factors
from entk._leaves import Dense, Leaf, Lookup, Outer, Tied
from entk.jax import _audit
from entk.jax._batches import Host, choose_batch, gather, memory_limit, rows_of, run_batches
from entk.jax._compat import abstract
from entk.jax._directions import Directions, directions
from entk.jax._network import Function, Network, count_examples, network
from entk.jax._plan import Part
from entk.jax._program import Program, Trace, cached, full_precision, make_program, trace
from entk.jax._progress import Report

_ZEROS = 4096
"""Parameters without gradient are dense zeros up to this size, an empty look-up beyond."""

_CAPTURED = 1024
"""Floating-point arrays of two or more axes captured by `f` are reported from this size on."""


@dataclass
class Extraction:
    """A network traced, and what to take of it; the same for all batches."""

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

    def program(self) -> Program:
        """Return the compiled program, made once for a function, shapes and directions."""
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
    f: Function, params: Any, x: Any, n: int, outputs: Any, *, structure: bool
) -> Extraction:
    """Trace the network on the shapes of one example, read `outputs`, check independence."""
    net = network(f, params)
    example = jax.tree.map(_example, x)
    traced = trace(net.one, net.leaves, example)
    _warn_captured(traced)
    meant = directions(outputs, n, int(traced.out.shape[0]))
    _audit.check_independence(net, _picked(x, _audit.picks(n)))
    return Extraction(net, traced, example, meant, structure)


def factors(
    f: Function,
    params: Any,
    x: Any,
    *,
    outputs: Any = "sum",
    batch_size: int | None = None,
    memory: int | str | None = None,
    structure: bool = True,
    audit: bool = True,
    progress: bool | Callable[[int, int], None] = False,
) -> Factors:
    """Return exact factors."""
    n = count_examples(x)
    work = prepare(f, params, x, n, outputs, structure=structure)
    limit = memory_limit(memory)
    while True:
        program = work.program()
        size = choose_batch(batch_size, n, program.working_bytes, program.result_bytes, limit)
        arrays, wrong = _extract(work, program, x, n, size, audit=audit, progress=progress)
        if not wrong:
            break
        work.demoted |= _demoted(work.network, program, wrong)
    _warn_unused(program)
    return assembled(work, program, arrays, n)


def _extract(
    work: Extraction, program: Program, x: Any, n: int, size: int, *, audit: bool, progress: Any
) -> tuple[list[Host], list[int]]:
    """Run all batches; stop after the first where the audit finds parameters that are wrong."""

    def dispatch(start: int, stop: int) -> Any:
        batch = rows_of(x, start, stop, size)
        return work.run(program, batch, work.meant.of(start, stop, size))

    arrays: list[Host] = []
    with Report(progress, n) as report:
        for done, arrays in gather(n, run_batches(n, size, dispatch)):
            if audit and done == min(size, n):
                wrong = _wrong(work, program, x, arrays, done, size)
                if wrong:
                    return arrays, wrong
            report(done)
    return arrays, []


def _wrong(
    work: Extraction, program: Program, x: Any, arrays: list[Host], done: int, size: int
) -> list[int]:
    """Return the parameters whose factors are wrong in two directions.

    One direction may have a gradient of zero and so compare noise with noise; the second opinion is
    a random direction.
    """
    full = work.meant.meaning == "full" and work.n_outputs > 1
    signs = np.random.default_rng(0).choice([-1.0, 1.0], work.n_outputs)
    first = _disagreeing(work, program, x, arrays, done, signs if full else None)
    if not first or full:
        return first
    rows = np.broadcast_to(signs, (size, signs.size)) if work.meant.per_example else signs
    again = work.run(program, rows_of(x, 0, done, size), rows)
    landed = [np.asarray(array) for array in jax.tree.leaves(again)]
    second = Directions("weights", signs)
    return sorted({*first} & {*_disagreeing(work, program, x, landed, done, None, second)})


def _disagreeing(
    work: Extraction,
    program: Program,
    x: Any,
    arrays: list[Host],
    done: int,
    mixed: Any,
    meant: Directions | None = None,
) -> list[int]:
    """Compare factors and gradients on a few examples; `mixed` weighs the rows of full factors."""
    meant = work.meant if meant is None else meant
    weights = np.ones(1) if mixed is None else mixed
    wrong: set[int] = set()
    for k in _audit.picks(done):
        row = jnp.asarray(meant.at(k) if mixed is None else mixed, work.traced.out.dtype)
        example = jax.tree.map(lambda a: a[0], _picked(x, [k]))
        gradients = _audit.gradient_of(work.network, example, row)
        mine = grouped(program, [array[k] for array in arrays])
        wrong |= {*_audit.failing(work.network, program.parts, mine, gradients, weights)}
    return sorted(wrong)


def _demoted(net: Network, program: Program, wrong: Sequence[int]) -> frozenset[str]:
    """Return the names of parameters to take dense from now on; refuse if they were already."""
    names = [net.names[k] for k in wrong]
    dense = {net.names[part.leaf] for part in program.parts if part.form == "dense"}
    for name in names:
        if name in dense:
            raise ModelError(
                f"layer '{name}': its gradient for a batch of examples differs from jax.grad of"
                " one example at a time. Usual causes: a custom_vmap rule or a callback that"
                " treats batches differently, randomness outside f"
            )
    _warn(
        f"the factors of {', '.join(names)} failed the audit against jax.grad; taken dense. This is"
        " exact, but please report it"
    )
    return frozenset(names)


def assembled(work: Extraction, program: Program, arrays: list[Host], n: int) -> Factors:
    """Make `Factors` of host arrays."""
    leaves: dict[str, Leaf] = {}
    reasons: dict[str, str] = {}
    rows = work.n_outputs if work.meant.meaning == "full" else 1
    for part, mine in zip(program.parts, grouped(program, arrays), strict=True):
        leaves[part.name] = _leaf(part, mine, work.network.leaves[part.leaf], n, rows)
        reasons[part.name] = part.reason
    return Factors(leaves, outputs=work.meant.meaning, n_outputs=work.n_outputs, reasons=reasons)


def grouped(program: Program, arrays: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return a flat list of arrays part by part."""
    structure = jax.tree.structure(program.shapes)
    return jax.tree.unflatten(structure, arrays)  # type: ignore[no-any-return]


def _leaf(part: Part, arrays: Sequence[Host], parameter: Any, n: int, rows: int) -> Leaf:
    if part.form == "zero":
        return _zero(parameter, n, rows)
    if part.form in ("dense", "expand"):
        return Dense(_one_row(arrays[0]))
    uses = [
        _use(group.kind, *pair, transposed=group.transposed)
        for group, pair in zip(
            part.groups, zip(arrays[::2], arrays[1::2], strict=True), strict=True
        )
    ]
    return uses[0] if len(uses) == 1 else Tied(uses)


def _use(kind: str, acts: Host, cots: Host, *, transposed: bool) -> Outer | Lookup:
    """Leave out the axes R, G and T where they are 1, as people write them."""
    cots = _one_row(cots)
    if kind == "lookup":
        return Lookup(acts, cots)
    _, groups, positions, _ = acts.shape
    if groups == 1:
        drop = (1, 2) if positions == 1 else (1,)
        ends = tuple(k - 4 for k in drop)
        acts, cots = acts.squeeze(drop), cots.squeeze(ends)
    return Outer(acts, cots, transposed=transposed)


def _one_row(array: Host) -> Host:
    return array[:, 0] if array.shape[1] == 1 else array


def _zero(parameter: Any, n: int, rows: int) -> Leaf:
    """Return a leaf that contributes nothing, and takes no memory to say so."""
    dtype = np.dtype(parameter.dtype)
    if parameter.size <= _ZEROS:
        return Dense(
            np.zeros((n, parameter.size) if rows == 1 else (n, rows, parameter.size), dtype)
        )
    return Lookup(np.full((n, 1), -1, np.int32), _one_row(np.zeros((n, rows, 1, 1), dtype)))


def _example(leaf: Any) -> Any:
    first = jnp.asarray(leaf[:1])
    return abstract(first.shape[1:], first.dtype)


def _picked(x: Any, numbers: Sequence[int]) -> Any:
    return jax.tree.map(lambda a: jnp.concatenate([jnp.asarray(a[k : k + 1]) for k in numbers]), x)


def _warn_captured(traced: Trace) -> None:
    for const in traced.consts:
        large = np.ndim(const) >= 2 and np.size(const) >= _CAPTURED
        if large and jnp.issubdtype(const.dtype, jnp.inexact):
            _warn(
                f"f captures an array of shape {const.shape} that is not in params: it is taken as"
                " a constant and has no share in the kernel. If it is a parameter, pass it in"
                " params"
            )


def _warn_unused(program: Program) -> None:
    unused = [part.name for part in program.parts if part.leaf not in program.taps.used]
    if unused:
        _warn(f"no use of {', '.join(unused)}: the network does not read it, so its share is zero")


def _warn(text: str) -> None:
    """Warn at the line that called entk."""
    warnings.warn(text, ModelWarning, stacklevel=_depth())


def _depth() -> int:
    """Return how many frames up the first caller outside entk is."""
    import sys

    depth, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("entk."):
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    return depth - 1 if depth > 1 else 1
