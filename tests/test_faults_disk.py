"""Disks that are slow, lack features or forget the time: P26, rows 88, 92, 93 of the fault list."""

import json
import os
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import mlp
from entk import _committer, _core
from interruptions import FORMATS, TILE, TILES, N, finish, interrupted


@pytest.fixture
def factors(rng):
    return mlp(rng, N)


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"K.{request.param}"


class WithoutLocks:
    """The lock of a store on a file system that has none."""

    real = False

    def __init__(self, *_args, **_options):
        pass

    def release(self):
        """Nothing was held."""


def test_row_88_a_file_system_without_locks_is_said_once(factors, path, monkeypatch):
    monkeypatch.setattr(_core, "StoreLock", WithoutLocks)
    with pytest.warns(UserWarning, match="has no locks; do not write it twice") as caught:
        kernel = entk.assemble(factors, out=path, tile=TILE)
    assert len(caught) == 1
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


def test_row_88_a_file_system_that_cannot_reserve_is_said_once(factors, tmp_path, monkeypatch):
    class Unreserved:
        reserved = False

        def __init__(self, *args):
            self._sink = sink(*args)

        def __getattr__(self, name):
            return getattr(self._sink, name)

    sink = _core.TileSink
    monkeypatch.setattr(_core, "TileSink", Unreserved)
    with pytest.warns(UserWarning, match="cannot reserve space; it may run full") as caught:
        kernel = entk.assemble(factors, out=tmp_path / "K.npy", tile=TILE)
    assert len(caught) == 1
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))


@pytest.mark.parametrize("when", [0, 4_000_000_000], ids=["1970", "2096"])
def test_row_92_clocks_that_jump_do_not_matter(factors, path, when):
    interrupted(factors, path, tiles=4)
    for file in path.parent.rglob("*"):
        os.utime(file, (when, when))
    assert finish(factors, path) == TILES - 4


def test_row_92_other_content_of_the_same_age_and_size_is_other_content(rng, factors, tmp_path):
    first, second = factors, mlp(rng, N)
    first.save(tmp_path / "F")
    before = {file.name: file.stat() for file in (tmp_path / "F").iterdir()}
    path = tmp_path / "K.npy"
    entk.assemble(str(tmp_path / "F"), out=path, tile=TILE, part=(0, 2))
    for file in (tmp_path / "F").iterdir():
        file.unlink()
    (tmp_path / "F").rmdir()
    second.save(tmp_path / "F")
    for file in (tmp_path / "F").iterdir():
        found = before[file.name]
        assert file.stat().st_size == found.st_size or file.suffix == ".json"
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(entk.StoreMismatchError, match="fingerprint"):
        entk.assemble(str(tmp_path / "F"), out=path, tile=TILE, part=(1, 2))


def test_row_93_names_that_differ_in_case_only_are_two_leaves(rng, tmp_path):
    leaves = {name: entk.Dense(rng.standard_normal((3, 2))) for name in ("FC1", "fc1", "Fc1")}
    entk.Factors(leaves).save(tmp_path / "F")
    names = sorted(name.lower() for name in os.listdir(tmp_path / "F"))
    assert len(set(names)) == len(names)
    opened = entk.open(tmp_path / "F")
    for name, leaf in leaves.items():
        assert np.array_equal(np.asarray(opened[name].jac), leaf.jac)
    kernel = entk.assemble(opened, out=tmp_path / "K.zarr", leaf_weights={"fc1": 0.0})
    want = entk.assemble(entk.Factors({name: leaves[name] for name in ("FC1", "Fc1")}))
    assert np.array_equal(np.asarray(kernel), want)


@pytest.mark.parametrize("suffix", FORMATS)
def test_row_81_a_tile_that_is_recorded_but_changed_is_found(factors, tmp_path, suffix):
    """A log or a chunk list that is right about a tile whose bytes are not."""
    path = tmp_path / f"K.{suffix}"
    interrupted(factors, path, tiles=6)
    file = Path(f"{path}.partial") / "kernel/c/1/0" if suffix == "zarr" else Path(f"{path}.partial")
    data = bytearray(file.read_bytes())
    data[-4 * TILE * TILE if suffix == "zarr" else len(data) - 4 * N * N + 4 * N * TILE] ^= 1
    file.write_bytes(data)
    kernel = entk.assemble(factors, out=path, tile=TILE, resume=True)
    with pytest.raises(entk.StoreCorruptError, match=r"\(1, 0\)"):
        kernel.verify()
    assert entk.repair(path, factors).repaired == ((1, 0),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entk.open(path).verify()
    assert json.dumps(entk.open(path).info)


def test_p26_what_is_not_on_the_disk_yet_is_bounded(monkeypatch):
    lock = threading.Lock()

    class Batch:
        def __init__(self, sink, size):
            self.sink, self.size = sink, size

        def commit(self):
            with lock:
                self.sink.waiting -= self.size

    class Sink:
        def __init__(self):
            self.waiting = self.most = self.new = 0

        def write(self, _index, tile):
            with lock:
                self.waiting += tile.nbytes
                self.new += tile.nbytes
                self.most = max(self.most, self.waiting)

        def take(self):
            size, self.new = self.new, 0
            return Batch(self, size)

    monkeypatch.setattr(_committer, "_COMMIT_SECONDS", 1e9)
    sink, tile = Sink(), np.zeros((1536, 2048), np.float64)
    with _committer.Committer(sink, most=10**9) as queue:
        for index in range(24):
            queue.write(index, tile)
        queue.settle()
    # One group is on its way to the disk while the next comes together.
    assert tile.nbytes < sink.most <= 2 * (_committer._COMMIT_BYTES + tile.nbytes)


def test_p31_opening_a_store_takes_no_more_room_than_what_is_in_it(factors, path):
    entk.assemble(factors, out=path, tile=TILE)
    tracemalloc.start()
    try:
        with entk.open(path) as kernel:
            assert kernel.complete
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 64 KiB, and this manifest parsed.
    assert peak < 1 << 18
