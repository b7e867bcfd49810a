"""P31: changed bytes anywhere in a store give the right bits or one of the package's errors."""

import contextlib
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import entk
from cases import mlp

CHANGES = 150


def changed(data, rng):
    """Flip a bit, cut, repeat or overwrite a piece."""
    data = bytearray(data)
    at = int(rng.integers(len(data) + 1))
    kind = rng.integers(5)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = data[at : at + 40]
    elif kind == 3:
        data[at : at + 8] = rng.bytes(8)
    else:
        number = rng.choice(
            [b"-1", b"1e999", b"99999999999999999999", b"[[[[", b'"\\u0000"', b"NaN"]
        )
        data[at : at + 2] = bytes(number)
    return bytes(data)


def files(path):
    """Every file of a store, beside it too."""
    found = [path, *path.parent.glob(f"{path.name}.entk/*")] if path.is_file() else path.rglob("*")
    return sorted(file for file in found if file.is_file())


@pytest.mark.parametrize("name", ["K.npy", "K.zarr"])
def test_a_changed_kernel_is_right_or_refused(rng, tmp_path, name):
    factors = mlp(rng, 11)
    path = tmp_path / name
    want = np.asarray(entk.assemble(factors, out=path, tile=4, triangle="lower"))
    for _ in range(CHANGES):
        file = Path(rng.choice(files(path)))
        held = file.read_bytes()
        file.write_bytes(changed(held, rng))
        try:
            with entk.open(path) as kernel:
                got = np.asarray(kernel)
            assert np.array_equal(got, want), file
        except entk.StoreError:
            pass
        file.write_bytes(held)
    with entk.open(path) as kernel:
        kernel.verify()


def test_changed_factors_are_right_or_refused(rng, tmp_path):
    factors = mlp(rng, 7)
    path = tmp_path / "F"
    factors.save(path)
    want = entk.assemble(factors)
    for _ in range(CHANGES):
        file = Path(rng.choice(files(path)))
        held = file.read_bytes()
        file.write_bytes(changed(held, rng))
        with contextlib.suppress(entk.StoreError):
            assert np.array_equal(entk.assemble(entk.open(path)), want), file
        file.write_bytes(held)


def test_an_unfinished_store_with_changes_resumes_right_or_is_refused(rng, tmp_path):
    factors = mlp(rng, 11)
    want = entk.assemble(factors)
    for number in range(CHANGES // 3):
        path = tmp_path / f"K{number}.npy"
        entk.assemble(factors, out=path, tile=4, part=(0, 2))
        side = Path(f"{path}.partial.entk")
        file = Path(rng.choice(sorted(side.iterdir())))
        file.write_bytes(changed(file.read_bytes(), rng))
        try:
            kernel = entk.assemble(factors, out=path, tile=4, resume=True)
            assert np.array_equal(np.asarray(kernel), want), file
        except entk.StoreError:
            pass


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_random_files_are_refused(rng, tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    heads = [b"", b"\x93NUMPY\x01\x00v\x00{", b"\x93NUMPY\x02\x00", b"\x10\0\0\0\0\0\0\0{"]
    for _ in range(CHANGES):
        path.write_bytes(bytes(rng.choice(heads)) + rng.bytes(int(rng.integers(200))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with pytest.raises((entk.StoreError, entk.InputError)):
                entk.open(path)
    shutil.rmtree(tmp_path)
    os.mkdir(tmp_path)
