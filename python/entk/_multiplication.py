"""Products with a kernel that is never there as a whole, each leaf in the way that costs less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from entk import _entries, _plan
from entk._arrays import AnyArray
from entk._errors import MemoryLimitError
from entk._job import Job
from entk._leaves import Lookup
from entk._products import Products

# Time of an operation of the fused kernel over one of a product with Jacobians: the balance of
# processors of 2020 to 2026, where both are near their peaks.
BALANCE = 1.25


class Multiplication:
    """Products with the kernel of a job.

    Each leaf is multiplied by its Jacobians, ``J (J^T V)``, or by entries of its kernel that are
    computed, multiplied and forgotten, tile by tile: whichever takes fewer operations for so many
    vectors, by count. Entries win where the examples are few beside the leaf's parameters.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._products = Products.of(job.problem, job.threads)
        self._ways: dict[int, tuple[Job | None, Products | None]] = {}

    def turned(self) -> Multiplication:
        """Return the products of the transposed kernel."""
        if self._job.problem.other is None:
            return self
        return Multiplication(replace(self._job, problem=self._job.problem.turned()))

    def apply(self, v: AnyArray) -> AnyArray:
        """Return ``K v`` for `v` (columns of the kernel, k) of any type.

        Raises
        ------
        MemoryLimitError
            If the vectors and the smallest pieces do not fit.
        """
        rows, cols = self._job.problem.shape
        k, memory = v.shape[1], self._job.memory
        dtype = np.dtype(self._job.dtype)
        native = v.dtype == dtype and v.flags.c_contiguous and v.flags.aligned
        held = dtype.itemsize * k * (rows + (0 if native else cols))
        left = memory.limit - held
        if left < 0:
            raise self._too_small(held, k)
        vectors = np.require(v, dtype, ["C", "A"])
        y = np.zeros((rows, k), dtype)
        if not (k and rows and cols and self._products.names):
            return y
        by_entries, by_jacobians = self.ways(k)
        if by_entries is not None:
            try:
                _entries.add_product(by_entries, vectors, y, left)
            except MemoryLimitError:
                by_jacobians = self._products
                y.fill(0)
        try:
            if by_jacobians is not None:
                by_jacobians.add(vectors, y, left)
        except MemoryLimitError as error:
            needs = getattr(error, "needs", None)
            if needs is None:
                raise
            raise self._too_small(held + needs, k) from None
        return y

    def ways(self, k: int) -> tuple[Job | None, Products | None]:
        """Return what is multiplied by entries and what by Jacobians, for `k` vectors."""
        if k not in self._ways:
            self._ways[k] = self._split(entries_that_pay(self._job, self._products, k))
        return self._ways[k]

    def _split(self, names: set[str]) -> tuple[Job | None, Products | None]:
        if not names:
            return None, self._products
        job, rest = self._job, [name for name in self._products.names if name not in names]
        part = replace(job, problem=job.problem.select(names))
        return part, self._products.select(rest) if rest else None

    def _too_small(self, needs: int, k: int) -> MemoryLimitError:
        memory = self._job.memory
        return MemoryLimitError(
            f"needs at least {_plan.in_bytes(needs + 1023)} for a product with {k:,} vectors; got "
            f"{_plan.in_bytes(memory.limit)} ({memory.source}); multiply with fewer "
            "vectors at a time"
        )


def entries_that_pay(job: Job, products: Products, k: int) -> set[str]:
    """Return the leaves whose entries cost less than products with `k` vectors.

    Look-ups never do: their tables are read row by row, and ids are compared pair by pair.
    """
    problem = job.problem
    n, m = problem.examples
    pairs = n * (n + 1) // 2 if problem.other is None else n * m
    options = problem.options(
        _plan.whole_cut(problem),
        double=job.accumulate == "float64",
        threads=1,  # or the threads would choose the way where the limit is tight
        limit=job.memory.limit,
        isa=job.isa,
    )
    try:
        planned = _plan.core_plan(problem, options, job.memory, 0)["leaves"]
    except MemoryLimitError:
        return set()
    saved = {}
    for name, work, (_, flops) in zip(problem.names, products.work(k), planned, strict=True):
        saving = 2 * work - BALANCE * flops * pairs
        if saving > 0 and not isinstance(problem.factors[name], Lookup):
            saved[name] = saving
    multiplied = 2 * BALANCE * problem.shape[0] * problem.shape[1] * k
    return set(saved) if sum(saved.values()) > multiplied else set()
