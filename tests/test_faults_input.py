"""Bad leaves and arrays: one test per row of the list of faults, by its number.

Rows that need an assembly are in ``test_faults_assemble.py``.
"""

import re

import ml_dtypes
import numpy as np
import pytest

import entk
from cases import dense, normal, outer


def refused(error, text, **leaves):
    with pytest.raises(error, match=text) as caught:
        entk.Factors(leaves)
    assert isinstance(caught.value, entk.EntkError)
    return str(caught.value)


def refused_array(error, text, array):
    """Refuse an array in every place that a leaf has for one."""
    fine = np.ones((2, 3), np.float32)
    for leaf in (entk.Dense(array), entk.Outer(array, fine), entk.Outer(fine, array)):
        message = refused(error, text, **{"fc1": leaf})
        assert message.startswith("layer 'fc1'")
    refused(error, text, fc1=entk.Tied([entk.Outer(fine, array)]))


# A. Shapes and sizes. ----------------------------------------------------------------------------


def test_row_05_no_leaves_are_refused():
    for nothing in ({}, []):
        with pytest.raises(entk.InputError, match=r"at least one layer factor is needed \(got 0\)"):
            entk.Factors(nothing)


def test_row_06_leaves_with_different_n_are_refused(rng):
    text = "layer 'conv2': 9,999 samples, but layer 'fc1' has 10,000"
    refused(entk.InputError, text, fc1=dense(rng, 10_000, p=1), conv2=dense(rng, 9_999, p=1))


def test_row_07_acts_and_cots_that_disagree_in_samples_are_refused(rng):
    text = (
        r"layer 'fc1': activations \(10000, 784\) and output gradients \(9999, 10\) must have the "
        "same first axis"
    )
    acts = np.broadcast_to(np.float32(1), (10_000, 784))
    refused(entk.InputError, text, fc1=entk.Outer(acts, normal(rng, (9_999, 10))))


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        ((5, 4, 3), (5, 6, 2), r"the same positions \(4 and 6\)"),
        ((5, 4, 3), (5, 2, 6, 2), r"the same positions \(4 and 6\)"),
        ((5, 2, 4, 3), (5, 3, 4, 2), r"the same blocks \(2 and 3\)"),
        ((5, 2, 4, 3), (5, 9, 2, 7, 2), r"the same positions \(4 and 7\)"),
    ],
)
def test_row_07_acts_and_cots_that_disagree_in_positions_are_refused(rng, left, right, text):
    leaf = entk.Outer(normal(rng, left), normal(rng, right))
    message = refused(entk.InputError, text, fc1=leaf)
    assert str(left) in message
    assert str(right) in message


@pytest.mark.parametrize(
    ("ids", "cots", "text"),
    [
        ((5,), (4, 3), "the same first axis"),
        ((5, 2), (4, 2, 3), "the same first axis"),
        ((5, 2), (5, 3, 3), r"the same positions \(2 and 3\)"),
        ((5, 2), (5, 7, 3, 3), r"the same positions \(2 and 3\)"),
    ],
)
def test_row_07_ids_and_cots_that_disagree_are_refused(rng, ids, cots, text):
    leaf = entk.Lookup(np.zeros(ids, int), normal(rng, cots))
    refused(entk.InputError, f"layer 'emb': ids .* {text}", emb=leaf)


def test_row_08_leaves_with_different_outputs_are_refused(rng):
    text = "layer 'head' has 10 outputs, layer 'fc1' has 1"
    refused(entk.InputError, text, fc1=outer(rng), head=outer(rng, rows=10))


def test_row_09_one_axis_is_refused_with_advice(rng):
    text = r"has 1 axis; expected \(N, d\)\. Use x\[:, None\]"
    refused_array(entk.InputError, text, np.ones(2, np.float32))
    refused(entk.InputError, text, emb=entk.Lookup(np.zeros(2, int), np.ones(2)))


@pytest.mark.parametrize("axes", [0, 5, 6])
def test_row_09_other_numbers_of_axes_are_refused_with_the_shapes_allowed(axes):
    array = np.ones((2,) * axes)
    refused(entk.InputError, r"axes, shape .*\(N, P\) or \(N, R, P\)", b=entk.Dense(array))
    fine = np.ones((2, 2))
    refused(entk.InputError, r"\(N, T, d_in\)", w=entk.Outer(array, fine))
    refused(entk.InputError, r"\(N, R, d_out\)", w=entk.Outer(fine, array))
    refused(entk.InputError, r"\(N, T\) or \(N,\)", e=entk.Lookup(array.astype(int), fine))
    refused(entk.InputError, r"\(N, R, T, d\)", e=entk.Lookup(fine.astype(int), array))


def test_row_10_a_scalar_is_refused():
    for scalar in (3.0, np.float32(3), np.array(3.0)):
        refused_array(entk.InputError, "has 0 axes", scalar)


def test_row_10_numeric_lists_are_accepted():
    factors = entk.Factors({"w": entk.Outer([[1, 2], [3, 4]], [[1.0], [2.0]])})
    np.testing.assert_array_equal(entk.reference.assemble(factors), [[5, 22], [22, 100]])


@pytest.mark.parametrize("ragged", [[[1, 2], [3]], [[1.0], [2.0, 3.0]], [[[1]], [2]]])
def test_row_10_ragged_lists_are_refused(ragged):
    refused_array(entk.DTypeError, "ragged nested sequence", ragged)


@pytest.mark.parametrize("wrong", [[["a"]], [[None]], [[{}]], [[2**70]]])
def test_row_10_lists_of_anything_but_numbers_are_refused(wrong):
    refused_array(entk.DTypeError, "list of dtype", wrong)


def test_no_output_rows_are_refused():
    refused(entk.InputError, "layer 'b' has 0 outputs", b=entk.Dense(np.ones((5, 0, 3))))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bool"])
def test_ids_that_are_no_integers_are_refused(dtype):
    leaf = entk.Lookup(np.zeros((2, 3), dtype), np.ones((2, 3, 4)))
    refused(entk.DTypeError, f"layer 'emb': ids are {dtype}; expected integers", emb=leaf)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", ">i4", "int64", "uint64"])
def test_ids_of_any_integer_type_are_accepted(dtype):
    leaf = entk.Lookup(np.zeros((2, 3), dtype), np.ones((2, 3, 4)))
    assert entk.Factors({"emb": leaf}).n == 2


# B. Layout and dtype. ----------------------------------------------------------------------------


def test_row_19_more_than_2_to_the_31_features_are_fine():
    wide = np.broadcast_to(np.float32(1), (2, 2**31 + 1))
    factors = entk.Factors({"w": entk.Outer(wide, np.ones((2, 1), np.float32))})
    assert factors["w"]._acts.shape[-1] == 2**31 + 1


def test_row_31_bfloat16_is_known_by_its_type(rng):
    jac = normal(rng, (2, 3), "bfloat16")
    assert entk.Factors({"b": entk.Dense(jac)})["b"]._jac.dtype == "bfloat16"


def test_row_31_bfloat16_that_lost_its_type_is_refused_with_advice(tmp_path, rng):
    np.save(tmp_path / "x.npy", normal(rng, (2, 3), "bfloat16"))
    lost = np.load(tmp_path / "x.npy")
    text = (
        r"dtype V2 may be bfloat16 that lost its type in \.npy; "
        r"pass view\(ml_dtypes\.bfloat16\)"
    )
    refused_array(entk.DTypeError, text, lost)
    assert entk.Factors({"b": entk.Dense(lost.view(ml_dtypes.bfloat16))}).n == 2


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_row_32_types_below_a_byte_are_refused_with_the_supported_ones(name):
    array = np.ones((2, 3)).astype(getattr(ml_dtypes, name))
    refused_array(entk.DTypeError, rf"{name}.* not supported; use one of float32, float64", array)


@pytest.mark.skipif(np.dtype("g").itemsize == 8, reason="longdouble is float64 here")
def test_row_33_longdouble_is_refused():
    text = r"float\d+ not supported \(would lose precision silently\); cast to float64 yourself"
    refused_array(entk.DTypeError, text, np.ones((2, 3), np.longdouble))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_row_36_complex_is_refused(dtype):
    text = r"complex factors are not supported \(the kernel would need conjugates\)"
    refused_array(entk.DTypeError, text, np.ones((2, 3), dtype))


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.ones((2, 3), object), "dtype object"),
        (np.full((2, 3), "a"), "dtype <U1"),
        (np.full((2, 3), b"a"), r"dtype \|S1"),
        (np.zeros((2, 3), "M8[s]"), r"dtype datetime64\[s\]"),
        (np.zeros((2, 3), "m8[s]"), r"dtype timedelta64\[s\]"),
        (np.zeros((2, 3), [("a", "f4")]), r"dtype \[\('a'"),
        (np.zeros((2, 3), "V4"), r"dtype \|V4"),
        (None, "NoneType"),
        ("text", "str"),
        ({}, "dict"),
        ((x for x in "ab"), "generator"),
    ],
)
def test_row_37_what_is_no_number_is_refused_with_its_class(array, text):
    refused_array(entk.DTypeError, text, array)


@pytest.mark.parametrize("mask", [np.ma.nomask, False, [[0, 0, 0], [0, 1, 0]]])
def test_row_37_masked_arrays_are_refused(mask):
    array = np.ma.MaskedArray(np.ones((2, 3)), mask)
    refused_array(entk.DTypeError, r"numpy\.ma.*MaskedArray", array)


def test_row_37_pandas_missing_values_are_refused():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": pandas.array([1.0, None], dtype="Float64")})
    refused_array(entk.DTypeError, r"pandas.*DataFrame.*NA", frame)
    refused_array(entk.DTypeError, r"pandas.*Series.*NA", frame["a"])


def test_row_37_sparse_matrices_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    refused_array(entk.DTypeError, r"scipy\.sparse.*csr_array", sparse.csr_array(np.eye(2)))
    refused_array(entk.DTypeError, r"scipy\.sparse.*coo_matrix", sparse.coo_matrix(np.eye(2)))


def test_row_37_sparse_torch_tensors_are_refused():
    torch = pytest.importorskip("torch")
    refused_array(entk.DTypeError, r"layout torch\.sparse_coo", torch.eye(2).to_sparse())


def test_row_38_one_float64_leaf_makes_a_float64_kernel(rng):
    leaves = {"a": dense(rng), "b": dense(rng, dtype="float64")}
    assert entk.Factors(leaves).dtype == np.float64


class OnDevice:
    """An array of another device, as DLPack describes it."""

    def __init__(self, kind, number):
        self.where = kind, number

    def __dlpack_device__(self):
        return self.where


@pytest.mark.parametrize(
    ("kind", "name"), [((2, 0), "cuda:0"), ((8, 1), "metal:1"), ((10, 3), "rocm:3")]
)
def test_row_39_arrays_of_other_devices_are_refused(kind, name):
    text = f"array lives on {name}; move it to the CPU"
    refused_array(entk.DTypeError, text, OnDevice(*kind))


def test_row_39_torch_tensors_of_other_devices_are_refused():
    torch = pytest.importorskip("torch")
    text = "array lives on meta; move it to the CPU"
    refused_array(entk.DTypeError, text, torch.ones(2, 3, device="meta"))


@pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn"])
def test_row_39_torch_types_are_held_to_the_same_table(dtype):
    torch = pytest.importorskip("torch")
    array = torch.ones(2, 3).to(getattr(torch, dtype))
    refused_array(entk.DTypeError, "not supported", array)


def test_row_39_traced_arrays_are_refused():
    jax = pytest.importorskip("jax")

    def traced(x):
        refused(entk.DTypeError, re.escape("call outside of jit"), b=entk.Dense(x))
        return x

    jax.eval_shape(traced, np.ones((2, 3)))


def test_row_40_tensors_that_autograd_watches_are_detached():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(3, 4, dtype=dtype, requires_grad=True)
        factors = entk.Factors({"w": entk.Outer(x.T[::2], x.T[::2])})
        assert factors["w"]._acts.dtype == str(dtype).removeprefix("torch.")
        np.testing.assert_array_equal(entk.reference.assemble(factors), np.full((2, 2), 9.0))
        assert x.requires_grad


def test_row_41_a_terabyte_in_a_sparse_file_is_only_looked_at_when_needed(tmp_path):
    path = tmp_path / "x.bin"
    with path.open("wb") as file:
        file.truncate(2**40)
    x = np.memmap(path, np.int8, "r", shape=(2**20, 2**20))
    factors = entk.Factors({"w": entk.Dense(x)})
    assert factors.nbytes == 2**40
    assert factors.take(slice(5)).n == 5
