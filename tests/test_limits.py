"""E: the memory that an assembly adds stays within its limit.

The fixture trees of other machines are in rust/limits.rs.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import entk
from entk import _core

MIB = 1 << 20


def test_the_limit_names_where_it_comes_from():
    found = _core.memory_limit()
    assert found["available"] > 0
    assert re.match(r"cgroup /.* memory\.|RLIMIT_|physical memory", found["source"])


def run(code, **options):
    """Run code in a process of its own, and return what it prints as JSON."""
    head = f"""
import json, resource, sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, entk
from cases import mlp

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
"""
    done = subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_p25_rlimits_bound_the_default():
    code = """
before = entk._core.memory_limit()
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
after = entk._core.memory_limit()
print(json.dumps([before, after]))
"""
    before, after = run(code)
    assert after["available"] <= 4 << 30
    assert after["source"] == "RLIMIT_AS" or after["available"] <= before["available"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("suffix", ["npy", "zarr"])
@pytest.mark.parametrize(("limit", "n", "tile"), [(32, 3000, 512), (128, 6000, 1024)])
def test_p24_an_assembly_to_disk_stays_within_its_limit_and_its_plan(
    tmp_path, suffix, limit, n, tile
):
    path = str(tmp_path / f"K.{suffix}")
    code = f"""
factors = mlp(np.random.default_rng(0), {n}, widths=((64, 32),))
options = {{"out": {path!r}, "tile": {tile}, "memory": {limit * MIB}, "threads": 2}}
# Once on a small piece, so that code and buffers of the libraries count for neither side.
small = factors.take(slice(0, 300))
entk.assemble(small, **options | {{"out": {path!r} + ".small.{suffix}", "tile": 100}})
planned = entk.plan(factors, **options).peak_bytes
before = peak()
entk.assemble(factors, **options)
print(json.dumps([planned, peak() - before, {n} * {n} * 4]))
"""
    planned, measured, result = run(code)
    assert planned <= limit * MIB
    assert measured <= planned
    assert result > planned


def test_a_limit_that_is_too_small_says_what_would_do(tmp_path):
    code = f"""
factors = mlp(np.random.default_rng(0), 2000)
try:
    entk.assemble(factors, out={str(tmp_path / "K.npy")!r}, memory="1MiB")
except entk.MemoryLimitError as error:
    print(json.dumps(str(error)))
"""
    text = run(code)
    assert "needs at least" in text
    least = re.search(r"needs at least ([0-9.]+) MiB", text)
    assert least, text
    factors = entk.Factors({"w": entk.Dense(np.ones((2000, 4), np.float32))})
    assert entk.plan(factors, out="K.npy", memory="1GiB").peak_bytes > MIB
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("room", [1, 2])
def test_one_tile_is_enough_where_two_do_not_fit(tmp_path, room):
    code = f"""
factors = mlp(np.random.default_rng(0), 2500, widths=((64, 32),))
options = {{"out": {str(tmp_path / "K.npy")!r}, "tile": 1250, "threads": 2}}
entk.assemble(factors.take(slice(0, 300)), out={str(tmp_path / "S.npy")!r}, tile=100)
least = entk.plan(factors, memory="1GiB", **options).peak_bytes - (2 - {room}) * 1250**2 * 4
planned = entk.plan(factors, memory=least, **options).peak_bytes
before = peak()
kernel = entk.assemble(factors, memory=least, **options)
measured = peak() - before
same = bool((np.asarray(kernel) == entk.assemble(factors)).all())
print(json.dumps([least, planned, measured, same]))
"""
    least, planned, measured, same = run(code)
    assert planned <= least
    assert measured <= planned
    assert same
