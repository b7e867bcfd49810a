"""Tiles computed by the workers of any `concurrent.futures.Executor`.

A task is a path, a small description and a tile number: workers open the factors themselves and
write their tiles into the store, so no array travels. A tile that is written twice has the same
bytes. A worker may die at any time; its tile is given to others, three times at most.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from concurrent.futures import ProcessPoolExecutor as Processes
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from entk import _core, _factor_store, _manifest, _options, _paths, _stored, _unfinished
from entk._errors import EntkError, StoreError, StoreMismatchError, WorkerLostError
from entk._factors import Factors

if TYPE_CHECKING:
    from entk._job import Bad, Job
    from entk._outputs import Outputs

_TRIES = 3
_POLL = 0.1
# How long a call that ends early waits for tiles in flight. Workers hold the store's lock for each
# of them, so nothing depends on it; one that hangs must not make its caller hang.
_GRACE = 5.0
# For executors that do not say how many workers they have, as Dask's.
_MANY = 256


@dataclass(frozen=True)
class Task:
    """What a worker needs to compute any tile of a job; small enough to travel with each."""

    token: str
    path: str
    fmt: str
    factors: str
    other: str | None
    outputs: tuple[Outputs, Outputs]
    weights: dict[str, float]
    options: dict[str, Any]
    manifest: dict[str, Any]
    bad: Bad


@dataclass
class _Open:
    """What a worker keeps between the tiles of one job."""

    token: str
    tiles: _stored.Tiles
    sink: _core.TileSink


_current: _Open | None = None


def compute(task: Task, index: int) -> int:
    """Compute one tile and write it into the store; runs in a worker."""
    lock = _core.StoreLock(task.path, shared=True)
    try:
        opened = _opened(task)
        unit = opened.tiles.unit(index)
        tile = opened.tiles.compute(unit)
        opened.sink.write(index, tile.reshape(-1).view(np.uint8))
        opened.sink.commit()
    finally:
        lock.release()
    return index


def _opened(task: Task) -> _Open:
    global _current
    if _current is None or _current.token != f"{task.token} {os.getpid()}":
        _current = None
        _current = _open(task)
    return _current


def _open(task: Task) -> _Open:
    """Open factors and store, and compare versions and fingerprints: the handshake."""
    job = _job(task)
    _manifest.compare(_manifest.of_job(job, task.manifest["triangle"]), task.manifest)
    stored = _unfinished.read_manifest(task.path + _paths.PARTIAL)
    _manifest.compare(task.manifest, stored)
    layout = _unfinished.layout_of(task.manifest, task.fmt)
    tiles = _stored.Tiles(job, layout, task.bad)
    sink = _core.TileSink(task.path, layout, _manifest.canonical(stored))
    return _Open(f"{task.token} {os.getpid()}", tiles, sink)


def _job(task: Task) -> Job:
    from entk._job import Job
    from entk._problem import Problem

    other = None if task.other is None else _factor_store.open_factors(task.other, verify=False)
    problem = Problem(
        _factor_store.open_factors(task.factors, verify=False),
        other,
        task.outputs,
        task.weights,
    )
    return Job(problem=problem, isa=_options.instruction_set(), **task.options)


def fill(
    store: _unfinished.Store,
    tiles: _stored.Tiles,
    chosen: Sequence[int],
    executor: Executor,
    report: _stored.Report | None,
) -> None:
    """Have an executor compute the chosen units.

    Raises
    ------
    WorkerLostError
        If a unit failed three times; all others were computed before. If the executor lost its
        scheduler.
    StoreLockedError
        If another process hands out the tiles of this store.
    """
    total = len(store.layout)
    done = total - len(store.missing())
    if report:
        report(done, total)
    if not chosen:
        return

    def one_more(index: int) -> None:
        nonlocal done
        done += 1
        if report:
            report(done, total)

    # Workers share the store's lock; of those who hand tiles out there is one.
    lock = _core.StoreLock(store.path + _paths.EXECUTOR, shared=False)
    try:
        task = _task(store, tiles, executor)
        Round(task, executor, tiles, one_more).run(chosen)
    finally:
        lock.release()


def _task(store: _unfinished.Store, tiles: _stored.Tiles, executor: Executor) -> Task:
    job, problem = tiles.job, tiles.job.problem
    path = os.path.abspath(store.path)
    options = {
        name: getattr(job, name)
        for name in ("tile", "dtype", "accumulate", "memory", "threads", "engine", "nonfinite")
    }
    width = _width(executor)
    # One more than its share: while a worker waits for the disk, others compute on its core.
    options["threads"] = max(1, job.threads // width) + (width > 1)
    memory = job.memory
    # A worker looks at what fences it too, and takes its part of what that leaves.
    options["memory"] = replace(memory, limit=memory.limit // width, share=memory.share / width)
    rows = _shared(problem.factors, path + _paths.SHARED[0])
    cols = None if problem.other is None else _shared(problem.other, path + _paths.SHARED[1])
    return Task(
        token=f"{os.getpid()} {os.urandom(8).hex()}",
        path=path,
        fmt=store.fmt,
        factors=rows,
        other=cols,
        outputs=problem.outputs,
        weights=problem.weights,
        options=options,
        manifest=store.manifest,
        bad=tiles.bad,
    )


def _width(executor: Executor) -> int:
    """Workers of an executor that share this machine, as far as it says."""
    count = getattr(executor, "_max_workers", 1)
    return count if isinstance(count, int) and count > 0 else 1


def _window(executor: Executor) -> int:
    """Tiles in flight: enough to keep all workers busy, few enough to suspect when one dies."""
    known = hasattr(executor, "_max_workers")
    return 2 * _width(executor) + 2 if known else _MANY


def _shared(factors: Factors, path: str) -> str:
    """Return a store of these factors that workers can open; write one if there is none."""
    source = _factor_store.source(factors)
    if source is not None:
        return os.path.abspath(source)
    _unfinished.remove(path + _paths.PARTIAL)
    _unfinished.remove(path)
    factors.save(path)
    return path


@dataclass
class Round:
    """Hands tiles out, a few more than there are workers, and notes how each attempt ended."""

    task: Task
    executor: Executor
    tiles: _stored.Tiles
    finished: Callable[[int], None]
    failures: dict[int, list[str]] = field(default_factory=dict)
    own: Executor | None = None

    def run(self, chosen: Sequence[int]) -> None:
        """Compute all, those that failed again and again excepted."""
        try:
            lost = self._pass(deque(chosen), together=_window(self.executor))
            # Which of the tiles in flight broke a pool of processes is not known: one at a time
            # it is.
            for index in lost:
                while self._again(index) and self._pass(deque([index]), together=1):
                    pass
        finally:
            if self.own is not None:
                self.own.shutdown(wait=True, cancel_futures=True)
        self._complain()

    def _again(self, index: int) -> bool:
        return len(self.failures.get(index, ())) < _TRIES

    def _pass(self, waiting: deque[int], together: int) -> list[int]:
        """Hand out tiles; return those that were in flight when workers were lost."""
        running: dict[Future[int], int] = {}
        lost: list[int] = []
        try:
            while waiting or running:
                while waiting and len(running) < together:
                    index = waiting.popleft()
                    running[self._submit(index)] = index
                ended = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED).done
                if not ended:
                    self._expect_scheduler()
                for future in ended:
                    index = running.pop(future)
                    self._note(index, future, waiting, lost, alone=together == 1)
        except BaseException:
            for future in running:
                future.cancel()
            wait([future for future in running if not future.cancelled()], timeout=_GRACE)
            raise
        return lost

    def _expect_scheduler(self) -> None:
        """Raise if Dask's scheduler is gone: its futures would stay as they are for ever."""
        client = getattr(self.executor, "_client", None)
        if getattr(client, "status", None) in ("closing", "closed"):
            raise WorkerLostError(
                "the executor lost its scheduler; tiles that were written are safe, resume=True "
                "computes what is missing"
            )

    def _note(
        self, index: int, future: Future[int], waiting: deque[int], lost: list[int], *, alone: bool
    ) -> None:
        try:
            error = future.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is None:
            self.finished(index)
            return
        if isinstance(error, StoreMismatchError) or (
            isinstance(error, EntkError) and not isinstance(error, StoreError)
        ):
            raise error  # the same everywhere
        broken = isinstance(error, BrokenExecutor)
        if broken and not alone:
            lost.append(index)
            return
        self.failures.setdefault(index, []).append(f"{type(error).__name__}: {error}")
        if broken:
            lost.append(index)
        elif self._again(index):
            waiting.append(index)

    def _submit(self, index: int) -> Future[int]:
        """Submit to the caller's executor, or to another pool when that one is broken."""
        self._expect_scheduler()
        try:
            return (self.own or self.executor).submit(compute, self.task, index)
        except BrokenExecutor:
            if not isinstance(self.executor, Processes):
                raise
        if self.own is not None:
            self.own.shutdown(wait=False, cancel_futures=True)
        context = multiprocessing.get_context("spawn")
        self.own = Processes(_width(self.executor), mp_context=context)
        return self.own.submit(compute, self.task, index)

    def _complain(self) -> None:
        poison = {i: texts for i, texts in self.failures.items() if len(texts) >= _TRIES}
        if not poison:
            return
        index, texts = min(poison.items())
        unit = self.tiles.unit(index)
        more = f" ({len(poison)} tiles in all)" if len(poison) > 1 else ""
        error = WorkerLostError(
            f"tile ({unit.i}, {unit.j}) failed on {len(texts)} workers{more}: last {texts[-1]} "
            "(out of memory?); the other tiles are safe, resume=True computes what is missing"
        )
        error.tiles = [(self.tiles.unit(i).i, self.tiles.unit(i).j) for i in sorted(poison)]  # type: ignore[attr-defined]
        raise error
