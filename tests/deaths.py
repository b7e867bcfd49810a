"""Make the workers of executors die, hang and come back, for tests and `benches/workers.py`."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

import entk

WORKERS = 3
# A Dask worker that is silent for so long is given up; a stopped one comes back after LATE.
PATIENCE, LATE = 2.0, 4.0


@dataclass
class Log:
    """Who died, and what came of it."""

    deaths: list = field(default_factory=list)
    runs: list = field(default_factory=list)

    def died(self, executor, how, pid):
        self.deaths.append({"executor": executor, "how": how, "pid": pid, "time": time.time()})


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@contextlib.contextmanager
def pool():
    """A pool of processes, and a function that lists those that live now."""
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(WORKERS, mp_context=context)
    try:
        # A pool that broke is replaced by another one: both are children of this process.
        yield executor, lambda: [child.pid for child in multiprocessing.active_children()]
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def dask():
    """Dask workers under nannies, and a function that lists those that live now."""
    import dask
    import distributed

    settings = {
        "distributed.admin.system-monitor.disk": False,
        "distributed.scheduler.worker-ttl": f"{PATIENCE}s",
        "distributed.scheduler.allowed-failures": 10,
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        nannies = cluster.workers.values()
        yield client.get_executor(), lambda: [nanny.pid for nanny in nannies if nanny.pid]


@contextlib.contextmanager
def scheduler():
    """A Dask scheduler and workers in processes of their own; the pid is the scheduler's."""
    import dask
    import distributed

    command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    command += ["--port", "0", "--no-dashboard", "--no-show", "--host", "127.0.0.1"]
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "3s"}),
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as parent,
    ):
        address = next(line.split()[-1] for line in parent.stderr if "Scheduler at:" in line)
        threading.Thread(target=parent.stderr.read, daemon=True).start()
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", address]
        worker += ["--nworkers", "2", "--nthreads", "1", "--no-dashboard", "--death-timeout", "5"]
        with (
            subprocess.Popen(worker, stderr=subprocess.DEVNULL) as workers,
            distributed.Client(address) as client,
        ):
            client.wait_for_workers(2)
            yield client.get_executor(), lambda: [parent.pid]
            workers.terminate()
        parent.kill()


EXECUTORS = {"pool": pool, "dask": dask, "dask scheduler": scheduler}


def strike(how, pid):
    """Kill a process, or stop it and let it go on late."""
    with contextlib.suppress(ProcessLookupError):
        if how == "killed":
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGSTOP)
        late = threading.Timer(LATE, lambda: _go_on(pid))
        late.daemon = True
        late.start()


def _go_on(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


class Reaper:
    """A progress callback that strikes a random worker when certain tiles are done."""

    def __init__(self, log, executor, how, pids, moments, dice):
        self._log, self._executor, self._how = log, executor, how
        self._pids, self._moments, self._dice = pids, sorted(moments), dice

    def __call__(self, done, _total):
        while self._moments and done >= self._moments[0]:
            self._moments.pop(0)
            living = self._pids()
            if living:
                pid = int(self._dice.choice(living))
                strike(self._how, pid)
                self._log.died(self._executor, self._how, pid)


def run(log, name, executor, pids, how, strikes, factors, path, tile, want, dice):
    """Assemble under strikes; then, if tiles were lost three times, go on without an executor."""
    tiles = entk.plan(factors, out=str(path), tile=tile).tiles
    moments = dice.integers(0, len(tiles), strikes)
    begun, before = time.monotonic(), len(log.deaths)
    reaper = Reaper(log, name, how, pids, [int(m) for m in moments], dice)
    lost = ""
    try:
        kernel = entk.assemble(
            factors, out=path, tile=tile, executor=executor, resume=True, progress=reaper
        )
    except entk.WorkerLostError as error:
        lost = str(error)
        kernel = entk.assemble(factors, out=path, tile=tile, resume=True)
    kernel.verify()
    log.runs.append(
        {
            "executor": name,
            "how": how,
            "deaths": len(log.deaths) - before,
            "lost": lost,
            "wrong": digest(np.asarray(kernel)) != want,
            "seconds": time.monotonic() - begun,
        }
    )
    return log.runs[-1]
