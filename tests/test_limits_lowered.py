"""Row 99 of the fault list: a memory limit that is lowered while a kernel is written.

`Fences` stands for what the system says; the last tests lower a limit of a process of its own.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import mlp
from entk import _core, _options
from interruptions import FORMATS
from isolated import run_json

MIB = 1 << 20
GROUP = "cgroup /job memory.max"
N, TILE = 640, 64
TILES = 55


class Fences:
    """A container with 1 GiB, of which 900 MiB are free, until it is told otherwise."""

    def __init__(self, monkeypatch):
        self.list = [("physical memory", 8 << 30, 4 << 30), (GROUP, 1 << 30, 900 * MIB)]
        monkeypatch.setattr(_core, "memory_limit", self._limit)
        # What the core was allowed, a call each.
        self.allowed = []
        monkeypatch.setattr(_core, "assemble", self._noted)

    _assemble = staticmethod(_core.assemble)

    def _limit(self):
        source, _, available = min(self.list, key=lambda fence: fence[2])
        return {"available": available, "source": source, "fences": self.list}

    def _noted(self, rows, cols, options, *rest):
        self.allowed.append(options["limit"])
        return self._assemble(rows, cols, options, *rest)

    def lower(self, available, total=None, source=GROUP):
        kept = [fence for fence in self.list if fence[0] != source]
        self.list = [*kept, (source, available + 8 * MIB if total is None else total, available)]

    def after(self, tiles, **change):
        """Return a progress function that lowers the limit when so many tiles are done."""
        return lambda done, _total: done == tiles and self.lower(**change)


@pytest.fixture
def fences(monkeypatch):
    return Fences(monkeypatch)


@pytest.fixture
def factors(rng):
    return mlp(rng, N, widths=((256, 64), (64, 64)))


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"K.{request.param}"


def test_row_99_from_the_next_tile_on_a_lowered_limit_holds(fences, factors, path):
    lower = fences.after(7, available=30 * MIB)
    kernel = entk.assemble(factors, out=path, tile=TILE, threads=1, progress=lower)
    first, then = fences.allowed[:7], fences.allowed[7:TILES]
    assert min(first) == max(first) > 600 * MIB
    # A default's share of what is left and of the two tiles that the call holds.
    assert 0 < min(then) == max(then) <= (30 * MIB + 2 * TILE**2 * 4) * _options._SHARE
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


def test_row_99_a_limit_that_leaves_too_little_stops_a_run_that_can_be_resumed(
    fences, factors, path
):
    with pytest.raises(entk.MemoryLimitError) as caught:
        entk.assemble(
            factors, out=path, tile=TILE, threads=1, progress=fences.after(7, available=MIB)
        )
    said = str(caught.value)
    assert re.match(r"needs at least [\d.]+ MiB for 1 threads?, tile ", said), said
    assert f"({GROUP}, lowered during the run)" in said
    assert "resume=True" in said
    seen = []
    fences.lower(available=200 * MIB)
    kernel = entk.assemble(
        factors, out=path, tile=TILE, resume=True, progress=lambda *both: seen.append(both)
    )
    assert seen[0] == (7, TILES)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


@pytest.mark.parametrize(
    ("memory", "change"),
    [
        ("800MiB", {"available": MIB}),
        (None, {"available": MIB, "total": 1 << 30}),
        (None, {"available": MIB, "total": 2 << 30}),
    ],
    ids=["the caller's", "others use more", "raised"],
)
def test_row_99_only_a_lowered_limit_of_a_default_counts(fences, factors, path, memory, change):
    entk.assemble(factors, out=path, tile=TILE, memory=memory, progress=fences.after(7, **change))
    assert len(set(fences.allowed[:TILES])) == 1


def test_row_99_a_fence_that_was_not_there_before_counts(fences, factors, path):
    change = {"available": 30 * MIB, "source": "RLIMIT_AS"}
    entk.assemble(factors, out=path, tile=TILE, threads=1, progress=fences.after(7, **change))
    assert max(fences.allowed[7:TILES]) < 30 * MIB < min(fences.allowed[:7])


def test_row_99_workers_share_what_a_lowered_limit_leaves(fences, factors, path):
    # Both workers have up to six tiles waiting when the seventh is done.
    with ThreadPoolExecutor(2) as pool:
        kernel = entk.assemble(
            factors,
            out=path,
            tile=TILE,
            threads=2,
            executor=pool,
            progress=fences.after(7, available=60 * MIB),
        )
    assert max(fences.allowed[:7]) > 300 * MIB
    assert max(fences.allowed[30:TILES]) <= 60 * MIB * _options._SHARE / 2
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


CODE = """
import json, resource, sys
import numpy as np, entk
from cases import mlp
factors = mlp(np.random.default_rng(0), 2000, widths=((512, 256),) * 4)

def used():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmSize")).split()[1]) << 10

def report(done, total):
    if done == 10:
        resource.setrlimit(resource.RLIMIT_AS, (used() + {left},) * 2)

try:
    entk.assemble(factors, out={path!r}, tile=200, threads=1, progress=report)
    said = "done"
except MemoryError as error:
    said = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(said))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("left", "wanted"), [(32, "done"), (1, "MemoryLimitError: needs at")])
def test_row_99_a_process_whose_limit_is_lowered_goes_on_or_stops(path, left, wanted):
    said = run_json(CODE.format(left=left * MIB, path=str(path)))
    assert said.startswith(wanted), said
    factors = mlp(np.random.default_rng(0), 2000, widths=((512, 256),) * 4)
    kernel = entk.assemble(factors, out=path, tile=200, resume=True)
    kernel.verify()
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
