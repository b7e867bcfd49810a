"""Interrupted, shared, locked, damaged and mismatched stores: rows 72 to 93 of the fault list."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import mlp
from entk import _core, _stored, _unfinished

FORMATS = ["npy", "zarr"]
N, TILE = 20, 5
TILES = 10


@pytest.fixture
def factors(rng):
    return mlp(rng, N)


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"K.{request.param}"


class Stop(Exception):
    """Ends a run from its progress callback."""


def stop_after(tiles):
    def report(done, _total):
        if done == tiles:
            raise Stop

    return report


def interrupted(factors, path, tiles=4, **options):
    with pytest.raises(Stop):
        entk.assemble(factors, out=path, tile=TILE, progress=stop_after(tiles), **options)


def finish(factors, path, **options):
    """Resume and count the tiles that are computed."""
    seen = []
    kernel = entk.assemble(
        factors, out=path, tile=TILE, resume=True, progress=lambda *b: seen.append(b), **options
    )
    assert np.array_equal(np.asarray(kernel), entk.assemble(factors))
    assert np.array_equal(plain(path), entk.assemble(factors))
    return len(seen) - 1


def plain(path):
    if str(path).endswith(".npy"):
        return np.load(path)
    import zarr

    return zarr.open_group(path, mode="r")["kernel"][...]


def listing(folder):
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*")}


# Resume -------------------------------------------------------------------------------------------


def test_an_interrupted_run_keeps_its_tiles(factors, path):
    interrupted(factors, path, tiles=4)
    assert not path.exists()
    assert Path(f"{path}.partial").exists()
    assert finish(factors, path) == TILES - 4


def test_resume_starts_afresh_where_nothing_is(factors, path):
    assert finish(factors, path) == TILES


def test_row_80_resume_of_a_complete_store_does_no_work(factors, path):
    entk.assemble(factors, out=path, tile=TILE)
    before = {p: p.stat().st_mtime_ns for p in [path, *path.parent.rglob("*")] if p.is_file()}
    assert finish(factors, path) == -1
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_other_threads_memory_and_buffers_may_resume(factors, path):
    interrupted(factors, path, threads=1)
    finish(factors, path, threads=2, memory="200MiB")


def test_row_77_an_existing_output_needs_a_word(factors, path):
    entk.assemble(factors, out=path, tile=TILE)
    text = r"exists; pass overwrite=True or resume=True"
    with pytest.raises(entk.StoreError, match=text) as caught:
        entk.assemble(factors, out=path, tile=TILE)
    assert caught.value.errno == errno.EEXIST
    assert path.name in str(caught.value)


def test_an_unfinished_output_needs_a_word(factors, path):
    interrupted(factors, path)
    with pytest.raises(entk.StoreError, match="exists; pass overwrite=True or resume=True"):
        entk.assemble(factors, out=path, tile=TILE)
    entk.assemble(factors, out=path, tile=TILE, overwrite=True)
    assert np.array_equal(plain(path), entk.assemble(factors))


def test_row_77_the_old_kernel_lives_until_the_new_one_is_whole(factors, path, rng):
    old = mlp(rng, N)
    want_old, want = entk.assemble(old), entk.assemble(factors)
    entk.assemble(old, out=path, tile=TILE)
    interrupted(factors, path, overwrite=True)
    assert np.array_equal(plain(path), want_old)
    with entk.open(path) as kernel:
        assert np.array_equal(np.asarray(kernel), want_old)
        kernel.verify()
    finish(factors, path)
    with entk.open(path) as kernel:
        kernel.verify()
        assert np.array_equal(np.asarray(kernel), want)
    suffix = {"K.npy.entk"} if path.suffix == ".npy" else set()
    assert set(os.listdir(path.parent)) == {path.name} | suffix


def test_overwriting_a_kernel_of_another_shape_works(factors, path, rng):
    entk.assemble(mlp(rng, 7), out=path, tile=3)
    entk.assemble(factors, out=path, tile=TILE, overwrite=True)
    with entk.open(path) as kernel:
        kernel.verify()
    assert np.array_equal(plain(path), entk.assemble(factors))


def test_overwrite_replaces_a_plain_file(factors, tmp_path):
    path = tmp_path / "K.npy"
    np.save(path, np.ones(3))
    entk.assemble(factors, out=path, tile=TILE, overwrite=True)
    assert np.array_equal(np.load(path), entk.assemble(factors))


# Another problem ----------------------------------------------------------------------------------


def test_row_78_other_factors_are_refused(factors, path, rng):
    interrupted(factors, path)
    leaf = factors["fc2.weight"]
    changed = np.array(leaf.acts)
    changed[3, 1] += 1
    other = entk.Factors({**factors, "fc2.weight": entk.Outer(changed, leaf.cots)})
    with pytest.raises(entk.StoreMismatchError) as caught:
        entk.assemble(other, out=path, tile=TILE, resume=True)
    text = str(caught.value)
    assert "layer 'fc2.weight' fingerprint" in text
    assert "differs from the store's" in text
    assert "refusing to mix two kernels" in text
    finish(factors, path)
    with pytest.raises(entk.StoreMismatchError, match=r"layer 'fc2.weight' fingerprint"):
        entk.assemble(other, out=path, tile=TILE, resume=True)


@pytest.mark.parametrize(
    ("options", "field", "values"),
    [
        ({"tile": 4}, "tile", ("4", "5")),
        ({"dtype": "float64"}, "dtype", ("'float64'", "'float32'")),
        ({"accumulate": "float64"}, "accumulate", ("'float64'", "'float32'")),
        ({"triangle": "lower"}, "triangle", ("'lower'", "'full'")),
        ({"leaf_weights": {"fc1.bias": 0.5}}, "leaf_weights", ("0.5", "1.0")),
        ({"leaf_weights": {"fc1.bias": 0}}, "leaves", ("fc1.weight", "fc1.bias")),
        ({"nonfinite": "propagate"}, "nonfinite", ("'propagate'", "'raise'")),
    ],
)
def test_row_79_another_problem_is_refused_by_field(factors, path, options, field, values):
    for end in (interrupted, lambda f, p: entk.assemble(f, out=p, tile=TILE, overwrite=True)):
        end(factors, path)
        with pytest.raises(entk.StoreMismatchError) as caught:
            entk.assemble(factors, out=path, resume=True, **{"tile": TILE, **options})
        assert str(caught.value).startswith(f"{field}: ")
        assert all(value in str(caught.value) for value in values)


def test_row_79_other_shapes_and_outputs_are_refused(path, rng):
    factors = mlp(rng, N, rows=3)
    interrupted(factors, path, outputs="sum")
    with pytest.raises(entk.StoreMismatchError, match="outputs: this call has 'trace'"):
        entk.assemble(factors, out=path, tile=TILE, resume=True, outputs="trace")
    with pytest.raises(entk.StoreMismatchError, match=r"shape: .*\[60, 60\].*\[20, 20\]"):
        entk.assemble(factors, out=path, tile=TILE, resume=True)


def test_row_79_another_order_of_leaves_is_refused(factors, path):
    interrupted(factors, path)
    turned = entk.Factors(dict(reversed(list(factors.items()))))
    with pytest.raises(entk.StoreMismatchError, match=r"^leaves: "):
        entk.assemble(turned, out=path, tile=TILE, resume=True)


def test_p5_another_kernel_abi_is_refused(factors, path, monkeypatch):
    interrupted(factors, path)
    monkeypatch.setattr(_core, "KERNEL_ABI", _core.KERNEL_ABI + 1)
    with pytest.raises(entk.StoreMismatchError, match="kernel_abi: "):
        entk.assemble(factors, out=path, tile=TILE, resume=True)


# Shares -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [1, 3, 17])
def test_shares_one_after_another_make_the_kernel(factors, path, shares):
    for k in range(shares):
        kernel = entk.assemble(factors, out=path, tile=TILE, part=(k, shares))
        assert kernel.complete == (k + 1 >= min(shares, TILES))
    assert np.array_equal(plain(path), entk.assemble(factors))


def test_shares_at_the_same_time_make_the_kernel(factors, path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        kernels = list(
            pool.map(lambda k: entk.assemble(factors, out=path, tile=TILE, part=(k, 4)), range(4))
        )
    assert any(kernel.complete for kernel in kernels)
    assert np.array_equal(plain(path), entk.assemble(factors))
    suffix = {"K.npy.entk"} if path.suffix == ".npy" else set()
    assert set(os.listdir(path.parent)) == {path.name} | suffix


def test_a_share_joins_with_resume_too_and_a_late_one_finds_the_kernel(factors, path):
    entk.assemble(factors, out=path, tile=TILE, part=(0, 2))
    assert entk.assemble(factors, out=path, tile=TILE, part=(1, 2), resume=True).complete
    assert entk.assemble(factors, out=path, tile=TILE, part=(0, 2)).complete


def test_a_share_of_another_job_is_refused(factors, path, rng):
    entk.assemble(factors, out=path, tile=TILE, part=(0, 2))
    with pytest.raises(entk.StoreMismatchError, match="fingerprint"):
        entk.assemble(mlp(rng, N), out=path, tile=TILE, part=(1, 2))
    with pytest.raises(entk.StoreError, match="exists"):
        entk.assemble(factors, out=path, tile=TILE)
    assert finish(factors, path) == TILES // 2


def test_p23_a_second_writer_is_told_who_the_first_is(factors, path):
    seen = []

    def report(done, _):
        if done != 2 or seen:
            return
        for options in ({"resume": True}, {"overwrite": True}, {"part": (0, 2)}):
            with pytest.raises(entk.StoreLockedError, match=f"pid {os.getpid()} on ") as caught:
                entk.assemble(factors, out=path, tile=TILE, **options)
            seen.append(caught.value)

    entk.assemble(factors, out=path, tile=TILE, progress=report)
    assert len(seen) == 3
    assert np.array_equal(plain(path), entk.assemble(factors))


def test_p23_a_lock_dies_with_its_owner(factors, path):
    code = f"""
import os, signal
from entk import _core
lock = _core.StoreLock({str(path)!r}, shared=False)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert Path(f"{path}.partial.lock").exists()
    entk.assemble(factors, out=path, tile=TILE)
    assert not Path(f"{path}.partial.lock").exists()


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


# Ends of a run ------------------------------------------------------------------------------------


def test_row_105_an_exception_of_the_callback_passes_and_all_is_tidy(factors, path):
    before = threading.active_count()
    interrupted(factors, path, tiles=3)
    assert threading.active_count() == before
    assert not Path(f"{path}.partial.lock").exists()
    finish(factors, path)


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
    removed = entk.clean(path)
    assert removed
    assert listing(path.parent) == {"K.npy.other", "KK.npy.partial"}
    assert entk.clean(path) == []


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
    monkeypatch.setattr(_stored, "_COMMIT_SECONDS", 1e9)
    interrupted(factors, path, tiles=1)
    with entk.open(path, partial=True) as kernel:
        assert kernel.tiles_done == 1
