"""P19 for factors: any operation of the writer may fail, or be the last one, and it goes on."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import entk
from cases import mlp
from entk import _factor_store, _paths, _unfinished, _writer
from entk._store import FactorWriter

BATCHES = 3
OPERATIONS = (
    *("open", "mkdir", "pwrite", "pread", "fsync", "fdatasync", "ftruncate", "fstat"),
    *("replace", "rename", "unlink", "listdir"),
)


class Killed(BaseException):
    """The process ends here: nothing after it is done."""


class Disk(SimpleNamespace):
    """The functions of `os`, counted; the n-th raises, and with `lasting` all after it."""

    def __init__(self, monkeypatch, first, error, *, lasting):
        super().__init__(count=0, first=first, error=error, lasting=lasting)
        for module in (_writer, _paths, _factor_store, _unfinished):
            monkeypatch.setattr(module, "os", self)

    def __getattr__(self, name):
        function = getattr(os, name)
        if name not in OPERATIONS:
            return function

        def counted(*args, **kwargs):
            number, self.count = self.count, self.count + 1
            if number == self.first or (self.lasting and number > self.first):
                raise self.error
            return function(*args, **kwargs)

        return counted


@pytest.fixture(scope="module")
def factors():
    return mlp(np.random.default_rng(0), 7, widths=((4, 3),))


def pieces(factors):
    return [factors.take(slice(k, k + 3)) for k in range(0, factors.n, 3)]


def write(path, factors, done, **options):
    """Write what is missing; `done` gets the number of each batch that was said to be safe."""
    with FactorWriter(path, **options) as writer:
        assert not done or writer.complete or writer.batches_done > max(done), (
            "a safe batch is lost"
        )
        for number, batch in list(enumerate(pieces(factors)))[writer.batches_done :]:
            if not writer.complete:
                writer.append(batch)
                done.append(number)
        return writer.finish()


def same(opened, factors):
    assert np.array_equal(entk.assemble(opened), entk.assemble(factors))


def sweep(tmp_path, monkeypatch, factors, error, *, lasting, caught, before=None):
    """Fail the first, the second, ... operation until there are no more; how many there were."""
    first = 0
    while True:
        path, done = tmp_path / f"{type(error).__name__}{first}", []
        if before is not None:
            before.save(path)
        with monkeypatch.context() as patch:
            disk = Disk(patch, first, error, lasting=lasting)
            try:
                same(write(path, factors, done, overwrite=before is not None), factors)
            except caught as caught_error:
                said = caught_error
            else:
                said = error
        assert said is error or (said.errno and str(path) in str(said))
        # An overwrite that did not begin leaves the old factors, and nothing to go on with.
        begun = before is None or Path(f"{path}.partial").exists()
        if before is not None and path.exists():
            opened = entk.open(path)
            begun = begun or opened.n == factors.n
            same(opened, factors if opened.n == factors.n else before)
        same(write(path, factors, done, resume=begun, overwrite=not begun), factors)
        assert not [name for name in os.listdir(tmp_path) if name.startswith(f"{path.name}.")]
        reached = disk.count > first
        if not reached:
            return first
        first += 1


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
def test_p19_every_failing_operation_is_reported_or_harmless_and_can_be_resumed(
    tmp_path, monkeypatch, factors, number, lasting
):
    error = OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
    count = sweep(tmp_path, monkeypatch, factors, error, lasting=lasting, caught=entk.StoreError)
    assert count > 40


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_p17_a_kill_at_every_operation_loses_no_batch_that_was_safe(
    tmp_path, monkeypatch, factors, replacing
):
    before = mlp(np.random.default_rng(1), 5, widths=((4, 3),)) if replacing else None
    count = sweep(
        tmp_path, monkeypatch, factors, Killed(), lasting=True, caught=Killed, before=before
    )
    assert count > 40


@pytest.mark.parametrize("name", ["pwrite", "fdatasync", "open"])
def test_a_batch_that_failed_may_be_given_to_the_same_writer_again(
    tmp_path, monkeypatch, factors, name
):
    kept = getattr(os, name)
    for attempt in range(8):
        path = tmp_path / f"{attempt}"
        calls = []

        def once(*args, attempt=attempt, calls=calls, **options):
            calls.append(args)
            if len(calls) != attempt + 1:
                return kept(*args, **options)
            if name == "pwrite":
                kept(args[0], bytes(args[1])[:-3], args[2])
            raise OSError(errno.EIO, "once")

        with FactorWriter(path) as writer, monkeypatch.context() as patch:
            patch.setattr(os, name, once)
            for batch in pieces(factors):
                try:
                    writer.append(batch)
                except entk.StoreError:
                    writer.append(batch)
        # As after a kill: only what is on the disk counts.
        with FactorWriter(path, resume=True) as writer:
            assert writer.batches_done == BATCHES
            same(writer.finish(), factors)


def test_many_small_batches_keep_few_checksums_and_stay_verifiable(tmp_path):
    factors = mlp(np.random.default_rng(0), 600, widths=((4, 3),))
    with FactorWriter(tmp_path / "F") as writer:
        for k in range(factors.n):
            writer.append(factors.take([k]))
        writer.finish()
    manifest = _factor_store.read_manifest(str(tmp_path / "F"))
    assert {len(entry["batches"]) for entry in manifest["arrays"]} == {200}
    same(entk.open(tmp_path / "F"), factors)
    data = bytearray((tmp_path / "F" / "000001.bin").read_bytes())
    data[-1] ^= 1
    (tmp_path / "F" / "000001.bin").write_bytes(data)
    with pytest.raises(entk.StoreCorruptError, match=r"000001.bin, batch 199: crc32c 0x"):
        entk.open(tmp_path / "F")


def test_a_manifest_that_could_not_be_read_back_is_not_written(tmp_path, monkeypatch):
    factors = mlp(np.random.default_rng(0), 3)
    monkeypatch.setattr("entk._manifest.LONGEST", 500)
    for path in (tmp_path / "K.npy", tmp_path / "K.zarr"):
        with pytest.raises(entk.InputError, match="names of its leaves make a manifest of"):
            entk.assemble(factors, out=path)
    with pytest.raises(entk.InputError, match="at most 500 are read"):
        factors.save(tmp_path / "F")
    assert [name for name in os.listdir(tmp_path) if name.startswith("K")] == []


@pytest.mark.parametrize(
    "bomb", [b"[" * 2**20, b"[" + b"{}," * 2**24 + b"{}]", b" " * 2**26 + b"1"]
)
def test_p31_a_manifest_that_is_a_bomb_is_refused_before_it_is_built(tmp_path, bomb):
    mlp(np.random.default_rng(0), 3).save(tmp_path / "F")
    (tmp_path / "F" / "manifest.json").write_bytes(bomb)
    with pytest.raises(entk.StoreFormatError):
        entk.open(tmp_path / "F")
