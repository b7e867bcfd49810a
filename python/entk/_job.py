"""What all ways to compute a kernel share: what was asked for, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from entk import _core, _options, _plan, _values
from entk._arrays import AnyArray
from entk._options import Memory
from entk._plan import Plan
from entk._problem import Cut, Problem, raw

Report: TypeAlias = "Callable[[int, int], object]"
Bad: TypeAlias = tuple[AnyArray, AnyArray]


@dataclass(frozen=True, eq=False)
class Job:
    """A problem with every option of its computation, checked."""

    problem: Problem
    tile: int
    dtype: str
    accumulate: str
    memory: Memory
    threads: int
    engine: str
    nonfinite: str
    isa: str | None

    @classmethod
    def make(
        cls,
        factors: object,
        other: object = None,
        *,
        tile: object = 4096,
        outputs: object = None,
        dtype: object = None,
        accumulate: object = None,
        memory: object = None,
        threads: object = None,
        engine: object = "fused",
        leaf_weights: Mapping[str, float] | None = None,
        nonfinite: object = "raise",
    ) -> Job:
        """Check all arguments; nothing of the factors' values is read."""
        _options.integer(tile, "tile")
        count = _options.thread_count(threads)
        limit = _options.memory_limit(memory)
        problem = Problem.make(factors, other, outputs, leaf_weights)
        result, wide = _options.result_dtypes(problem.factors, problem.other, dtype, accumulate)
        return cls(
            problem=problem,
            tile=_plan.tile_side(tile, problem),
            dtype=result,
            accumulate=wide,
            memory=limit,
            threads=count,
            engine=_options.choice("engine", engine, ("fused", "blas")),
            nonfinite=_options.choice("nonfinite", nonfinite, ("raise", "propagate")),
            isa=_options.instruction_set(),
        )

    def plan(self, held: int, least: int = 0, *, by_tile: bool = False) -> Plan:
        """Plan the whole kernel; `held` bytes of the result count against the limit.

        With `by_tile` its tiles are computed one after another, as for a path.

        A refusal names the smallest limit that would do, with `least` bytes or more of result.
        """
        return _plan.make_plan(
            self.problem,
            tile=self.tile,
            dtype=self.dtype,
            accumulate=self.accumulate,
            threads=self.threads,
            memory=self.memory,
            engine=self.engine,
            isa=self.isa,
            held=held,
            least=least,
            by_tile=by_tile,
        )

    def check_result_fits(self, size: int) -> None:
        """Raise `MemoryLimitError` if a result in RAM exceeds the limit."""
        if size > self.memory.limit:
            self.plan(0, least=size)
            raise _plan.result_too_large(self.problem, size, self.memory)

    def scan(self) -> Bad:
        """Look at all values; return the examples of each side that hold NaN or infinity."""
        problem, names = self.problem, self.problem.names
        _values.warn_of_nothing(problem.factors, names)
        found: list[AnyArray] = []
        for factors, side in ((problem.factors, ""), (problem.other, " of other")):
            if factors is None:
                found.append(found[0])
                continue
            values = _values.scan(
                factors,
                names,
                accumulate=self.accumulate,
                nonfinite=self.nonfinite,
                threads=self.threads,
                side=side,
            )
            _values.warn_of_underflow(values, self.accumulate)
            found.append(values.bad)
        _values.warn_of_narrowing(problem, self.dtype)
        return found[0], found[1]

    def compute(
        self, cut: Cut, out: AnyArray, *, limit: int, progress: Report | None = None
    ) -> bool:
        """Compute a cut into `out`; return whether all entries are finite."""
        rows, cols = self.problem.sides()
        options = self.problem.options(
            cut,
            double=self.accumulate == "float64",
            threads=self.threads,
            limit=limit,
            isa=self.isa,
        )
        planes = out if out.ndim == 3 else out[None]
        return _core.assemble(rows, cols, options, raw(planes), out.itemsize == 8, progress)
