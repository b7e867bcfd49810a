"""Tiles computed by executors whose workers may die: rows 110 to 112 of the fault list."""

import multiprocessing
import os
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

import deaths
import entk
import worker_functions
from cases import every_leaf, mlp
from deaths import Log, digest, run
from entk import _core, _workers

TILE = 5
TILES = 10


@pytest.fixture
def factors(rng):
    return mlp(rng, 20)


@pytest.fixture(scope="module")
def pool():
    """Two processes that see the tests' modules."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        yield pool


@pytest.fixture
def own_pool():
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(2, mp_context=context)
    yield pool
    pool.shutdown(wait=True, cancel_futures=True)


def only_the_store(folder, name):
    return {
        entry for entry in os.listdir(folder) if ".died" not in entry and ".failed" not in entry
    } == ({name, f"{name}.entk"} if name.endswith(".npy") else {name})


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_processes_make_the_bits_of_one_process(factors, pool, tmp_path, suffix):
    seen = []
    path = tmp_path / f"K.{suffix}"
    kernel = entk.assemble(
        factors, out=path, tile=TILE, executor=pool, progress=lambda *both: seen.append(both)
    )
    assert kernel.complete
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
    assert seen == [(done, TILES) for done in range(TILES + 1)]
    assert only_the_store(tmp_path, path.name)
    kernel.verify()


def test_factors_of_a_store_are_opened_where_they_are(rng, pool, tmp_path):
    factors = every_leaf(rng, 12, rows=2)
    factors.save(tmp_path / "F")
    for outputs in ("diagonal", "full", np.array([1.0, -1.0])):
        path = tmp_path / "K.zarr"
        kernel = entk.assemble(
            str(tmp_path / "F"), out=path, tile=TILE, executor=pool, outputs=outputs, overwrite=True
        )
        assert np.array_equal(np.asarray(kernel), entk.assemble(factors, outputs=outputs))
    assert set(os.listdir(tmp_path)) == {"F", "K.zarr"}


def test_cross_kernels_and_missing_values_pass_through(rng, pool, tmp_path):
    both = mlp(rng, 20)
    both["fc1.weight"].acts[4, 1] = np.nan
    rows, cols = both.take(slice(0, 12)), both.take(slice(12, 20))
    options = {"nonfinite": "propagate", "leaf_weights": {"*.bias": 0.5}}
    kernel = entk.assemble(rows, cols, out=tmp_path / "K.npy", tile=TILE, executor=pool, **options)
    np.testing.assert_array_equal(np.asarray(kernel), entk.assemble(rows, cols, **options))
    assert only_the_store(tmp_path, "K.npy")


def test_threads_are_an_executor_too(factors, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        kernel = entk.assemble(factors, out=tmp_path / "K.zarr", tile=TILE, executor=pool)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


def test_an_executor_resumes_what_a_process_began(factors, pool, tmp_path):
    entk.assemble(factors, out=tmp_path / "K.npy", tile=TILE, part=(0, 3))
    seen = []
    kernel = entk.assemble(
        factors,
        out=tmp_path / "K.npy",
        tile=TILE,
        executor=pool,
        resume=True,
        progress=lambda *both: seen.append(both),
    )
    assert seen[0] == (4, TILES)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


def test_p33_a_dead_worker_costs_its_tiles_only(factors, own_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(_workers, "compute", worker_functions.dying_once)
    kernel = entk.assemble(factors, out=tmp_path / "K.zarr", tile=TILE, executor=own_pool)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
    assert only_the_store(tmp_path, "K.zarr")


def test_row_111_a_tile_that_kills_its_workers_is_named_and_the_others_finish(
    factors, own_pool, tmp_path, monkeypatch
):
    path = tmp_path / "K.npy"
    monkeypatch.setattr(_workers, "compute", worker_functions.dying_always)
    with pytest.raises(entk.WorkerLostError, match=r"tile \(2, 0\) failed on 3 workers") as caught:
        entk.assemble(factors, out=path, tile=TILE, executor=own_pool)
    assert caught.value.tiles == [(2, 0)]
    assert "out of memory?" in str(caught.value)
    with entk.open(path, partial=True) as kernel:
        assert kernel.tiles_done == TILES - 1
    kernel = entk.assemble(factors, out=path, tile=TILE, resume=True)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


@pytest.mark.parametrize("how", ["failing_twice", "losing_answers"])
def test_p33_a_failing_tile_is_tried_three_times(factors, pool, tmp_path, monkeypatch, how):
    monkeypatch.setattr(_workers, "compute", getattr(worker_functions, how))
    kernel = entk.assemble(factors, out=tmp_path / "K.zarr", tile=TILE, executor=pool)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


def test_row_111_a_tile_that_always_fails_is_named(factors, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(_workers, "compute", worker_functions.failing_always)
    with pytest.raises(entk.WorkerLostError, match=r"a worker.s disk is away"):
        entk.assemble(factors, out=tmp_path / "K.zarr", tile=TILE, executor=pool)
    with entk.open(tmp_path / "K.zarr", partial=True) as kernel:
        assert kernel.tiles_done == TILES - 1


def test_row_112_workers_with_other_factors_are_refused(factors, pool, rng, tmp_path):
    factors.save(tmp_path / "F")
    opened = entk.open(tmp_path / "F")
    other = mlp(rng, 20)
    os.rename(tmp_path / "F", tmp_path / "old")
    other.save(tmp_path / "F")
    with pytest.raises(entk.StoreMismatchError, match="fingerprint"):
        entk.assemble(opened, out=tmp_path / "K.zarr", tile=TILE, executor=pool)


def test_an_overflow_in_a_worker_is_an_overflow(factors, pool, tmp_path):
    factors["fc1.weight"].acts[9] = 1e30
    factors["fc1.weight"].cots[9] = 1e30
    with pytest.raises(entk.KernelOverflowError, match=r"layer 'fc1.weight'"):
        entk.assemble(factors, out=tmp_path / "K.zarr", tile=TILE, executor=pool)


class Silent(Executor):
    """Takes tiles and never answers, as Dask does whose scheduler died."""

    def __init__(self, status=None, most=1000):
        self._client = SimpleNamespace(status=status)
        self._left = most

    def submit(self, *_args):
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        future = Future()
        future.set_running_or_notify_cancel()
        return future


def test_p33_a_lost_scheduler_is_an_error_and_no_hang(factors, tmp_path, monkeypatch):
    monkeypatch.setattr(_workers, "_GRACE", 0.1)
    path = tmp_path / "K.zarr"
    for status in ("closing", "closed"):
        with pytest.raises(entk.WorkerLostError, match="lost its scheduler; tiles that were"):
            entk.assemble(factors, out=path, tile=TILE, executor=Silent(status), overwrite=True)
    kernel = entk.assemble(factors, out=path, tile=TILE, resume=True)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
    assert only_the_store(tmp_path, "K.zarr")


def test_p33_a_worker_that_hangs_does_not_keep_ctrl_c_waiting(factors, tmp_path, monkeypatch):
    monkeypatch.setattr(_workers, "_GRACE", 0.1)
    with pytest.raises(KeyboardInterrupt):
        entk.assemble(factors, out=tmp_path / "K.zarr", tile=TILE, executor=Silent(most=3))
    kernel = entk.assemble(factors, out=tmp_path / "K.zarr", tile=TILE, resume=True)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


def test_p33_killed_and_stopped_workers_leave_the_bits_of_one_process(factors, tmp_path):
    """A short form of ``benches/workers.py``."""
    want, log, dice = digest(entk.assemble(factors)), Log(), np.random.default_rng(0)
    for how in ("killed", "stopped"):
        with deaths.pool() as (executor, pids):
            path = tmp_path / f"{how}.zarr"
            done = run(log, "pool", executor, pids, how, 1, factors, path, TILE, want, dice)
        assert not done["wrong"]
    assert [one["how"] for one in log.deaths] == ["killed", "stopped"]


def test_dask_workers_make_the_bits_of_one_process(factors, tmp_path):
    distributed = pytest.importorskip("distributed")
    import dask

    dask.config.set({"distributed.admin.system-monitor.disk": False})
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        kernel = entk.assemble(
            factors, out=tmp_path / "K.zarr", tile=TILE, executor=client.get_executor()
        )
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
    assert only_the_store(tmp_path, "K.zarr")


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_a_commit_returns_when_its_tile_is_safe_though_another_thread_took_it_along(
    tmp_path, suffix
):
    """Threads of one worker share a sink: whoever commits first takes the tiles of all."""
    side, tiles, threads = 4, 240, 3
    path = str(tmp_path / f"K.{suffix}")
    layout = _core.Layout(suffix, [side * tiles, side], side, 4, symmetric=False, lower=False)
    sink, *observers = (_core.TileSink(path, layout, b"{}") for _ in range(1 + threads))
    together = threading.Barrier(threads)

    def work(number):
        tile = np.zeros(4 * side * side, np.uint8)
        unsafe = []
        for index in range(number, tiles, threads):
            sink.write(index, tile)
            together.wait()
            sink.commit()
            unsafe += [] if observers[number].done()[index] else [index]
        return unsafe

    with ThreadPoolExecutor(threads) as pool:
        assert [index for unsafe in pool.map(work, range(threads)) for index in unsafe] == []
