"""P31: changed bytes anywhere in a store give the right bits or one of the package's errors.

``ENTK_FUZZ=100`` makes all of it a hundred times longer.
"""

import contextlib
import copy
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import entk
from cases import every_leaf, mlp
from entk import _manifest
from entk._store import FactorWriter

LONGER = int(os.environ.get("ENTK_FUZZ", "1"))
CHANGES = 150 * LONGER


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


# Changes that keep the checksums right ------------------------------------------------------------

STRANGE = ["", ".", "..", "/etc/x", "O", "float16", "float64", "lower", "Tied", "\0", "x" * 300]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-1, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(STRANGE),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(STRANGE), inner, max_size=2)
    ),
    max_leaves=4,
)
changing = settings(max_examples=CHANGES, deadline=None)


def places(value, path=()):
    """Every place in a document of JSON."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def altered(document, data):
    """Put another value somewhere, take something away, or add a key."""
    found = copy.deepcopy(document)
    *path, last = data.draw(st.sampled_from([path for path in places(found) if path]))
    parent = found
    for key in path:
        parent = parent[key]
    what = data.draw(st.sampled_from(["change", "remove", "add"]))
    if what == "remove":
        del parent[last]
    elif what == "add" and isinstance(parent, dict):
        parent[data.draw(st.sampled_from(STRANGE))] = data.draw(VALUES)
    else:
        parent[last] = data.draw(VALUES)
    return found


def sealed(document):
    return _manifest.canonical(_manifest.sealed(document))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A kernel in both formats, factors, and factors that are being written."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    factors = every_leaf(rng, 7)
    for name in ("K.npy", "K.zarr"):
        entk.assemble(factors, out=folder / name, tile=3, triangle="lower")
    factors.save(folder / "F")
    with FactorWriter(folder / "W") as writer:
        writer.append(factors.take(slice(0, 4)))
        writer.append(factors.take(slice(4, 7)))
    return folder, entk.assemble(factors)


@contextlib.contextmanager
def changed_file(file, content):
    held = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(held)


def look_at(path, want):
    """Use a kernel in every way; what it gives must be the kernel, what it raises ours."""
    with contextlib.suppress(entk.StoreError), entk.open(path, partial=True) as kernel:
        assert repr(kernel)
        kernel.verify()
        got = np.asarray(kernel)
        assert not kernel.complete or np.array_equal(got, want)


@changing
@given(data=st.data())
def test_another_manifest_of_a_npy_is_right_or_refused(stores, data):
    folder, want = stores
    file = folder / "K.npy.entk" / "manifest.json"
    with changed_file(file, sealed(altered(json.loads(file.read_bytes()), data))):
        look_at(folder / "K.npy", want)


@changing
@given(data=st.data())
def test_other_metadata_of_a_zarr_group_are_right_or_refused(stores, data):
    folder, want = stores
    file = folder / "K.zarr" / "zarr.json"
    document = json.loads(file.read_bytes())
    if data.draw(st.booleans()):
        manifest = altered(document["attributes"]["entk"], data)
        document["attributes"]["entk"] = _manifest.sealed(manifest)
    else:
        document = altered(document, data)
    with changed_file(file, _manifest.canonical(document)):
        look_at(folder / "K.zarr", want)


@changing
@given(data=st.data())
def test_other_metadata_of_a_zarr_array_are_refused(stores, data):
    folder, _ = stores
    file = folder / "K.zarr" / "kernel" / "zarr.json"
    held = file.read_bytes()
    content = _manifest.canonical(altered(json.loads(held), data))
    with changed_file(file, content):
        if content == held:
            entk.open(folder / "K.zarr")
        else:
            with pytest.raises(entk.StoreError):
                entk.open(folder / "K.zarr")


@changing
@given(data=st.data())
def test_another_manifest_of_factors_is_right_or_refused(stores, data):
    folder, want = stores
    file = folder / "F" / "manifest.json"
    document = json.loads(file.read_bytes())
    other = altered(document, data)
    with changed_file(file, sealed(other)), contextlib.suppress(entk.StoreError):
        opened = entk.open(folder / "F")
        assert repr(opened)
        same = (document["leaves"], document["arrays"]) == (other["leaves"], other["arrays"])
        assert not same or np.array_equal(entk.assemble(opened), want)


@changing
@given(data=st.data())
def test_another_head_or_log_of_a_factor_writer_is_right_or_refused(stores, data):
    folder, _ = stores
    head, log = (folder / "W.partial" / name for name in ("batches.json", "batches.log"))
    contents = {head: head.read_bytes(), log: log.read_bytes()}
    if data.draw(st.booleans()):
        contents[head] = sealed(altered(json.loads(contents[head]), data))
    else:
        lines = altered([json.loads(line) for line in contents[log].splitlines()], data)
        lines = [_manifest.sealed(one) if isinstance(one, dict) else one for one in lines]
        contents[log] = b"".join(_manifest.canonical(line) + b"\n" for line in lines)
    # What follows the last sound batch is cut off, so both files are put back.
    with (
        changed_file(head, contents[head]),
        changed_file(log, contents[log]),
        contextlib.suppress(entk.StoreError),
        FactorWriter(folder / "W", resume=True) as writer,
    ):
        assert 0 <= writer.batches_done <= 3


@changing
@given(data=st.data())
def test_another_list_of_shards_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    file = folder / "model.safetensors.index.json"
    document = altered({"metadata": {"total_size": 4}, "weight_map": {"a": "x", "b": "y"}}, data)
    file.write_bytes(_manifest.canonical(document))
    with pytest.raises(entk.StoreError):
        entk.open(file)
