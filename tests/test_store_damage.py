"""Damaged stores, full disks and the ends of runs: rows 72 to 76, 81 to 92, 96 and 105."""

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import mlp
from entk import _committer, _core, _patience, _unfinished
from interruptions import FORMATS, TILE, TILES, N, finish, interrupted, listing, plain


@pytest.fixture
def factors(rng):
    return mlp(rng, N)


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"K.{request.param}"


# Damage -------------------------------------------------------------------------------------------


def flip(file, at):
    data = bytearray(Path(file).read_bytes())
    data[at] ^= 16
    Path(file).write_bytes(bytes(data))


def test_row_72_a_missing_chunk_is_an_error(factors, tmp_path):
    path = tmp_path / "K.zarr"
    entk.assemble(factors, out=path, tile=TILE)
    (path / "kernel" / "c" / "3" / "1").unlink()
    with pytest.raises(entk.StoreIncompleteError, match="chunk c/3/1 is missing"):
        entk.open(path)
    assert entk.repair(path, factors).repaired == ((3, 1),)
    assert np.array_equal(plain(path), entk.assemble(factors))


def test_row_73_a_changed_chunk_is_found_before_it_is_used(factors, tmp_path):
    path = tmp_path / "K.zarr"
    entk.assemble(factors, out=path, tile=TILE)
    flip(path / "kernel" / "c" / "3" / "1", 17)
    with entk.open(path) as kernel:
        assert np.array_equal(kernel[0], entk.assemble(factors)[0])
        want = r"tile \(3, 1\): crc32c 0x[0-9a-f]{8} != 0x[0-9a-f]{8}; run entk.repair\(path\)"
        with pytest.raises(entk.StoreCorruptError, match=want):
            kernel[16]
        with pytest.raises(entk.StoreCorruptError, match=r"1 bad tile: \(3, 1\)") as caught:
            kernel.verify()
        assert caught.value.tiles == [(3, 1)]


def test_row_73_a_changed_entry_of_a_npy_is_found(factors, tmp_path):
    path = tmp_path / "K.npy"
    entk.assemble(factors, out=path, tile=TILE)
    for row, col, tile in [(17, 6, (3, 1)), (6, 17, (3, 1)), (0, 0, (0, 0))]:
        held = path.read_bytes()
        flip(path, len(held) - 4 * N * N + 4 * (row * N + col))
        with entk.open(path) as kernel:
            with pytest.raises(entk.StoreCorruptError) as caught:
                kernel.verify()
            assert caught.value.tiles == [tile]
        assert entk.repair(path, factors).repaired == (tile,)
        assert path.read_bytes() == held


def test_repair_needs_the_same_factors_and_names_what_it_did(factors, path, rng):
    entk.assemble(factors, out=path, tile=TILE)
    assert "nothing to repair" in str(entk.repair(path, factors))
    with pytest.raises(entk.StoreMismatchError):
        entk.repair(path, mlp(rng, N))
    with entk.open(path) as kernel:
        assert kernel.verify().checked == TILES


def test_repair_knows_outputs_and_weights_from_the_manifest(rng, tmp_path):
    factors = mlp(rng, 12, rows=3)
    for outputs in ("diagonal", "trace", 2, "full"):
        path = tmp_path / f"{outputs}.zarr"
        options = {"outputs": outputs, "leaf_weights": {"*.bias": 0.5}}
        entk.assemble(factors, out=path, tile=6, **options)
        chunk = "c/1/1/0" if outputs == "diagonal" else "c/1/0"
        flip(path / "kernel" / chunk, 3)
        assert entk.repair(path, factors).repaired == ((1, 0),)
        with entk.open(path) as kernel:
            kernel.verify()
            assert np.array_equal(np.asarray(kernel), entk.assemble(factors, **options))


@pytest.mark.parametrize("cut", [1, 31, 33])
def test_row_83_a_torn_log_tail_is_cut(factors, tmp_path, cut):
    path = tmp_path / "K.npy"
    interrupted(factors, path, tiles=6)
    log = Path(f"{path}.partial.entk/tiles.log")
    log.write_bytes(log.read_bytes()[:-cut])
    redone = finish(factors, path)
    assert redone == TILES - (6 - -(-cut // 32))


def test_row_81_a_log_that_lists_tiles_of_a_missing_file_is_refused(factors, tmp_path):
    path = tmp_path / "K.npy"
    interrupted(factors, path)
    Path(f"{path}.partial").unlink()
    Path(f"{path}.partial").touch()
    with pytest.raises(entk.StoreCorruptError, match="is 0 bytes, its header promises"):
        entk.assemble(factors, out=path, tile=TILE, resume=True)
    entk.assemble(factors, out=path, tile=TILE, overwrite=True)


def test_row_82_a_broken_manifest_is_a_format_error(factors, path):
    entk.assemble(factors, out=path, tile=TILE)
    name = path / "zarr.json" if path.suffix == ".zarr" else f"{path}.entk/manifest.json"
    held = Path(name).read_bytes()
    for broken in (
        b"",
        held[: len(held) // 2],
        held.replace(b'"tile":5', b'"tile":4'),
        b"[" * 9999,
    ):
        Path(name).write_bytes(broken)
        with pytest.raises(entk.StoreFormatError):
            entk.open(path)
    whole = json.loads(held)
    manifest = whole["attributes"]["entk"] if path.suffix == ".zarr" else whole
    manifest["format"] = 4
    manifest["versions"]["entk"] = "3.1"
    Path(name).write_text(json.dumps(whole))
    with pytest.raises(
        entk.StoreFormatError, match=r"written by entk 3.1 \(format 4\); this version reads 1-1"
    ):
        entk.open(path)


def test_row_76_links_in_a_store_are_refused(factors, tmp_path):
    path = tmp_path / "K.zarr"
    entk.assemble(factors, out=path, tile=TILE)
    chunk = path / "kernel" / "c" / "3" / "1"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(entk.UnsafePathError):
        entk.open(path)


def test_row_91_a_deleted_output_is_noticed(factors, tmp_path):
    path = tmp_path / "K.npy"

    def report(done, _):
        if done == 2:
            Path(f"{path}.partial").unlink()

    with pytest.raises(entk.StoreIncompleteError, match="was deleted during the run"):
        entk.assemble(factors, out=path, tile=TILE, progress=report)


# The disk -----------------------------------------------------------------------------------------


def limited(path, n, tmp_path, suffix, size):
    """Assemble under RLIMIT_FSIZE in a process of its own."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, entk
from cases import mlp
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try:
    entk.assemble(mlp(np.random.default_rng(0), {n}), out={str(path)!r}, tile=64)
except entk.StoreError as error:
    print(type(error).__name__, error.errno, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("suffix", FORMATS)
def test_row_85_the_file_size_limit_is_an_error_with_its_name(tmp_path, suffix):
    text = limited(tmp_path / f"K.{suffix}", 128, tmp_path, suffix, 8192)
    assert text.startswith(f"StoreError {errno.EFBIG} ")
    assert "EFBIG" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_row_85_a_directory_without_permission_is_an_error(factors, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(entk.StoreError, match="EACCES"):
        entk.assemble(factors, out=tmp_path / "K.npy")


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a small file system in memory")
def test_row_84_a_kernel_larger_than_the_disk_is_refused_at_once():
    free = os.statvfs("/dev/shm")
    n = int((free.f_bavail * free.f_frsize / 4) ** 0.5) + 4096
    big = entk.Factors({"w": entk.Dense(np.broadcast_to(np.float32(1), (n, 1)))})
    for suffix in FORMATS:
        path = Path(f"/dev/shm/entk-test-{os.getpid()}.{suffix}")
        with pytest.raises(entk.StoreSpaceError) as caught:
            entk.assemble(big, out=path, tile=4096)
        assert caught.value.errno == errno.ENOSPC
        text = str(caught.value)
        assert "no space left on /dev/shm" in text
        assert "needs" in text
        assert "free" in text
        assert "0 of" in text
        assert "call resume" in text
        assert not list(Path("/dev/shm").glob(f"{path.name}*"))


def small_disks():
    """Whether this user may mount a file system of its own, in a namespace of its own."""
    done = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(not small_disks(), reason="needs unshare and user namespaces")
def test_row_84_a_disk_that_fills_during_the_run_keeps_its_tiles(tmp_path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np, entk
from cases import mlp
factors, filler = mlp(np.random.default_rng(0), 256), {str(tmp_path)!r} + "/filler"

def fill(done, total):
    if done != 20:
        return
    try:
        with open(filler, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass

for suffix in ("zarr", "npy"):
    path = {str(tmp_path)!r} + "/K." + suffix
    try:
        entk.assemble(factors, out=path, tile=32, progress=fill)
    except entk.StoreSpaceError as error:
        print(error)
    os.unlink(filler)
    kernel = entk.assemble(factors, out=path, tile=32, resume=True)
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
    entk.assemble(factors.take([0]), out=path, overwrite=True)
"""
    script = f'mount -t tmpfs -o size=2m tmpfs "{tmp_path}" && exec "{sys.executable}" -c "$0"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    zarr, npy = done.stdout.splitlines()
    assert zarr.startswith(f"no space left on {tmp_path} (needs ")
    # Writing runs behind the count that progress shows, by some tiles.
    safe = re.search(r"(\d+) of 36 tiles are safe; free space and call resume", zarr)
    assert 0 < int(safe[1]) < 36
    # The matrix was reserved at the start: only the log or the manifest can meet a full disk.
    assert " of 36 tiles are safe; free space and call resume" in npy


# Ends of a run ------------------------------------------------------------------------------------


def test_row_105_an_exception_of_the_callback_passes_and_all_is_tidy(factors, path):
    before = threading.active_count()
    interrupted(factors, path, tiles=3)
    assert threading.active_count() == before
    assert not Path(f"{path}.partial.lock").exists()
    finish(factors, path)


def test_row_105_a_callback_that_hangs_is_named_once(factors, path, monkeypatch, capsys):
    monkeypatch.setattr(_patience, "SECONDS", 0.05)
    hung = []

    def report(done, _):
        if done == 2 and not hung:
            hung.append(done)
            time.sleep(0.3)

    entk.assemble(factors, out=path, tile=TILE, progress=report)
    said = capsys.readouterr().err
    assert said.count("the progress function has not returned") == 1
    assert entk.open(path).verify().checked == TILES


def test_row_105_a_source_of_batches_that_hangs_is_named(monkeypatch, capsys):
    monkeypatch.setattr(_patience, "SECONDS", 0.05)

    def slow():
        yield 1
        time.sleep(0.3)
        yield 2

    assert list(_patience.items(slow(), "the source of batches")) == [1, 2]
    assert capsys.readouterr().err.count("the source of batches has not returned") == 1


def test_row_96_ctrl_c_leaves_a_store_that_resumes(factors, path):
    def report(done, _):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entk.assemble(factors, out=path, tile=TILE, progress=report)
    assert finish(factors, path) == TILES - 3


def test_clean_removes_exactly_what_a_run_left(factors, path):
    (path.parent / "K.npy.other").touch()
    (path.parent / "KK.npy.partial").touch()
    interrupted(factors, path)
    Path(f"{path}.partial.lock").touch()
    Path(f"{path}.partial.entk.4711.0.9.tmp").mkdir()
    removed = entk.clean(path)
    assert removed
    assert listing(path.parent) == {"K.npy.other", "KK.npy.partial"}
    assert entk.clean(path) == []
    Path(f"{path}.partial.lock").touch()
    assert entk.clean(path) == [f"{path}.partial.lock"]
    assert listing(path.parent) == {"K.npy.other", "KK.npy.partial"}


def test_clean_leaves_a_finished_kernel_alone(factors, path):
    entk.assemble(factors, out=path, tile=TILE)
    before = listing(path.parent)
    assert entk.clean(path) == []
    assert listing(path.parent) == before


def test_clean_refuses_while_somebody_writes(factors, path):
    interrupted(factors, path)
    lock = _core.StoreLock(str(path), shared=True)
    with pytest.raises(entk.StoreLockedError):
        entk.clean(path)
    lock.release()
    entk.clean(path)


def test_a_stop_between_the_last_two_renames_is_made_good(factors, tmp_path):
    path = tmp_path / "K.npy"
    entk.assemble(factors, out=path, tile=TILE)
    os.rename(f"{path}.entk", f"{path}.partial.entk")
    with entk.open(path) as kernel:
        kernel.verify()
    assert finish(factors, path) == -1
    assert Path(f"{path}.entk").exists()


def test_a_stop_before_the_last_rename_is_made_good(factors, path, monkeypatch):
    monkeypatch.setattr(_unfinished.Store, "finish", lambda self: None)
    with pytest.raises(entk.StoreIncompleteError, match="unfinished"):
        entk.assemble(factors, out=path, tile=TILE)
    monkeypatch.undo()
    assert finish(factors, path) == 0


def test_a_tile_in_flight_is_written_before_an_exception_leaves(factors, path, monkeypatch):
    monkeypatch.setattr(_committer, "_COMMIT_SECONDS", 1e9)
    interrupted(factors, path, tiles=1)
    with entk.open(path, partial=True) as kernel:
        assert kernel.tiles_done == 1
