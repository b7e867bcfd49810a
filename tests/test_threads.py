"""Who works: how many threads a call starts, and that they share what there is to do."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import normal
from entk import _plan
from entk._job import Job

TASKS = Path("/proc/self/task")
pytestmark = pytest.mark.skipif(
    not (TASKS / str(threading.get_native_id()) / "schedstat").exists(),
    reason="needs Linux's /proc",
)


def processor_time(task):
    """Nanoseconds that a thread has run; none if it is gone."""
    try:
        return int((TASKS / task / "schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def workers(work):
    """Nanoseconds that each thread ran which lived during the call only."""
    found, done, watching = {}, threading.Event(), threading.Event()

    def watch():
        before = set(os.listdir(TASKS))
        watching.set()
        while not done.is_set():
            for task in set(os.listdir(TASKS)) - before:
                found[task] = max(found.get(task, 0), processor_time(task))
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    watching.wait()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return list(found.values())


def computing(factors, threads, **options):
    """Return a long call of the core: its workers are all threads of their own.

    The look at the values, which has others, is left out.
    """
    job = Job.make(factors, threads=threads, **options)
    out = np.zeros(job.problem.shape, job.dtype)
    return lambda: job.compute(_plan.whole_cut(job.problem), out, limit=1 << 30)


def test_output_pairs_are_shared_out_where_there_is_one_tile(rng):
    shapes = (8, 16), (8, 128, 4096)
    factors = entk.Factors({"w": entk.Outer(*(normal(rng, shape) for shape in shapes))})
    seconds = workers(computing(factors, threads=2))
    assert len(seconds) == 2
    # Half of the work if both have a core; a machine that is busy may give one of them less.
    assert min(seconds) > max(seconds) / 20


def test_no_thread_is_started_that_would_have_no_tile(rng):
    factors = entk.Factors({"w": entk.Dense(normal(rng, (40, 1 << 18)))})
    assert len(workers(computing(factors, threads=16))) == 1


def test_as_many_threads_work_as_were_asked_for(rng):
    factors = entk.Factors({"w": entk.Dense(normal(rng, (3000, 512)))})
    assert len(workers(computing(factors, threads=5))) == 5
