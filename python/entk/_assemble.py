"""`assemble`, `plan` and `diagonal`: factors to kernels in memory; paths go on to the stores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from entk import _options, _out, _plan
from entk._arrays import AnyArray
from entk._errors import InputError, MemoryLimitError, SizeError
from entk._factors import FactorsLike
from entk._job import Job
from entk._options import Progress
from entk._plan import Plan
from entk._problem import Problem

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from numpy.typing import ArrayLike, DTypeLike

    from entk._kernel import Kernel

OutputsLike: TypeAlias = "str | int | ArrayLike | tuple[ArrayLike, ArrayLike] | None"


def assemble(
    factors: FactorsLike,
    other: FactorsLike | None = None,
    *,
    tile: int = 4096,
    outputs: OutputsLike = None,
    out: AnyArray | str | os.PathLike[str] | None = None,
    dtype: DTypeLike | None = None,
    accumulate: DTypeLike | None = None,
    memory: int | str | None = None,
    threads: int | None = None,
    engine: Literal["fused", "blas"] = "fused",
    leaf_weights: Mapping[str, float] | None = None,
    nonfinite: Literal["raise", "propagate"] = "raise",
    triangle: Literal["full", "lower"] = "full",
    progress: Progress = False,
    resume: bool = False,
    overwrite: bool = False,
    executor: Executor | None = None,
    part: tuple[int, int] | None = None,
) -> AnyArray | Kernel:
    r"""Assemble the empirical neural tangent kernel of factors.

    Computes :math:`K_{(n,r),(m,s)} = \sum_\ell \sum_{g,t,u} \langle A^\ell_{ngt}, A^\ell_{mgu}
    \rangle \langle B^\ell_{nrgt}, B^\ell_{msgu} \rangle` ([1]_, eq. 6 contracted by structure), or
    the smaller kernels that `outputs` names, without forming a Gram matrix or a Jacobian in memory.

    Parameters
    ----------
    factors : Factors, mapping, list of pairs, or path
        What `entk.Factors` accepts, or the path of a factor store.
    other : as `factors`, optional
        The M column examples of the same network. None: the kernel of `factors` with itself.
    tile : int, default 4096
        Side of a tile in rows of the kernel: the unit of progress and of storage. Rounded down to
        whole examples, clipped to the kernel. Changes no bits.
    outputs : {"full", "sum", "trace", "diagonal"}, int, array or tuple of arrays, optional
        Which kernel. None: as the factors are (R = 1: N x M; R = O: ``"full"``). ``"sum"`` is the
        pNTK [2]_, ``"trace"`` the mean over logits; both carry the factor 1/O. Weights are (O,) or
        (N, O); for a cross kernel a tuple of two.
    out : ndarray or path, optional
        An array to fill, of any order and strides; or ``"K.npy"`` or ``"K.zarr"``.
    dtype : {"float32", "float64"}, optional
        Type of the result. None: float32, or float64 if any leaf is float64 or a wide integer.
    accumulate : {"float32", "float64"}, optional
        Type of the sums. None: `dtype`. float64 sums of float32 factors cost twice the time and
        leave one rounding.
    memory : int or str, optional
        Bound in bytes (``"4GiB"``) on what the call adds. None: a safe share of what the process
        may still use; control groups and resource limits are respected. For a path a limit of these
        that is lowered during the run holds from the next tile on.
    threads : int, optional
        Workers. None: ``ENTK_NUM_THREADS``, or all usable cores.
    engine : {"fused", "blas"}
        ``"fused"`` is bit-reproducible. ``"blas"`` calls SciPy's BLAS.
    leaf_weights : mapping, optional
        Leaf name or glob to a factor >= 0 on that leaf's kernel; 0 drops the leaf unread.
    nonfinite : {"raise", "propagate"}
        What NaN and infinity in a factor do: raise, or make exactly that example's rows and columns
        NaN.
    triangle : {"full", "lower"}
        For files of symmetric kernels: store both halves or one.
    progress : bool or function, default False
        True shows a bar; a function is called with (done, total).
    resume, overwrite, executor, part
        For files: see `entk.Kernel` and the guide on stores.

    Returns
    -------
    ndarray or Kernel
        (N R, M R) for ``"full"``, (O, N, M) for ``"diagonal"``, else (N, M); `out` if that was an
        array; a `Kernel` for a path. Symmetric results equal their transpose bit for bit.

    Raises
    ------
    InputError, DTypeError, NonFiniteError, SizeError, MemoryLimitError
        Before any work.
    KernelOverflowError
        If finite factors overflow; the text names the first entry and its leaf.

    Notes
    -----
    **Cost.** ``N (N + 1) sum(d_in + d_out)`` flops for leaves of one position (half of it is the
    other triangle); arrays that leaves share are contracted once. `entk.plan` counts exactly.

    **Memory.** Besides the result: packed panels of a block of examples, ``2 * side * sum(d_in +
    d_out)`` accumulators' bytes at most, less if `memory` asks for it.

    **Precision.** ``|K - exact| <= gamma_m sqrt(S_ii S_jj)``, m about ``min(d, 256) + d / 256`` per
    factor (Higham's gamma); observed below 16 units in the last place. Every entry has the same
    bits for any tile, thread count, memory limit, layout, instruction set and order of examples.

    References
    ----------
    .. [1] R. Novak, J. Sohl-Dickstein, S. S. Schoenholz, "Fast Finite Width Neural Tangent
       Kernel", ICML 2022.
    .. [2] M. A. Mohamadi, W. Bae, D. J. Sutherland, "A Fast, Well-Founded Approximation to the
       Empirical Neural Tangent Kernel", ICML 2023, eq. 2.

    Examples
    --------
    >>> import numpy as np, entk
    >>> acts = np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    >>> cots = np.array([[1.0], [2.0], [1.0]])
    >>> entk.assemble({"fc.weight": entk.Outer(acts, cots), "fc.bias": entk.Dense(cots)})
    array([[ 6.,  6.,  4.],
           [ 6.,  8.,  2.],
           [ 4.,  2., 10.]])
    """
    job = Job.make(
        factors,
        other,
        tile=tile,
        outputs=outputs,
        dtype=dtype,
        accumulate=accumulate,
        memory=memory,
        threads=threads,
        engine=engine,
        leaf_weights=leaf_weights,
        nonfinite=nonfinite,
    )
    _options.choice("triangle", triangle, ("full", "lower"))
    share = _plan.check_part(part)
    if isinstance(out, str | os.PathLike):
        from entk import _stored

        return _stored.assemble_to_path(
            job,
            os.fspath(out),
            triangle=triangle,
            progress=progress,
            resume=resume,
            overwrite=overwrite,
            executor=executor,
            part=share,
        )
    _refuse_file_options(triangle, resume, overwrite, executor, share)
    return _assemble_in_memory(job, out, progress)


def _refuse_file_options(
    triangle: str, resume: object, overwrite: object, executor: object, part: object
) -> None:
    given = {
        "triangle='lower'": triangle == "lower",
        "resume=True": bool(resume),
        "overwrite=True": bool(overwrite),
        "executor=": executor is not None,
        "part=": part is not None,
    }
    for name, set_ in given.items():
        if set_:
            raise InputError(f"{name} is for files; pass out='K.npy' or out='K.zarr'")


def _assemble_in_memory(job: Job, out: object, progress: object) -> AnyArray:
    problem = job.problem
    size = _plan.check_sizes(problem, job.dtype)
    held = 0 if out is not None else size
    if out is None:
        job.check_result_fits(size)
    target = None if out is None else _out.check_out(out, problem, job.dtype)
    with _options.reporting(progress) as report:
        job.plan(held)
        bad = job.scan()
        kernel = _empty(problem.shape, job.dtype) if target is None else target
        if kernel.size == 0:
            return kernel
        limit = job.memory.limit - held
        if job.engine == "blas":
            from entk import _blas

            finite = _blas.compute(job, kernel, limit=limit, progress=report)
        else:
            cut = _plan.whole_cut(problem)
            finite = job.compute(cut, kernel, limit=limit, progress=report)
    if bad[0].size or bad[1].size:
        _out.fill_nan(kernel, problem, bad, (0, 0))
    if not finite and (error := _out.overflow_error(kernel, problem, job.accumulate, bad)):
        raise error
    return kernel


def _empty(shape: tuple[int, ...], dtype: str) -> AnyArray:
    try:
        return np.empty(shape, dtype)
    except ValueError as error:
        raise SizeError(f"a result of shape {shape} cannot be allocated: {error}") from error
    except MemoryError as error:
        raise MemoryLimitError(
            f"{error}; the process may have no more, whatever memory= allows: "
            'write to disk with out="K.npy"'
        ) from error


def plan(
    factors: FactorsLike,
    other: FactorsLike | None = None,
    *,
    out: AnyArray | str | os.PathLike[str] | None = None,
    **options: Any,
) -> Plan:
    """Say what `assemble` would do with the same arguments, without reading a value.

    Parameters
    ----------
    factors, other, out, **options
        As for `assemble`.

    Returns
    -------
    Plan
        Tiles, flops, bytes, and the contraction of every leaf; prints as a table.

    Raises
    ------
    InputError, DTypeError, SizeError, MemoryLimitError
        What `assemble` would raise before work, but for what the values would tell.

    Examples
    --------
    >>> import numpy as np, entk
    >>> F = entk.Factors([(np.ones((100, 64), np.float32), np.ones((100, 10), np.float32))])
    >>> p = entk.plan(F, memory="1GiB", threads=2)
    >>> p.flops, p.out_bytes, len(p.tiles)
    (747400, 40000, 1)
    """
    ignored = {"progress", "resume", "overwrite", "executor", "part", "triangle"}
    job = Job.make(factors, other, **{k: v for k, v in options.items() if k not in ignored})
    size = _plan.check_sizes(job.problem, job.dtype)
    to_file = isinstance(out, str | os.PathLike)
    if out is None:
        job.check_result_fits(size)
    elif not to_file:
        _out.check_out(out, job.problem, job.dtype)
    if to_file:
        from entk import _stored

        planned: Plan = _stored.plan_to_path(job)
        return planned
    return job.plan(size if out is None else 0)


def diagonal(factors: FactorsLike, *, outputs: OutputsLike = None) -> AnyArray:
    """Return the diagonal of the symmetric kernel, bit for bit that of `assemble`.

    Parameters
    ----------
    factors : as for `assemble`
        N examples.
    outputs : as for `assemble`, optional
        Which kernel.

    Returns
    -------
    ndarray
        (N R,) for ``"full"``, (O, N) for ``"diagonal"``, else (N,).

    Raises
    ------
    InputError, DTypeError, NonFiniteError, KernelOverflowError
        As `assemble`.

    Notes
    -----
    **Cost.** O(N): a few dozen entries beside each diagonal entry are computed and thrown away.

    Examples
    --------
    >>> import numpy as np, entk
    >>> entk.diagonal({"bias": entk.Dense(np.array([[1.0, 2.0], [3.0, 0.0]]))})
    array([5., 9.])
    """
    job = Job.make(factors, outputs=outputs)
    job.scan()
    return diagonal_of(job)


def diagonal_of(job: Job) -> AnyArray:
    """Return the diagonal of a symmetric kernel whose values have been looked at."""
    problem = job.problem
    planes = problem.factors.rows if problem.mode in ("full", "diagonal") else 1
    found = np.empty((planes, 1, problem.factors.n), job.dtype)
    if found.size:
        options = problem if problem.mode != "full" else _by_plane(problem)
        job_of = job if options is problem else Job(**{**vars(job), "problem": options})
        finite = job_of.compute(("diagonal", [0, problem.factors.n]), found, limit=job.memory.limit)
        if not finite:
            return _raise_overflow(job, found)
    if problem.mode == "full":
        return np.ascontiguousarray(found[:, 0].T).ravel()
    kept: AnyArray = found[:, 0] if problem.mode == "diagonal" else found[0, 0]
    return kept


def _by_plane(problem: Problem) -> Problem:
    """Return the problem of the blocks' diagonals only, which are what a full diagonal needs."""
    from entk._outputs import Outputs

    each = Outputs("diagonal", label="diagonal")
    return Problem(problem.factors, problem.other, (each, each), problem.weights)


def _raise_overflow(job: Job, found: AnyArray) -> AnyArray:
    plane, _, n = (int(i) for i in np.argwhere(~np.isfinite(found))[0])
    at = n * job.problem.block + (plane if job.problem.block > 1 else 0)
    raise _out._describe(job.problem, (at, at), job.dtype, job.accumulate)
