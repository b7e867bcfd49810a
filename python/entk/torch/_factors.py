"""From a module and its inputs to `entk.Factors`: plan, engine, audit, batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from entk._errors import EntkError, InputError, MemoryLimitError, ModelError
from entk._factors import Factors
from entk._leaves import Dense, Leaf, Lookup, Outer, Tied
from entk.torch._audit import audit
from entk.torch._batches import batch_size, result_bytes, working_bytes
from entk.torch._columns import Columns, as_given
from entk.torch._engines import (
    Engine,
    OneByOne,
    Result,
    SitesDifferError,
    Together,
    UnlikeError,
)
from entk.torch._network import Inputs, Network, Output
from entk.torch._plan import Part, Plan, Seen, TableUse, make_plan
from entk.torch._refuse import Watch, check_independent, check_reached
from entk.torch._rows import Rows, resolve
from entk.torch._taps import Tap

_UNWATCHED = "the network does something else while it is watched"

# What a network that runs by itself may raise under torch.func.
_CANNOT = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` was given."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


class Extraction:
    """One call of `factors`: what is known of the network, growing step by step."""

    def __init__(
        self, module: nn.Module, inputs: Inputs, output: Output, *, structure: bool
    ) -> None:
        self.inputs = inputs
        self.network = Network(module, inputs, output)
        self._dense = {} if structure else dict.fromkeys(self.network.parameters, "structure=False")
        self._note = ""
        self._offset = 0
        self._made: tuple[Plan, Result] | None = None

    def prepare(self, outputs: Any, *, stream: bool = False) -> None:
        """See that the network has gradients for each example, and find its leaves."""
        n = self.inputs.n
        several = sorted({0, n // 2, n - 1}) if n > 1 else [0, 0]
        check_independent(self.network, self._examples(several))
        n_outputs = self._probe([t[0] for t in self._examples([0])])
        self.rows = resolve(outputs, None if stream else n, n_outputs)
        self.engine: Engine = Together(self.network, self.rows)
        if self.network.scripted:
            self._fall_back("TorchScript cannot run under torch.func")
        self._replan()

    def settle(self, batch: int | None, memory: int | str | None, *, check: bool) -> None:
        """Find the engine that serves this network, on the first batch, whose result is kept."""
        size = self.size(batch, memory)
        while not self._settled(size, check=check and self.inputs.n > 0):
            self._replan()
            size = self.size(batch, memory)

    def _batch(self, some: slice) -> tuple[list[Tensor], Tensor]:
        """Return examples and their rows; a stand-in for a network without examples."""
        if not self.inputs.n:
            tensors = self._examples([0])
            device = tensors[0].device
            return tensors, torch.zeros(1, self.rows.n_outputs, dtype=torch.float64, device=device)
        tensors = self.inputs.take(some, self.network.device)
        at = slice(self._offset + some.start, self._offset + some.stop)
        return tensors, self.rows.of(at, len(tensors[0]), tensors[0])

    def feed(self, inputs: Inputs) -> None:
        """Go on with other examples of the same kind."""
        before, after = self.inputs.shapes(), inputs.shapes()
        if before != after:
            raise InputError(
                f"a batch differs from the first one in its shapes: {after} and {before} for each "
                "example; a store has one shape for each leaf"
            )
        self._offset += self.inputs.n
        self._made = None
        self.inputs = self.network.inputs = inputs

    def _replan(self) -> None:
        parameters, rows = self.network.parameters, self.rows.count
        self.plan = make_plan(parameters, self._seen, rows, self._dense)

    def _examples(self, index: list[int]) -> list[Tensor]:
        if self.inputs.n:
            return self.inputs.take(index, self.network.device)
        empty = self.inputs.tensors
        return [
            torch.zeros(len(index), *t.shape[1:], dtype=t.dtype, device=self.network.device)
            for t in empty
        ]

    def _probe(self, example: list[Tensor]) -> int:
        """Watch one example, and return the number of its outputs."""
        tap = Tap({k: p for k, p in self.network.parameters.items() if k not in self._dense})

        def work() -> Tensor:
            with Watch(self.network.names), tap:
                return self.network.single(example)

        out: Tensor = self.network.substituted(self.network.parameters, work)
        check_reached(self.network, out)
        if len(out) == 0:
            raise InputError("the network has no outputs: its output has 0 numbers an example")
        self._seen = Seen(tap.sites, tap.dense)
        return len(out)

    def _differs(self, error: SitesDifferError) -> None:
        """Take into account what one more example showed."""
        self._seen.add(error.sites, self.network.parameters)
        if error.why is not None:
            self._dense[error.leaf] = error.why
        self._replan()

    def _settled(self, size: int, *, check: bool) -> bool:
        """Try the engine on a batch; False if the plan or the engine had to change."""
        n, tried = self.inputs.n, max(size, 2)
        tensors, own = self._batch(slice(0, min(tried, n)))
        try:
            with self._located(0, tried):
                result = self.engine(self.plan, tensors, own)
        except SitesDifferError as error:
            hidden = isinstance(self.engine, Together) and not self.engine.decisions.asked
            if hidden and check:  # a use that only torch.func lets us see
                self._demote([error.leaf])
            self._differs(error)
            return False
        except _CANNOT as error:
            if isinstance(error, EntkError) or isinstance(self.engine, OneByOne):
                raise
            _refuse_random(error)
            self._fall_back(f"torch.func: {_first_line(error)}")
            return False
        self._made = (self.plan, result) if n and min(tried, n) == min(size, n) else None
        if not check:
            return True
        few = sorted({0, len(own) - 1})  # more would cost small calls much
        verdict = audit(self.network, self.plan, result, tensors, own, self.rows, few)
        if verdict.structured:
            tensors, own = [t[few] for t in tensors], own[few]
            blamed = self._misunderstood(verdict.structured, tensors, own)
            if blamed:
                self._demote(sorted(blamed))
                return False
        if verdict.free and isinstance(self.engine, OneByOne):
            if self.plan.watched:
                self._dense = dict.fromkeys(self.network.parameters, _UNWATCHED)
                return False
            raise ModelError(
                f"layer {min(verdict.free)!r}: autograd gave two different gradients for one "
                "example; the network does not do the same on every call"
            )
        wrong = sorted(verdict.structured | verdict.free)
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            self._fall_back(f"torch.func disagrees with autograd on {wrong[0]}{more}")
            return False
        if isinstance(self.engine, Together) and not self.engine.decisions.asked:
            # Then all examples run through the same operations.
            for part in self.plan.parts:
                if part.form == "free" and part.leaf in verdict.unreached:
                    part.form, part.reason = "unused", "no gradient reaches it"
        return True

    def _misunderstood(
        self, leaves: frozenset[str], tensors: list[Tensor], own: Tensor
    ) -> frozenset[str]:
        """Return those of the leaves whose factors are wrong whichever engine makes them."""
        if isinstance(self.engine, OneByOne):
            return leaves
        plain = OneByOne(self.network, self.rows)
        try:
            result = plain(self.plan, tensors, own)
        except SitesDifferError as error:
            return frozenset({error.leaf})
        index = range(len(own))
        verdict = audit(self.network, self.plan, result, tensors, own, self.rows, index)
        return leaves & verdict.structured

    def _demote(self, leaves: list[str]) -> None:
        for leaf in leaves:
            self._dense[leaf] = "the uses seen do not explain autograd's gradient"
            warnings.warn(
                f"layer {leaf!r}: the gradient rebuilt from its factors differs from autograd's "
                "(a use inside compiled code or a custom autograd.Function?); it is kept dense",
                stacklevel=6,
            )

    def _fall_back(self, why: str) -> None:
        self._made = None
        self.engine = OneByOne(self.network, self.rows)
        self._note = f"; one example at a time ({why})"

    def run(self, size: int, report: Callable[[int, int], None]) -> Columns:
        """Compute all examples in batches of `size`."""
        while True:
            try:
                return self._run(size, report)
            except SitesDifferError as error:
                self._differs(error)
            except UnlikeError as error:
                self._fall_back(f"torch.func: {error}")
            except _CANNOT as error:  # what the first examples did not meet
                if isinstance(error, EntkError) or isinstance(self.engine, OneByOne):
                    raise
                _refuse_random(error)
                self._fall_back(f"torch.func: {_first_line(error)}")

    def _run(self, size: int, report: Callable[[int, int], None]) -> Columns:
        n = self.inputs.n
        module = self.network.module
        theirs = [*self.inputs.tensors, *module.parameters(), *module.buffers()]
        columns = Columns(self.plan, n, self.rows.count, theirs)
        for number, start in enumerate(range(0, n, size)):
            some = slice(start, min(start + size, n))
            with self._located(number, size):
                columns.put(start, self._result(some))
            report(some.stop, n)
        columns.settle()
        return columns

    def _result(self, some: slice) -> Result:
        """Return what the engine makes of examples, or made of them when it was tried."""
        made, self._made = self._made, None
        if made is not None and made[0] is self.plan:
            return made[1]
        return self.engine(self.plan, *self._batch(some))

    @contextmanager
    def _located(self, number: int, size: int) -> Iterator[None]:
        """Say in an error which batch and examples it came from."""
        n, first = self.inputs.n, self._offset
        start, stop = number * size, min((number + 1) * size, n)
        try:
            yield
        except torch.OutOfMemoryError as error:
            count = stop - start
            raise MemoryLimitError(
                f"batch {number} of {-(-n // size)} ({count} examples) does not fit the device's "
                f"memory; pass batch_size={max(1, count // 2)} or less"
            ) from error
        except Exception as error:
            error.add_note(
                f"entk: in batch {number} of {-(-n // size)}, examples {first + start} to "
                f"{first + stop - 1}"
            )
            raise

    def reason(self, part: Part) -> str:
        """Return why a part has its form."""
        return part.reason + self._note

    def size(self, given: int | None, memory: int | str | None) -> int:
        """Return the number of examples to run at once."""
        rows, device = self.rows.count, self.network.device

        def working() -> int:
            tensors = self._examples([0])
            return working_bytes(self.network, self.plan, tensors, rows)

        result = result_bytes(self.plan, rows)
        copies = 3 * sum(p.nbytes for p in self.network.parameters.values())
        return batch_size(given, self.inputs.n, working, result, copies, memory, device)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _refuse_random(error: BaseException) -> None:
    if "andomness" in str(error):
        raise ModelError(
            "the network draws random numbers, so its output is no function of the example. Call "
            "module.eval() first and take random operations out of forward"
        ) from error


def build(extraction: Extraction, columns: Columns) -> Factors:
    """Return the columns as `entk.Factors`."""
    rows = extraction.rows
    parts = columns.plan.parts
    leaves = {part.name: _leaf(part, columns.of(part), rows) for part in parts}
    reasons = {part.name: extraction.reason(part) for part in parts}
    label: Any = rows.label
    return Factors(leaves, outputs=label, n_outputs=rows.n_outputs, reasons=reasons)


def _leaf(part: Part, arrays: list[Tensor], rows: Rows) -> Leaf:
    full = rows.weights is None
    if not part.structured:
        return Dense(as_given(arrays[0] if full else arrays[0][:, 0]))
    uses = [
        _use(use, arrays[2 * i], arrays[2 * i + 1] if full else arrays[2 * i + 1][:, 0])
        for i, use in enumerate(part.uses)
    ]
    return Tied(uses) if len(uses) > 1 else uses[0]


def _use(use: TableUse, acts: Tensor, cots: Tensor) -> Outer | Lookup:
    """Leave out the axes of length 1: blocks, then positions."""
    if use.kind == "lookup":
        return Lookup(as_given(acts), as_given(cots))
    if acts.shape[1] == 1:
        acts, cots = acts[:, 0], cots.squeeze(-3)
        if acts.shape[1] == 1:
            acts, cots = acts[:, 0], cots.squeeze(-2)
    return Outer(as_given(acts), as_given(cots), transposed=use.transposed)


def device_of(module: nn.Module, inputs: Inputs) -> torch.device:
    """Return where the module's parameters are, or its inputs."""
    first = next(module.parameters(), None)
    return inputs.tensors[0].device if first is None else first.device
