"""`assemble` to a path: which tiles are missing, computing them, and giving the store its name.

    assemble_to_path ─> Store (lock, manifest, sink) ─> fill (this process) or workers.fill (others)

A tile counts as done only when the sink has committed it. Whatever ends a run, the tiles that were
committed stay, and the same call with ``resume=True`` computes the others.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from entk import _core, _manifest, _options, _out, _paths, _plan, _unfinished
from entk._arrays import AnyArray
from entk._committer import Committer
from entk._errors import InputError, MemoryLimitError, StoreError, StoreFormatError
from entk._problem import Cut
from entk._unfinished import Store
from entk._watch import Watch

if TYPE_CHECKING:
    from entk._job import Bad, Job
    from entk._kernel import Kernel
    from entk._plan import Plan

# What the threads that write and sync take at most (measured: 5 MiB), and how many mirrored rows of
# a tile rust/store/sink.rs holds.
_WRITING_BYTES = 1 << 23
_STRIP_ROWS = 64

Report = Callable[[int, int], object]


@dataclass(frozen=True)
class Unit:
    """A tile position: entries ``i0:i1, j0:j1`` of every plane."""

    index: int
    i: int
    j: int
    i0: int
    i1: int
    j0: int
    j1: int


class Tiles:
    """Computes single tiles of a job."""

    def __init__(self, job: Job, layout: _core.Layout, bad: Bad) -> None:
        self.job = job
        self.layout = layout
        self.bad = bad
        self.rooms, self.held = buffers(job, layout)
        self._watch = Watch(job.problem)

    def unit(self, index: int) -> Unit:
        """Return the tile position of that number."""
        return Unit(index, *self.layout.unit(index))

    def shape(self, unit: Unit) -> tuple[int, ...]:
        """Return the shape of a unit's entries: planes first if the kernel has them."""
        planes = self.job.problem.planes
        shape = (unit.i1 - unit.i0, unit.j1 - unit.j0)
        return shape if planes is None else (planes, *shape)

    def compute(self, unit: Unit, room: AnyArray | None = None) -> AnyArray:
        """Compute a unit, into the beginning of `room` if there is one: flat, of the job's type.

        Raises
        ------
        KernelOverflowError
            If finite factors overflow in it.
        InputChangedError
            If a file of factors was written to; then the tile is not.
        MemoryLimitError
            If a limit that was lowered since the plan leaves too little.
        """
        self._watch.check()
        job, problem = self.job, self.job.problem
        limit = self._limit(room)
        tile = _shaped(room, self.shape(unit), job.dtype)
        cut = cut_of(unit, problem.block, symmetric=problem.other is None)
        if job.engine == "blas":
            from entk import _blas

            finite = _blas.compute(job, tile, limit=limit, cut=cut)
        else:
            finite = job.compute(cut, tile, limit=limit)
        self._watch.check()
        origin = (unit.i0 // problem.block, unit.j0 // problem.block)
        if self.bad[0].size or self.bad[1].size:
            _out.fill_nan(tile, problem, self.bad, origin)
        if not finite:
            error = _out.overflow_error(tile, problem, job.accumulate, self.bad, origin)
            if error:
                raise error
        return tile

    def _limit(self, room: AnyArray | None) -> int:
        """Return the bytes that the core may use for the next unit."""
        job = self.job
        # Tiles that were handed in are in use already.
        now = job.memory.now(0 if room is None else self.rooms * tile_bytes(job, self.layout))
        if now is not job.memory:
            try:
                replace(job, memory=now).plan(self.held)
            except MemoryLimitError as error:
                raise MemoryLimitError(
                    f"{error}; tiles that were written are safe, resume=True computes what is "
                    "missing with what there is then"
                ) from None
        return now.limit - self.held


def _shaped(room: AnyArray | None, shape: tuple[int, ...], dtype: str) -> AnyArray:
    return np.empty(shape, dtype) if room is None else room[: math.prod(shape)].reshape(shape)


def cut_of(unit: Unit, block: int, *, symmetric: bool) -> Cut:
    """Return the examples of a unit as the core takes them."""
    rows = [unit.i0 // block, unit.i1 // block]
    if symmetric and unit.i == unit.j:
        return ("square", rows)
    return ("rectangle", [*rows, unit.j0 // block, unit.j1 // block])


def buffers(job: Job, layout: _core.Layout) -> tuple[int, int]:
    """Return how many tiles are in memory at once, and bytes besides the core's work.

    Two tiles: one is computed while the one before it is written. If two do not fit, nothing is
    computed while a tile is written. Writing them takes some bytes too.
    """
    one = tile_bytes(job, layout)
    writing = _WRITING_BYTES + _STRIP_ROWS * layout.tile[0] * np.dtype(job.dtype).itemsize
    if len(layout) > 1:
        with contextlib.suppress(MemoryLimitError):
            job.plan(2 * one + writing)
            return 2, 2 * one + writing
    return 1, one + writing


def tile_bytes(job: Job, layout: _core.Layout) -> int:
    """Bytes of the largest unit."""
    rows, cols = layout.tile
    item = 4 if job.dtype == "float32" else 8
    return rows * cols * item * (job.problem.planes or 1)


def plan_to_path(job: Job) -> Plan:
    """Plan an assembly to a file: the result does not count, the tiles on their way do.

    Raises
    ------
    InputError
        If there would be more tiles than can be kept account of.
    MemoryLimitError
        If not even one tile fits beside the core's own work.
    """
    _plan.check_sizes(job.problem, job.dtype)
    try:
        layout = _core.Layout(
            "npy",
            list(job.problem.shape),
            job.tile,
            4 if job.dtype == "float32" else 8,
            symmetric=job.problem.other is None,
            lower=False,
        )
    except StoreFormatError as error:
        raise InputError(str(error)) from None
    try:
        return job.plan(buffers(job, layout)[1], by_tile=True)
    except MemoryLimitError as error:
        raise MemoryLimitError(
            f"{error}; of this {_plan.in_bytes(tile_bytes(job, layout))} are a tile: a smaller "
            f"tile= than {job.tile:,} needs less"
        ) from None


def assemble_to_path(
    job: Job,
    path: str,
    *,
    triangle: str,
    progress: object,
    resume: bool,
    overwrite: bool,
    executor: Executor | None,
    part: tuple[int, int] | None,
) -> Kernel:
    """Assemble a checked job into the store `path`.

    Parameters
    ----------
    job : Job
        What to compute, and how.
    path : str
        ``"K.npy"`` or ``"K.zarr"``.
    triangle, progress, resume, overwrite, executor, part
        As for `entk.assemble`.

    Returns
    -------
    Kernel
        Complete, except for a share that is not the last one.

    Raises
    ------
    StoreError
        One of its subclasses, by what is wrong with the store; the tiles that are safe stay.
    WorkerLostError
        If a tile failed on three workers.
    """
    from entk._kernel import Kernel

    path = _paths.clean_name(path)
    fmt = _paths.kernel_format(path)
    _check_options(job, triangle, resume, overwrite, executor, part)
    _paths.check_parent(path)
    _early_refusal(path, said=resume or overwrite or part is not None)
    plan_to_path(job)
    with _options.reporting(progress) as report:
        bad = job.scan()
        manifest = _manifest.of_job(job, triangle)
        store = Store(path, fmt, manifest, shared=part is not None or executor is not None)
        with store:
            if not store.begin(resume=resume, overwrite=overwrite, join=part is not None):
                return Kernel(path)
            tiles = Tiles(job, store.layout, bad)
            chosen = store.missing()
            if part is not None:
                chosen = [index for index in chosen if index % part[1] == part[0]]
            if executor is None:
                fill(store, tiles, chosen, report)
            else:
                from entk import _workers

                _workers.fill(store, tiles, chosen, executor, report)
            if part is not None and store.missing():
                return Kernel(path, partial=True)
            complete(store, tiles)
    return Kernel(path)


def complete(store: Store, tiles: Tiles) -> None:
    """Measure a kernel whose tiles are all there, and give it its name."""
    from entk._accuracy import certificate

    try:
        store.manifest["certificate"] = certificate(store, tiles)
    except StoreError:
        if _paths.exists(store.path + _paths.PARTIAL):
            raise
        # Another share finished it meanwhile.
    store.finish()


def _check_options(
    job: Job,
    triangle: str,
    resume: bool,  # noqa: FBT001
    overwrite: bool,  # noqa: FBT001
    executor: Executor | None,
    part: tuple[int, int] | None,
) -> None:
    if resume and overwrite:
        raise InputError("resume=True and overwrite=True contradict each other; pass one")
    if triangle == "lower" and job.problem.other is not None:
        raise InputError("triangle='lower' is for symmetric kernels; this one has other=")
    if part is not None and overwrite:
        raise InputError(
            "overwrite=True with part= would let a share remove the tiles of another; remove the "
            "old store first"
        )
    if part is not None and executor is not None:
        raise InputError("part= and executor= are two ways to share the work; pass one")
    if executor is not None and not hasattr(executor, "submit"):
        raise InputError(
            f"executor must be a concurrent.futures.Executor (got {type(executor).__name__})"
        )


def _early_refusal(path: str, *, said: bool) -> None:
    """Refuse what is there already before all factors are read."""
    if said:
        return
    for name in (path, path + _paths.PARTIAL):
        if _paths.exists(name):
            raise _unfinished.in_the_way(name)


def fill(store: Store, tiles: Tiles, chosen: Sequence[int], report: Report | None) -> None:
    """Compute the chosen units here; the one before is written meanwhile."""
    total = len(store.layout)
    done = total - len(store.missing())
    if report:
        report(done, total)
    rooms = itertools.cycle(_rooms(tiles))
    with _writing(store, tiles) as write:
        for index in chosen:
            write(index, tiles.compute(tiles.unit(index), next(rooms)))
            done += 1
            if report:
                report(done, total)


def _rooms(tiles: Tiles) -> list[AnyArray]:
    """Allocate the tiles in memory, to be filled in turn: fresh ones would be cleared each time.

    They are written at once, so that the system counts them as used from the first unit on.
    """
    one = tile_bytes(tiles.job, tiles.layout)
    item = np.dtype(tiles.job.dtype).itemsize
    return [np.full(one // item, 0, tiles.job.dtype) for _ in range(tiles.rooms)]


@contextlib.contextmanager
def _writing(store: Store, tiles: Tiles) -> Iterator[Callable[[int, AnyArray], None]]:
    """Yield a function that writes tiles in the background, at most one at a time.

    Where only one tile fits into memory the function returns when it is written.

    Whatever ends the block, what was handed over is written and committed before it is left.
    """
    waiting: list[Future[None]] = []

    def settle() -> None:
        while waiting:
            waiting.pop().result()

    def write(index: int, tile: AnyArray) -> None:
        settle()
        waiting.append(pool.submit(queue.write, index, tile))
        if tiles.rooms == 1:
            settle()

    with (
        ThreadPoolExecutor(1, thread_name_prefix="entk-write") as pool,
        Committer(store.sink, most=tiles.job.threads) as queue,
    ):
        try:
            yield write
        except BaseException:
            # The reason of the stop counts, not what a full disk adds to it.
            with contextlib.suppress(StoreError):
                settle()
                queue.commit()
                queue.settle()
            raise
        settle()
        queue.commit()
        queue.settle()
