"""`entk.jax.factors`: from a function and its parameters to `entk.Factors`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np

from entk import _options
from entk._errors import ModelError
from entk._factors import Factors
from entk._leaves import Dense, Leaf, Lookup, Outer, Tied
from entk.jax._audit import wrong_parameters
from entk.jax._batches import choose_batch, fastest_batch
from entk.jax._dispatch import Host, run_batches
from entk.jax._extraction import Extraction, prepare
from entk.jax._inputs import examples_at, readable
from entk.jax._network import Function, count_examples
from entk.jax._plan import Part
from entk.jax._program import Program
from entk.jax._progress import Report
from entk.jax._warnings import warn_demoted, warn_unused

_ZEROS = 4096
"""Parameters without gradient are dense zeros up to this size, an empty look-up beyond."""


def take(
    f: Function,
    params: Any,
    x: Any,
    *,
    outputs: Any,
    batch_size: int | None,
    memory: int | str | None,
    structure: bool,
    audit: bool,
    progress: bool | Callable[[int, int], None] = False,
    filled: int | None = None,
) -> tuple[Factors, int]:
    """Return factors, and the size of the batches they were taken in.

    A batch smaller than `filled`, the size of earlier ones, is filled up to it: nothing is
    compiled again.
    """
    n = count_examples(x)
    x = readable(x)
    work = prepare(f, params, x, n, outputs, structure=structure, audit=audit)
    while True:
        program = work.program()
        working = program.working_bytes
        fastest = fastest_batch(n, working, work.network.leaves)
        size = choose_batch(batch_size, n, working, program.result_bytes, memory, fastest)
        size = filled if filled is not None and size == n < filled else size
        arrays, wrong = _run(work, program, x, n, size, audit=audit, progress=progress)
        if not wrong:
            break
        work.demoted |= _demoted(work, program, wrong)
    warn_unused(program)
    return _assembled(work, program, arrays, jax.tree.leaves(x), n), size


def _run(
    work: Extraction, program: Program, x: Any, n: int, size: int, *, audit: bool, progress: Any
) -> tuple[list[Host], list[int]]:
    """Run all batches; stop after the first where the audit finds parameters that are wrong."""

    def begin(start: int, stop: int) -> Callable[[], Sequence[Any]]:
        batch = examples_at(x, range(start, stop), size)
        return work.begin(program, batch, work.meant.of(start, stop, size))

    arrays: list[Host] = []
    batches = run_batches(n, size, begin, program.results, _options.thread_count(None))
    with Report(progress, n) as report, closing(batches):
        for done, arrays in batches:
            if audit and done == min(size, n):
                wrong = wrong_parameters(work, program, x, arrays, done, size)
                if wrong:
                    return arrays, wrong
            report(done)
    return arrays, []


def _demoted(work: Extraction, program: Program, wrong: Sequence[int]) -> frozenset[str]:
    """Return the names of parameters to take dense from now on; refuse if they already are."""
    names = [work.network.names[k] for k in wrong]
    dense = {work.network.names[part.leaf] for part in program.parts if part.form == "dense"}
    for name in names:
        if name in dense:
            raise ModelError(
                f"layer '{name}': its gradient for a batch of examples differs from jax.grad of"
                " one example at a time. Usual causes: a custom_vjp rule that is not linear in"
                " its cotangent (clipping), a custom_vmap rule or a callback that"
                " treats batches differently, randomness outside f"
            )
    warn_demoted(names)
    return frozenset(names)


def _assembled(
    work: Extraction, program: Program, arrays: list[Host], x: list[Any], n: int
) -> Factors:
    leaves: dict[str, Leaf] = {}
    for part, mine in zip(program.parts, program.grouped(arrays, x), strict=True):
        leaves[part.name] = _leaf(part, mine, work.network.leaves[part.leaf], n, work.rows)
    reasons = {part.name: part.reason for part in program.parts}
    return Factors(leaves, outputs=work.meant.meaning, n_outputs=work.n_outputs, reasons=reasons)


def _leaf(part: Part, arrays: Sequence[Host], parameter: Any, n: int, rows: int) -> Leaf:
    if part.form == "zero":
        return _zero(parameter, n, rows)
    if part.form in ("dense", "expand"):
        return Dense(_one_row(arrays[0]))
    pairs = zip(part.groups, arrays[::2], arrays[1::2], strict=True)
    uses = [
        _use(group.kind, acts, cots, transposed=group.transposed) for group, acts, cots in pairs
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
        acts, cots = acts.squeeze(drop), cots.squeeze(tuple(k - 4 for k in drop))
    return Outer(acts, cots, transposed=transposed)


def _one_row(array: Host) -> Host:
    return array[:, 0] if array.shape[1] == 1 else array


def _zero(parameter: Any, n: int, rows: int) -> Leaf:
    """Return a leaf that contributes nothing, and takes hardly any memory to say so."""
    dtype = np.dtype(parameter.dtype)
    if parameter.size <= _ZEROS:
        return Dense(_one_row(np.zeros((n, rows, parameter.size), dtype)))
    return Lookup(np.full((n, 1), -1, np.int32), _one_row(np.zeros((n, rows, 1, 1), dtype)))
