"""What processes, machines and schedulers do to a run: rows 98 to 118 of the fault list."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import mlp
from entk import _core, _workers
from isolated import TESTS, run_json

START = f"""
import sys
sys.path.insert(0, {TESTS!r})
import numpy as np, entk
from cases import mlp
factors = mlp(np.random.default_rng(0), 256)
"""


def want():
    return entk.assemble(mlp(np.random.default_rng(0), 256))


def started(code, **environment):
    """Run code in a process of its own that goes on while the test does."""
    return subprocess.Popen(
        [sys.executable, "-c", START + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def test_row_98_a_stopped_run_goes_on(tmp_path):
    path = tmp_path / "K.zarr"
    code = f"""
entk.assemble(factors, out={str(path)!r}, tile=8, progress=lambda *both: print(*both, flush=True))
"""
    with started(code) as child:
        while int(child.stdout.readline().split()[0]) < 40:
            pass
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.3)
        seen = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
        time.sleep(0.3)
        assert seen == {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.is_file()}
        child.send_signal(signal.SIGCONT)
        child.communicate()
    assert child.returncode == 0
    with entk.open(path) as kernel:
        kernel.verify()
        assert np.array_equal(np.asarray(kernel), want())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_row_100_an_allocation_that_fails_is_a_memory_error_and_the_process_lives():
    code = f"""
import json, resource
sys_path = {TESTS!r}
import sys; sys.path.insert(0, sys_path)
import numpy as np, entk
from cases import mlp
factors = mlp(np.random.default_rng(0), 6000, widths=((64, 64),))
small = factors.take(slice(0, 50))
want = entk.assemble(small, threads=1)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (48 << 20),) * 2)
found = []
for options in ({{}}, {{"memory": 1 << 40}}):
    try:
        entk.assemble(factors, threads=1, **options)
    except MemoryError as error:
        found.append(type(error).__name__)
print(json.dumps([found, bool(np.array_equal(entk.assemble(small, threads=1), want))]))
"""
    found, alive = run_json(code)
    assert len(found) == 2
    assert "MemoryLimitError" in found
    assert alive


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_row_100_a_buffer_of_the_core_that_the_system_refuses_is_a_memory_error():
    code = f"""
import json, resource
import sys; sys.path.insert(0, {TESTS!r})
import numpy as np, entk
from cases import mlp
factors = mlp(np.random.default_rng(0), 1000, widths=((4096, 4096),))
out = np.zeros((1000, 1000), np.float32)
small = factors.take(slice(0, 50))
want = entk.assemble(small, threads=1)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (24 << 20),) * 2)
try:
    entk.assemble(factors, out=out, threads=1, memory=1 << 40)
except Exception as error:
    said = f"{{type(error).__name__}}: {{error}}"
print(json.dumps([said, bool(np.array_equal(entk.assemble(small, threads=1), want))]))
"""
    said, alive = run_json(code)
    assert said.startswith("MemoryLimitError: the system refused a buffer of "), said
    assert alive


def test_row_103_one_set_of_factors_and_one_store_serve_many_threads(rng, tmp_path):
    factors = mlp(rng, 60)
    kernel = entk.assemble(factors, out=tmp_path / "K.zarr", tile=7)
    expected = entk.assemble(factors)

    def use(number):
        rows = np.random.default_rng(number).permutation(60)
        stored = entk.assemble(factors, out=tmp_path / f"K{number}.npy", tile=7)
        same = np.array_equal(kernel[rows], expected[rows])
        return same and np.array_equal(np.asarray(stored), expected)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(use, range(12)))


def test_row_104_a_sub_interpreter_gets_a_message_or_the_package():
    code = """
import json, sys
try:
    import _xxsubinterpreters as interpreters
except ImportError:
    import _interpreters as interpreters
made = interpreters.create()
try:
    interpreters.run_string(made, "import entk._core")
    said = "imported"
except Exception as error:
    said = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
    assert re.search("imported|ImportError", run_json(code))


@pytest.mark.parametrize("executor", [False, True], ids=["alone", "executor"])
def test_row_106_the_callers_thread_alone_reports(rng, tmp_path, executor):
    factors = mlp(rng, 40)
    here, seen = threading.get_ident(), set()

    def report(*_):
        seen.add(threading.get_ident())

    entk.assemble(factors, progress=report)
    with ThreadPoolExecutor(3) as pool:
        options = {"executor": pool} if executor else {}
        entk.assemble(factors, out=tmp_path / "K.npy", tile=8, progress=report, **options)
    assert seen == {here}


@pytest.mark.parametrize("daemon", [False, True], ids=["thread", "daemon"])
def test_row_107_an_interpreter_that_ends_during_a_run_leaves_a_store_that_resumes(
    tmp_path, daemon
):
    path = tmp_path / "K.npy"
    code = f"""
import threading, time
begun = threading.Event()
def report(done, total):
    if done == 30:
        begun.set()
work = threading.Thread(
    target=lambda: entk.assemble(factors, out={str(path)!r}, tile=4, progress=report),
    daemon={daemon},
)
work.start()
begun.wait()
"""
    with started(code) as child:
        _, said = child.communicate()
    assert child.returncode == 0, said
    assert "panicked" not in said
    if daemon:
        time.sleep(0)
    kernel = entk.assemble(mlp(np.random.default_rng(0), 256), out=path, tile=4, resume=True)
    kernel.verify()
    assert np.array_equal(np.asarray(kernel), want())


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_row_108_a_processor_that_hides_features_gets_the_same_bits(isa):
    code = (
        START
        + """
import contextlib, hashlib, io, json
said = io.StringIO()
try:
    with contextlib.redirect_stdout(said):
        entk.show_config()
    print(json.dumps([said.getvalue(), hashlib.sha256(entk.assemble(factors)).hexdigest()]))
except entk.InputError as error:
    print(json.dumps([str(error), None]))
"""
    )
    said, hashed = run_json(code, ENTK_ISA=isa)
    if hashed is None:
        pytest.skip(said)
    import hashlib

    assert isa in said
    assert hashed == hashlib.sha256(want()).hexdigest()


def test_row_113_a_tile_that_is_done_twice_or_out_of_turn_is_the_same_tile(
    rng, tmp_path, monkeypatch
):
    factors = mlp(rng, 20)

    def twice(task, index, kept=_workers.compute):
        for number in (index, max(0, index - 1), index):
            kept(task, number)
        return index

    monkeypatch.setattr(_workers, "compute", twice)
    for suffix in ("npy", "zarr"):
        with ThreadPoolExecutor(3) as pool:
            kernel = entk.assemble(factors, out=tmp_path / f"K.{suffix}", tile=5, executor=pool)
        kernel.verify()
        assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


def test_row_114_no_socket_is_opened(tmp_path):
    code = (
        START
        + f"""
import json
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event.startswith("socket.") else None)
kernel = entk.assemble(factors, out={str(tmp_path / "K.zarr")!r}, tile=64)
entk.repair(kernel.path, factors)
entk.open(kernel.path)[3:5]
print(json.dumps(opened))
"""
    )
    assert run_json(code) == []


def test_row_115_a_run_whose_coordinator_died_goes_on(tmp_path):
    path = tmp_path / "K.zarr"
    main = tmp_path / "main.py"
    main.write_text(
        START
        + f"""
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        entk.assemble(factors, out={str(path)!r}, tile=8, executor=pool,
                      progress=lambda *both: print(*both, flush=True))
"""
    )
    with subprocess.Popen(
        [sys.executable, str(main)], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        while int(child.stdout.readline().split()[0]) < 40:
            pass
        child.kill()
        try:
            # Its workers finish the tile they have, and wait for more, which nobody brings.
            seen, kernel = gone_on(path)
        finally:
            os.killpg(child.pid, signal.SIGKILL)
    assert seen[0][0] >= 40
    kernel.verify()
    assert np.array_equal(np.asarray(kernel), want())
    assert entk.clean(path) == [f"{path}.executor.partial.lock"]


def gone_on(path):
    """Resume as soon as no worker writes any more."""
    factors = mlp(np.random.default_rng(0), 256)
    seen = []
    for _ in range(200):
        try:
            kernel = entk.assemble(
                factors, out=path, tile=8, resume=True, progress=lambda *both: seen.append(both)
            )
        except entk.StoreLockedError:
            time.sleep(0.05)
        else:
            return seen, kernel
    raise AssertionError("the store stayed locked")


def test_row_116_two_coordinators_of_one_job_do_no_harm(rng, tmp_path):
    factors = mlp(rng, 40)
    path = tmp_path / "K.npy"

    def coordinate(_):
        with ThreadPoolExecutor(2) as pool:
            try:
                return entk.assemble(factors, out=path, tile=4, executor=pool, resume=True)
            except entk.StoreError as error:
                return error

    with ThreadPoolExecutor(2) as both:
        found = list(both.map(coordinate, range(2)))
    assert any(isinstance(one, entk.Kernel) for one in found), found
    with entk.open(path) as kernel:
        kernel.verify()
        assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


@pytest.mark.skipif(not hasattr(_core, "KILL_POINTS"), reason="a build without the feature `fault`")
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
@pytest.mark.parametrize("point", ["after_pwrite", "after_fdatasync", "mid_manifest"])
def test_row_118_a_panic_is_an_internal_error_and_the_store_resumes(tmp_path, suffix, point):
    path = tmp_path / f"K.{suffix}"
    code = f"""
try:
    entk.assemble(factors, out={str(path)!r}, tile=64)
except Exception as error:
    print(type(error).__name__, error)
"""
    with started(code, ENTK_KILLPOINT=f"{point}:1:panic") as child:
        said, _ = child.communicate()
    assert child.returncode == 0
    assert re.match(rf"InternalError entk \S+: a panic at {point}; please report this", said), said
    kernel = entk.assemble(mlp(np.random.default_rng(0), 256), out=path, tile=64, resume=True)
    assert np.array_equal(np.asarray(kernel), want())
