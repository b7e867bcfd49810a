"""`KernelOperator`: a kernel as products and blocks, never assembled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from scipy.sparse.linalg import LinearOperator

from entk import _assemble, _options, _out, _plan
from entk._arrays import AnyArray
from entk._assemble import OutputsLike
from entk._errors import InputError, KernelOverflowError
from entk._factors import FactorsLike
from entk._job import Job
from entk._multiplication import Multiplication
from entk._outputs import Outputs
from entk._problem import Problem

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Rows: TypeAlias = "slice | ArrayLike"


class KernelOperator(LinearOperator):  # type: ignore[misc]
    r"""The kernel of factors as a linear operator: products with vectors, entries on demand.

    Computes :math:`K V = J (J^T V)` leaf by leaf from the factors, :math:`J_\ell^T V =
    \sum_n A_n^T \mathrm{diag}(v_n) B_n` (Jacobian-vector products by structure, [1]_), or from
    tiles of the leaf's kernel that are computed, multiplied and forgotten, where that takes fewer
    operations. Never forms the kernel or a Jacobian of all examples.

    Parameters
    ----------
    factors : Factors, mapping, list of pairs, or path
        N examples, as for `entk.assemble`.
    other : as `factors`, optional
        The M column examples. None: the symmetric kernel of `factors`.
    outputs : {"full", "sum", "trace"}, int, array or tuple of arrays, optional
        Which kernel, as for `entk.assemble`. ``"diagonal"`` is no matrix and is refused.
    leaf_weights : mapping, optional
        Leaf name or glob to a factor >= 0 on that leaf's kernel.
    accumulate : {"float64", "float32"}
        Type of products, sums and results. ``"float32"`` is twice as fast, for factors that
        float32 holds.
    memory : int or str, optional
        Bound in bytes (``"4GiB"``) on what a call adds, its result included. None: a safe share of
        what the process may still use.
    threads : int, optional
        Workers. None: ``ENTK_NUM_THREADS``, or all usable cores.

    Attributes
    ----------
    shape : tuple of int
        ``(N R, M R)`` for ``"full"``, else ``(N, M)``.
    dtype : numpy.dtype
        `accumulate`.

    Raises
    ------
    InputError, DTypeError, NonFiniteError
        As `entk.assemble`. All values are looked at once, here.

    Notes
    -----
    **Cost.** By Jacobians ``4 N P`` flops a vector for a leaf of P parameters and one position
    (half of them for ``J^T v``); several positions or outputs are contracted first where that is
    cheaper. By entries ``N^2 (d_in + d_out)`` for all vectors of a call, and ``2 N^2`` a vector:
    less for k vectors of a call where N is below about ``4 k d_in d_out / (d_in + d_out)``. Blocks
    of vectors run near the rate of GEMM, single ones below it: use `matmat`. Where many calls
    follow each other and the kernel fits, assembling it once is cheaper.

    **Memory.** The result, and panels of the tables and examples, or one tile of 2,048 rows, that
    fit in `memory`.

    **Precision.** Within a few units in the last place, times ``sqrt(N)``, of the exact product of
    the stored factors in `accumulate`. Threads and instruction sets change no bits; the limit and
    the number of vectors may, as they decide how tables are cut, which are formed, and which
    leaves are multiplied by entries. `rows`,
    `block`, `diagonal` and `trace` have the bits of `entk.assemble`.

    References
    ----------
    .. [1] R. Novak, J. Sohl-Dickstein, S. S. Schoenholz, "Fast Finite Width Neural Tangent
       Kernel", ICML 2022, section 3.4.

    Examples
    --------
    >>> import numpy as np, entk
    >>> rng = np.random.default_rng(0)
    >>> F = entk.Factors({"w": entk.Outer(rng.normal(size=(9, 5)), rng.normal(size=(9, 2)))})
    >>> op = entk.KernelOperator(F)
    >>> K = entk.assemble(F)
    >>> bool(np.allclose(op @ np.ones(9), K.sum(axis=1))), op.block([0, 3], slice(2)).shape
    (True, (2, 2))
    """

    def __init__(
        self,
        factors: FactorsLike,
        other: FactorsLike | None = None,
        *,
        outputs: OutputsLike = None,
        leaf_weights: Mapping[str, float] | None = None,
        accumulate: Literal["float64", "float32"] = "float64",
        memory: int | str | None = None,
        threads: int | None = None,
    ) -> None:
        job = Job.make(
            factors,
            other,
            outputs=outputs,
            dtype=accumulate,
            accumulate=accumulate,
            memory=memory,
            threads=threads,
            leaf_weights=leaf_weights,
        )
        problem = job.problem
        _options.result_dtypes(problem.factors, problem.other, None, accumulate)
        if problem.planes is not None:
            raise InputError(
                "outputs='diagonal' is a kernel for each output, not one operator; pass the number "
                "of an output, or 'full', 'sum' or 'trace'"
            )
        n, m = (int(side) for side in problem.shape)
        super().__init__(np.dtype(job.dtype), (n, m))
        job.scan()
        self._job = job
        self._multiplication = Multiplication(job)

    @property
    def _symmetric(self) -> bool:
        return self._job.problem.other is None

    def _matvec(self, x: AnyArray) -> AnyArray:
        return self._product(self._multiplication, np.reshape(x, (-1, 1)))[:, 0]

    def _matmat(self, X: AnyArray) -> AnyArray:
        return self._product(self._multiplication, X)

    def _rmatvec(self, x: AnyArray) -> AnyArray:
        return self._rmatmat(np.reshape(x, (-1, 1)))[:, 0]

    def _rmatmat(self, X: AnyArray) -> AnyArray:
        return self._product(self._turned, X)

    @cached_property
    def _turned(self) -> Multiplication:
        return self._multiplication.turned()

    def _adjoint(self) -> LinearOperator:
        return self if self._symmetric else super()._adjoint()

    def _transpose(self) -> LinearOperator:
        return self if self._symmetric else super()._transpose()

    def _product(self, kernel: Multiplication, x: AnyArray) -> AnyArray:
        x = np.asarray(x)
        if np.iscomplexobj(x):
            return self._product(kernel, x.real) + 1j * self._product(kernel, x.imag)
        y = kernel.apply(x)
        if not np.isfinite(y).all() and np.isfinite(x).all():
            raise KernelOverflowError(
                f"a product with the kernel overflowed {self._job.accumulate}; "
                + ("scale the vectors or factors down" if self.dtype == np.float64 else
                   "use accumulate='float64'")
            )  # fmt: skip
        return y

    def diagonal(self) -> AnyArray:
        """Return the diagonal of a symmetric kernel in O(N).

        Returns
        -------
        ndarray, shape (N,) or (N R,)
            Of the operator's type; the bits of `assemble`.

        Raises
        ------
        InputError
            For a cross kernel.
        """
        if not self._symmetric:
            raise InputError("a cross kernel (other=...) has no diagonal; use block()")
        return _assemble.diagonal_of(self._job)

    def trace(self) -> float:
        """Return the sum of the diagonal of a symmetric kernel, added without rounding errors.

        Raises
        ------
        InputError
            For a cross kernel.
        """
        return math.fsum(self.diagonal())

    def rows(self, index: Rows) -> AnyArray:
        """Return rows of the kernel.

        Parameters
        ----------
        index : int, slice, or array of integers or booleans
            Rows of the kernel; an integer gives one row of shape (columns,).

        Returns
        -------
        ndarray, shape (len(index), columns)
        """
        return self.block(index, slice(None))

    def block(self, rows: Rows, cols: Rows) -> AnyArray:
        """Return the entries of some rows and columns, as ``K[rows][:, cols]`` of a NumPy array.

        Parameters
        ----------
        rows, cols : int, slice, or array of integers or booleans
            Rows and columns of the kernel, with NumPy's meaning; an integer drops its axis.

        Returns
        -------
        ndarray, shape (len(rows), len(cols))
            Of the operator's type; the bits of `assemble`.

        Raises
        ------
        InputError
            An index out of range, or none.
        MemoryLimitError
            If the block does not fit.

        Notes
        -----
        **Cost.** That of assembling these entries; with ``outputs="full"`` the blocks of all
        examples they touch. Rows in any order, but for consecutive ones, are copied from the
        factors first.
        """
        first, second = _Lines.of(rows, self.shape[0], "row"), _Lines.of(cols, self.shape[1], "col")
        job, item = self._job, self.dtype.itemsize
        size = first.count * second.count * item
        job_fits = size <= job.memory.limit
        if not job_fits:
            raise _plan.result_too_large(job.problem, size, job.memory)
        found = np.empty((first.count, second.count), self.dtype)
        if found.size:
            self._fill(found, first, second, job.memory.limit - size)
        kept: AnyArray = found[first.picked, second.picked]
        return kept

    def _fill(self, found: AnyArray, first: _Lines, second: _Lines, limit: int) -> None:
        problem = self._job.problem
        block = problem.block
        across, cols = second.examples(block)
        if block == 1 and second.ordered and first.ordered:
            down, _ = first.examples(1)
            return self._entries(found, down, across, limit)
        wide = len(across) * block * block * self.dtype.itemsize
        down, rows = first.examples(block)
        step = max(1, min(len(down), limit // 4 // max(wide, 1)))
        for start in range(0, len(down), step):
            some = down[start : start + step]
            shape = (len(some) * block, len(across) * block)
            part = np.empty(shape, self.dtype)
            self._entries(part, some, across, limit - part.nbytes)
            here = np.flatnonzero((rows // block >= start) & (rows // block < start + step))
            found[here] = part[np.ix_(rows[here] - start * block, cols)]

    def _entries(self, out: AnyArray, rows: Any, cols: Any, limit: int) -> None:
        """Compute the blocks of ascending examples `rows` and `cols`."""
        problem = self._job.problem
        (row_factors, row_outputs), (a, b) = _some(problem, 0, rows)
        (col_factors, col_outputs), (c, d) = _some(problem, 1, cols)
        part = Problem(row_factors, col_factors, (row_outputs, col_outputs), problem.weights)
        job = replace(self._job, problem=part)
        if not job.compute(("rectangle", [a, b, c, d]), out, limit=max(limit, 0)):
            nothing = (np.empty(0, np.intp), np.empty(0, np.intp))
            error = _out.overflow_error(out, part, job.accumulate, nothing, (a, c))
            if error is not None:
                raise error


def _some(problem: Problem, side: int, examples: Any) -> tuple[tuple[Any, Outputs], Any]:
    """Return factors and outputs that hold some examples of a side, and where they are in them."""
    factors = problem.factors if side == 0 or problem.other is None else problem.other
    outputs = problem.outputs[side]
    first, count = int(examples[0]), len(examples)
    if int(examples[-1]) - first + 1 == count:
        return (factors, outputs), (first, first + count)
    if outputs.weights is not None and outputs.weights.ndim == 2:
        outputs = replace(outputs, weights=outputs.weights[examples])
    return (factors.take(examples), outputs), (0, count)


class _Lines:
    """Rows or columns that are asked for."""

    def __init__(self, index: Any, picked: Any) -> None:
        self.index, self.picked, self.count = index, picked, len(index)

    @classmethod
    def of(cls, index: Rows, length: int, what: str) -> _Lines:
        """Resolve an index with NumPy's meaning."""
        if isinstance(index, slice):
            return cls(np.arange(length)[index], slice(None))
        given = np.asarray(index)
        name = {"row": "rows", "col": "cols"}[what]
        if given.dtype == bool and given.shape == (length,):
            return cls(np.flatnonzero(given), slice(None))
        if given.ndim > 1 or (given.size and given.dtype.kind not in "iu"):
            raise InputError(
                f"{name} must be an integer, a slice, or integers or {length:,} booleans in one "
                f"axis (got {given.dtype} of shape {given.shape})"
            )
        wrong = (given < -length) | (given >= length) if given.size else np.zeros(0, bool)
        if np.any(wrong):
            bad = int(np.atleast_1d(given)[np.atleast_1d(wrong)][0])
            raise InputError(f"{name}: {bad:,} is out of range for {length:,}")
        lines = np.atleast_1d(given).astype(np.intp)
        picked: Any = 0 if given.ndim == 0 else slice(None)
        return cls(np.where(lines < 0, lines + length, lines), picked)

    @property
    def ordered(self) -> bool:
        """Whether no line comes twice and none before another."""
        return bool(np.all(np.diff(self.index) > 0))

    def examples(self, block: int) -> tuple[Any, Any]:
        """Return the examples that are touched, ascending, and each line's place among theirs."""
        examples, place = np.unique(self.index // block, return_inverse=True)
        return examples, place * block + self.index % block
