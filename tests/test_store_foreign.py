"""Files of others: rows 60 to 71 of the fault list."""

import json
import pickle
import struct
import zipfile

import numpy as np
import pytest

import entk
from cases import mlp


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch):
    """Nothing that these tests read may reach a pickle."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a pickle was loaded")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)


def npy(header, data=b"", version=b"\x01\x00", length=None):
    size = "<H" if version == b"\x01\x00" else "<I"
    header = header.encode() if isinstance(header, str) else header
    length = len(header) if length is None else length
    return b"\x93NUMPY" + version + struct.pack(size, length) + header + data


def shaped(shape, descr="'<f8'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.fixture
def refused(tmp_path):
    """Write bytes to a file, open it, and return the error's text."""

    def run(data, error, name="K.npy"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(error) as caught:
            entk.open(tmp_path / name)
        return str(caught.value)

    return run


def test_row_60_a_truncated_npy_says_both_lengths(tmp_path):
    path = tmp_path / "K.npy"
    np.save(path, np.zeros((100, 100)))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(entk.StoreCorruptError) as caught:
        entk.open(path)
    assert str(caught.value) == "K.npy is 5,000 bytes, its header promises 80,128"
    assert path.stat().st_size == 5000


def test_row_60_a_truncated_kernel_of_ours_says_both_lengths(rng, tmp_path):
    path = tmp_path / "K.npy"
    entk.assemble(mlp(rng, 100), out=path, tile=30)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(entk.StoreCorruptError) as caught:
        entk.open(path)
    assert str(caught.value) == "K.npy is 5,000 bytes, its header promises 40,128"


def test_row_61_trailing_bytes_are_an_error_in_ours_and_a_warning_elsewhere(rng, tmp_path):
    path = tmp_path / "K.npy"
    np.save(path, np.ones((4, 4)))
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.warns(UserWarning, match="4 bytes after its data"):
        entk.open(path)
    entk.assemble(mlp(rng, 4), out=path, overwrite=True)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(entk.StoreCorruptError, match="its header promises"):
        entk.open(path)


def test_row_62_a_header_of_gigabytes_is_refused_unread(refused):
    data = npy("", version=b"\x02\x00", length=2**32 - 1)
    assert len(data) == 12
    want = ".npy header of 4,294,967,295 bytes exceeds 65,536"
    assert refused(data, entk.StoreFormatError) == want


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{}",
        "{'descr': '<f8', 'shape': (2,)}",
        "{'descr': '<f8', 'descr': '<f8', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,), 'x': 1}",
        "{'descr': '<f8', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': [2]}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)} or __import__('os')",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "(" * 30_000,
        "{" * 60_000,
        "{'descr': '<f8' 'x', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<m8[ns]', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<U4', 'fortran_order': False, 'shape': (2,)}",
    ],
    ids=range(13),
)
def test_row_63_only_the_header_of_numpy_is_read(refused, header):
    refused(npy(header, b"\0" * 16), entk.StoreFormatError)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ("(8589934592, 8589934592)", "shape (8589934592, 8589934592) overflows"),
        ("(-1, 4)", "negative"),
        (f"({2**64},)", "overflows"),
        ("(1,) * 10", "not a plain dictionary"),
    ],
)
def test_row_64_shapes_that_overflow_are_refused(refused, shape, text):
    assert text in refused(npy(shaped(shape)), entk.StoreFormatError)


def test_row_65_objects_are_refused_without_a_switch(tmp_path, refused):
    path = tmp_path / "K.npy"
    np.save(path, np.array([[{}, 1]], dtype=object), allow_pickle=True)
    want = "object arrays need pickle, which can run code; refused"
    assert refused(path.read_bytes(), entk.UnsafeFileError) == want
    record = npy(shaped("(2, 2)", "[('a', '<f8'), ('b', '|O')]"), b"\0" * 64)
    assert refused(record, entk.UnsafeFileError) == want


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pkl", "x.joblib", "x.bin", "X.PT"])
def test_row_66_pickles_are_refused_with_advice(tmp_path, refused, name):
    text = refused(pickle.dumps([1]), entk.UnsafeFileError, name)
    assert "safetensors or .npy" in text
    with pytest.raises(entk.UnsafeFileError):
        entk.assemble(str(tmp_path / name))


def test_row_69_an_npz_is_refused_before_it_is_unpacked(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("a.npy", b"\0" * 10**7)
    text = refused((tmp_path / "bomb.npz").read_bytes(), entk.StoreFormatError, "bomb.npz")
    assert ".npy" in text


# safetensors --------------------------------------------------------------------------------------


def tensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FAULTS = {
    "too large": (struct.pack("<Q", 10**12), "exceeds"),
    "short": (b"\0\0", "shorter"),
    "cut": (struct.pack("<Q", 100) + b"{}", "truncated"),
    "data cut": (tensors({"a/jac": entry(0, 16, [2, 2])}, b"\0" * 15), "truncated"),
    "trailing": (tensors({"a/jac": entry(0, 16, [2, 2])}, b"\0" * 17), "after its last tensor"),
    "overlap": (
        tensors({"a/jac": entry(0, 8, [2, 1]), "b/jac": entry(4, 12, [2, 1])}, b"\0" * 12),
        "overlaps",
    ),
    "gap": (
        tensors({"a/jac": entry(0, 8, [2, 1]), "b/jac": entry(9, 17, [2, 1])}, b"\0" * 17),
        "gap",
    ),
    "twice": (
        tensors(
            b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
            b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
        ),
        "twice",
    ),
    "odd bits": (tensors({"a/jac": entry(0, 2, [3], "F4")}, b"\0" * 2), "inside a byte"),
    "offsets": (tensors({"a/jac": entry(0, 12, [2, 2])}, b"\0" * 12), "do not hold"),
    "dtype": (tensors({"a/jac": entry(0, 12, [2, 2], "F33")}, b"\0" * 12), "unknown dtype"),
    "overflow": (tensors({"a/jac": entry(0, 1, [2**40, 2**40])}, b"\0"), "overflows"),
    "not json": (tensors(b"[[[["), "not the JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_row_67_each_fault_of_safetensors_has_its_text(refused, fault):
    data, text = FAULTS[fault]
    assert text in refused(data, entk.StoreFormatError, "x.safetensors")


def test_factors_in_safetensors_are_read(rng, tmp_path):
    from safetensors.numpy import save_file

    factors = mlp(rng, 6)
    arrays = {}
    for name, leaf in factors.items():
        if isinstance(leaf, entk.Dense):
            arrays[f"{name}/jac"] = leaf.jac
        else:
            arrays |= {f"{name}/acts": leaf.acts, f"{name}/cots": leaf.cots}
    arrays["emb/ids"] = rng.integers(0, 4, (6, 3))
    arrays["emb/cots"] = rng.standard_normal((6, 3, 2), dtype=np.float32)
    save_file(arrays, tmp_path / "F.safetensors")
    back = entk.open(tmp_path / "F.safetensors")
    want = entk.Factors(
        {
            name: entk.Lookup(arrays["emb/ids"], arrays["emb/cots"])
            if name == "emb"
            else factors[name]
            for name in back
        }
    )
    assert set(back) == {*factors, "emb"}
    np.testing.assert_array_equal(entk.assemble(back), entk.assemble(want))
    text = "are no leaf"
    save_file({"a/acts": arrays["emb/cots"]}, tmp_path / "x.safetensors")
    with pytest.raises(entk.StoreFormatError, match=text):
        entk.open(tmp_path / "x.safetensors")


def test_bfloat16_in_safetensors_is_read(rng, tmp_path):
    import ml_dtypes

    array = rng.standard_normal((4, 3)).astype(ml_dtypes.bfloat16)
    data = tensors({"a/jac": entry(0, 24, [4, 3], "BF16")}, array.tobytes())
    (tmp_path / "F.safetensors").write_bytes(data)
    back = entk.open(tmp_path / "F.safetensors")
    assert np.asarray(back["a"].jac).dtype == ml_dtypes.bfloat16
    want = entk.Factors({"a": entk.Dense(array)})
    np.testing.assert_array_equal(entk.assemble(back), entk.assemble(want))


def test_row_68_a_missing_shard_is_named(tmp_path):
    names = [f"model-{k:05d}-of-00102.safetensors" for k in range(1, 103)]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"l{k}": name for k, name in enumerate(names)}}))
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / names[37]).unlink()
    with pytest.raises(entk.StoreIncompleteError) as caught:
        entk.open(index)
    want = (
        "model.safetensors.index.json lists 102 files, 1 missing: model-00038-of-00102.safetensors"
    )
    assert str(caught.value) == want
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(entk.UnsafePathError):
        entk.open(index)


# Zarr ---------------------------------------------------------------------------------------------


def test_row_71_codecs_of_others_are_refused_by_name(rng, tmp_path):
    path = tmp_path / "K.zarr"
    entk.assemble(mlp(rng, 6), out=path, tile=3)
    name = path / "kernel" / "zarr.json"
    array = json.loads(name.read_bytes())
    for codec in ("numcodecs.pickle", "gzip"):
        array["codecs"][1] = {"name": codec}
        name.write_text(json.dumps(array))
        text = f"codec {codec!r} is not in the allow list"
        with pytest.raises(entk.StoreFormatError, match=text):
            entk.open(path)


def test_a_zarr_of_somebody_else_is_refused(tmp_path):
    import zarr

    group = zarr.create_group(tmp_path / "K.zarr")
    group.create_array("kernel", data=np.ones((4, 4)), chunks=(2, 2))
    with pytest.raises(entk.StoreFormatError, match="not a manifest of entk"):
        entk.open(tmp_path / "K.zarr")


def test_row_70_a_chunk_of_the_wrong_size_is_refused(rng, tmp_path):
    path = tmp_path / "K.zarr"
    entk.assemble(mlp(rng, 6), out=path, tile=3)
    chunk = path / "kernel" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes() * 1000)
    with pytest.raises(entk.StoreCorruptError, match="chunk c/1/0 is 40,000 bytes; it needs 40"):
        entk.open(path)


def test_row_94_missing_chunks_of_a_zarr_input_are_warned_of(rng, tmp_path):
    import zarr

    array = zarr.create_array(tmp_path / "A.zarr", shape=(6, 4), chunks=(3, 4), dtype="f4")
    array[:3] = 1
    with pytest.warns(UserWarning, match="1 of 2 chunks of the Zarr array are missing"):
        factors = entk.Factors({"a": entk.Dense(array)})
    assert entk.assemble(factors).shape == (6, 6)


def test_arrays_of_zarr_hdf5_and_memmaps_are_leaves(rng, tmp_path):
    import h5py
    import zarr

    factors = mlp(rng, 7, widths=((6, 4),))
    leaf = factors["fc1.weight"]
    group = zarr.create_group(tmp_path / "F.zarr")
    group.create_array("acts", data=leaf.acts, chunks=(3, 6))
    np.save(tmp_path / "cots.npy", leaf.cots)
    with h5py.File(tmp_path / "F.h5", "w") as file:
        file["bias"] = factors["fc1.bias"].jac
        given = entk.Factors(
            {
                "fc1.weight": entk.Outer(
                    group["acts"], np.load(tmp_path / "cots.npy", mmap_mode="r")
                ),
                "fc1.bias": entk.Dense(file["bias"]),
            }
        )
        np.testing.assert_array_equal(entk.assemble(given), entk.assemble(factors))
