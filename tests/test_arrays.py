"""Arrays of every library are borrowed, not copied, and mean what they say."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import entk
from bounds import assert_same_bits
from cases import cast
from entk._arrays import SUPPORTED, host
from isolated import run_json


def borrowed(x):
    return host(x, "x")


@pytest.mark.parametrize("dtype", SUPPORTED)
def test_every_supported_type_is_borrowed(rng, dtype):
    x = cast(rng.integers(0, 2, (3, 4)), dtype)
    got = borrowed(x)
    assert got.dtype == dtype
    assert np.shares_memory(got.array, x)
    np.testing.assert_array_equal(got.values(), x.astype(np.float64))
    assert got.native().dtype == x.dtype


@settings(deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, min_side=0)), st.data())
def test_any_view_is_borrowed_as_it_lies(x, data):
    view = x[data.draw(hnp.basic_indices(x.shape, allow_ellipsis=True))]
    if not isinstance(view, np.ndarray):
        return
    view = view.transpose(data.draw(st.permutations(range(view.ndim))))
    got = borrowed(view).array
    assert (got.strides, got.shape) == (view.strides, view.shape)
    assert view.size == 0 or np.shares_memory(got, view)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "uint64"])
def test_swapped_bytes_are_borrowed_and_read_right(rng, dtype):
    x = rng.integers(0, 99, (3, 4)).astype(np.dtype(dtype).newbyteorder(">"))
    got = borrowed(x)
    assert got.dtype == dtype
    assert np.shares_memory(got.array, x)
    np.testing.assert_array_equal(got.values(), x)


def test_misaligned_and_read_only_memory_is_borrowed(rng):
    raw = rng.integers(0, 9, 8 * 12 + 1).astype(np.uint8)
    x = raw[1:].view(np.float64).reshape(3, 4)
    x.flags.writeable = False
    assert not x.flags.aligned
    assert np.shares_memory(borrowed(x).array, raw)


def test_a_memmap_is_borrowed_and_its_class_dropped(tmp_path, rng):
    np.save(tmp_path / "x.npy", rng.standard_normal((3, 4)))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    got = borrowed(x).array
    assert type(got) is np.ndarray
    assert np.shares_memory(got, x)


def test_a_matrix_is_borrowed_as_an_array(rng):
    with pytest.warns(PendingDeprecationWarning):
        x = np.matrix(rng.standard_normal((3, 4)))
    got = borrowed(x).array
    assert type(got) is np.ndarray
    assert np.shares_memory(got, x)


@pytest.mark.parametrize("x", [[[1, 2], [3, 4]], ((1.0, 2.0),), [[True, False]], [np.ones(3)] * 2])
def test_numeric_sequences_are_converted(x):
    np.testing.assert_array_equal(borrowed(x).values(), np.asarray(x, np.float64))


def test_objects_with_an_array_interface_are_borrowed(rng):
    class Wrapped:
        def __init__(self, array):
            self.__array_interface__ = array.__array_interface__
            self.keep = array

    x = rng.standard_normal((3, 4))
    assert np.shares_memory(borrowed(Wrapped(x)).array, x)


def test_objects_with_dlpack_only_are_borrowed(rng):
    class Exporter:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    x = rng.standard_normal((3, 4))
    assert np.shares_memory(borrowed(Exporter(x)).array, x)


def test_bfloat16_is_borrowed_as_its_bits(rng):
    x = cast(rng.standard_normal((3, 4)), "bfloat16")
    got = borrowed(x[:, ::-1])
    assert (got.array.dtype, got.dtype) == (np.dtype(np.uint16), "bfloat16")
    assert np.shares_memory(got.array, x)
    np.testing.assert_array_equal(got.values(), x[:, ::-1].astype(np.float64))
    assert_same_bits(got.native(), x[:, ::-1])


def test_every_bfloat16_has_its_value():
    bits = np.arange(1 << 16, dtype=np.uint16)
    x = bits.view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):
        expected = x.astype(np.float64)
    np.testing.assert_array_equal(borrowed(x).values(), expected)


# Other libraries. --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "int64", "bool"])
def test_torch_tensors_are_borrowed(dtype):
    torch = pytest.importorskip("torch")
    x = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
    got = borrowed(x)
    assert got.dtype == dtype
    assert got.array.ctypes.data == x.data_ptr()
    np.testing.assert_array_equal(got.values(), x.numpy())


def test_torch_parameters_and_strided_tensors_are_borrowed():
    torch = pytest.importorskip("torch")
    x = torch.nn.Parameter(torch.randn(4, 6))
    got = borrowed(x.T[::2])
    assert got.array.ctypes.data == x.data_ptr()
    np.testing.assert_array_equal(got.array, x.detach().numpy().T[::2])


def test_torch_bfloat16_is_borrowed_without_ml_dtypes():
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 4, requires_grad=True).to(torch.bfloat16)
    got = borrowed(x.T)
    assert got.dtype == "bfloat16"
    assert got.array.ctypes.data == x.data_ptr()
    np.testing.assert_array_equal(got.values(), x.T.detach().double().numpy())
    code = (
        "import sys; sys.modules['ml_dtypes'] = None\n"
        "import torch, entk\n"
        "x = torch.ones(3, 4, dtype=torch.bfloat16)\n"
        "F = entk.Factors({'w': entk.Outer(x, x)}).take(slice(2)).contract('sum')\n"
        "print(entk.reference.assemble(F)[0, 1])\n"
    )
    assert run_json(code) == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_jax_arrays_are_borrowed(dtype):
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.arange(12, dtype=dtype).reshape(3, 4)
    got = borrowed(x)
    assert got.dtype == dtype
    assert got.array.ctypes.data == np.asarray(x).ctypes.data
    np.testing.assert_array_equal(got.values(), np.arange(12.0).reshape(3, 4))


def test_arrays_in_files_of_other_libraries_are_read(tmp_path, rng):
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    x = rng.standard_normal((3, 4))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        np.testing.assert_array_equal(borrowed(file.create_dataset("x", data=x)).array, x)
    stored = zarr.create_array(str(tmp_path / "x.zarr"), data=x)
    np.testing.assert_array_equal(borrowed(stored).array, x)


def test_a_plain_pandas_frame_is_read(rng):
    pandas = pytest.importorskip("pandas")
    x = rng.standard_normal((3, 4))
    np.testing.assert_array_equal(borrowed(pandas.DataFrame(x)).array, x)


# Cost. -------------------------------------------------------------------------------------------


def test_factors_are_made_without_touching_the_data(tmp_path):
    """An array of 2**40 numbers that only seems to be there."""
    huge = np.broadcast_to(np.float32(1), (2**20, 2**20))
    tracemalloc.start()
    factors = entk.Factors({"w": entk.Outer(huge, huge), "b": entk.Dense(huge)})
    text, size = repr(factors), factors.take(slice(0, None, 2)).nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "4.0 TiB" in text
    assert size == 2**41
    assert peak < 1 << 20
