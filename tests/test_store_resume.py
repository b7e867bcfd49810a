"""Interrupted, shared, locked and mismatched stores: rows 77 to 80 of the fault list."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import mlp
from entk import _core, _kernel_files
from interruptions import FORMATS, TILE, TILES, N, finish, interrupted, plain


@pytest.fixture
def factors(rng):
    return mlp(rng, N)


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"K.{request.param}"


# Resume -------------------------------------------------------------------------------------------


def test_an_interrupted_run_keeps_its_tiles(factors, path):
    interrupted(factors, path, tiles=4)
    assert not path.exists()
    assert Path(f"{path}.partial").exists()
    assert finish(factors, path) == TILES - 4


def test_resume_starts_afresh_where_nothing_is(factors, path):
    assert finish(factors, path) == TILES


@pytest.mark.parametrize("length", [0, 40, 128])
def test_a_file_whose_header_was_not_written_yet_holds_no_tiles(factors, tmp_path, length):
    path = tmp_path / "K.npy"
    interrupted(factors, path, tiles=0)
    os.truncate(f"{path}.partial", length)
    with pytest.raises(entk.StoreIncompleteError, match="holds no tiles; resume=True goes on"):
        entk.open(path, partial=True)
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


def test_a_kernel_may_be_finished_while_it_is_opened(factors, path, monkeypatch):
    interrupted(factors, path, tiles=4)
    first = _kernel_files._open_store

    def late(name):
        if name.endswith(".partial"):
            monkeypatch.setattr(_kernel_files, "_open_store", first)
            finish(factors, path)
        return first(name)

    monkeypatch.setattr(_kernel_files, "_open_store", late)
    with entk.open(path, partial=True) as kernel:
        assert kernel.complete


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
from entk import _core, _kernel_files
lock = _core.StoreLock({str(path)!r}, shared=False)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert Path(f"{path}.partial.lock").exists()
    entk.assemble(factors, out=path, tile=TILE)
    assert not Path(f"{path}.partial.lock").exists()
