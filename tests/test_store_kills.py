"""P15, P17, P22: killed runs lose the tiles in flight, nothing else, and leave nothing unlisted."""

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import mlp
from entk import _core
from kills import MOST_LOST, THREADS, computed, series, start

KILLS = 30


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
def test_p17_random_kills_lose_nothing_but_tiles_in_flight(rng, tmp_path, suffix):
    factors = mlp(rng, 256, widths=((32, 16), (16, 8)))
    tile = 16 if suffix == "npy" else 32
    tally = series(tmp_path, suffix, factors, tile=tile, kills=KILLS, seed=1)
    assert tally.kills >= KILLS
    assert tally.wrong == 0
    assert tally.most_lost <= MOST_LOST
    suffixes = (f".{suffix}", ".npy.entk")
    assert all(name.endswith(suffixes) for name in os.listdir(tmp_path)), "litter"


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
@pytest.mark.parametrize("together", [True, False], ids=["together", "in turn"])
def test_p17_shares_that_are_killed_are_run_again(rng, tmp_path, suffix, together):
    factors = mlp(rng, 256, widths=((32, 16), (16, 8)))
    want, path, shares = entk.assemble(factors), tmp_path / f"K.{suffix}", 3
    counters = [mmap.mmap(-1, 8) for _ in range(shares)]
    for attempt in ("killed", "whole"):
        running = []
        for k in range(shares):
            counters[k][:8] = bytes(8)
            running.append(start(factors, path, 16, counters[k], part=(k, shares), resume=False))
            if attempt == "killed":
                while not (computed(counters[k]) > 3 * k or ended(running[k])):
                    time.sleep(0)
                os.kill(running[k], signal.SIGKILL)
            if not together or attempt == "killed":
                os.waitpid(running[k], 0)
        if together and attempt == "whole":
            assert [os.waitpid(child, 0)[1] for child in running] == [0] * shares
    with entk.open(path) as kernel:
        kernel.verify()
        assert np.array_equal(np.asarray(kernel), want)
    assert {name for name in os.listdir(tmp_path) if not name.startswith(path.name)} == set()


def ended(child):
    """Whether a child is over, without forgetting it."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_row_96_and_97_signals_leave_a_store_that_resumes(tmp_path, number):
    path = tmp_path / "K.npy"
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, entk
from cases import mlp
entk.assemble(mlp(np.random.default_rng(0), 256), out={str(path)!r}, tile=4, threads={THREADS},
              progress=lambda done, _: print(done, flush=True) if done % 50 == 0 else None)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while int(child.stdout.readline()) < 100:
        time.sleep(0)
    child.send_signal(number)
    _, said = child.communicate()
    # A shell shows these as 143 and 130.
    assert child.returncode == -number
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    with entk.open(path, partial=True) as kernel:
        assert kernel.tiles_done >= 100 - MOST_LOST
    factors = mlp(np.random.default_rng(0), 256)
    kernel = entk.assemble(factors, out=path, tile=4, resume=True)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


POINTS = ["after_pwrite", "after_fdatasync", "mid_log_record", "after_log", "after_log_sync"]
POINTS += ["before_rename", "after_rename", "mid_manifest"]


@pytest.mark.skipif(not hasattr(_core, "KILL_POINTS"), reason="a build without the feature `fault`")
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("point", POINTS)
def test_p17_a_kill_at_a_named_point_can_be_resumed(tmp_path, point, count, suffix):
    path = tmp_path / f"K.{suffix}"
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, entk
from cases import mlp
entk.assemble(mlp(np.random.default_rng(0), 40), out={str(path)!r}, tile=4, threads=1)
"""
    environment = os.environ | {"ENTK_KILLPOINT": f"{point}:{count}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    factors = mlp(np.random.default_rng(0), 40)
    kernel = entk.assemble(factors, out=path, tile=4, resume=True)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
    kernel.verify()
