"""Bad shapes, layouts and types given to `entk.assemble`: a test per row of the list of faults."""

import os
import re

import numpy as np
import pytest

import entk
from bounds import assert_same_bits, check
from cases import dense, every_leaf, mlp, normal, outer
from isolated import run_json
from layouts import LAYOUTS, read_only, relaid
from memory import smallest


def ones(*shape, dtype="float32"):
    """An array of any size that takes no memory."""
    return np.broadcast_to(np.ones((), dtype), shape)


# A. Shapes and sizes. ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_row_01_no_examples_give_an_empty_kernel(rng, rows):
    empty = every_leaf(rng, 5, rows).take(slice(0))
    assert entk.assemble(empty).shape == (0, 0)
    assert entk.assemble(empty, outputs="diagonal").shape == ((rows, 0, 0))
    assert entk.diagonal(empty).shape == (0,)


@pytest.mark.parametrize("name", ["K.npy", "K.zarr"])
def test_row_01_no_examples_make_a_valid_empty_file(rng, tmp_path, name):
    kernel = entk.assemble(mlp(rng).take(slice(0)), out=tmp_path / name)
    assert (kernel.shape, kernel.complete) == ((0, 0), True)
    assert np.asarray(entk.open(tmp_path / name)).shape == (0, 0)
    if name.endswith(".npy"):
        assert np.load(tmp_path / name).shape == (0, 0)


def test_row_02_one_example_is_a_kernel(rng):
    factors = every_leaf(rng, 1)
    check(entk.assemble(factors), factors)
    assert entk.assemble(factors).shape == (1, 1)


@pytest.mark.parametrize("sizes", [(5, 0), (0, 5), (0, 0)])
def test_row_03_a_side_without_examples_gives_an_empty_kernel(rng, sizes):
    left, right = (mlp(rng, 5).take(slice(n)) for n in sizes)
    assert entk.assemble(left, right).shape == sizes


def test_row_04_a_leaf_without_features_contributes_zero_and_warns(rng):
    cots = normal(rng, (5, 3))
    rest = {"fc2": outer(rng)}
    with pytest.warns(UserWarning, match="layer 'fc1' has 0 input features"):
        got = entk.assemble({"fc1": entk.Outer(np.empty((5, 0), np.float32), cots), **rest})
    assert_same_bits(got, entk.assemble(rest))


def test_row_04_the_contribution_of_no_features_is_exactly_zero(rng):
    with pytest.warns(UserWarning, match="0 input features"):
        kernel = entk.assemble({"fc1": entk.Outer(np.empty((5, 0)), rng.standard_normal((5, 3)))})
    assert_same_bits(kernel, np.zeros((5, 5)))


def test_row_11_a_kernel_beyond_the_address_space_is_refused():
    factors = entk.Factors({"b": entk.Dense(ones(3_000_000_000, 10, 1, dtype="float64"))})
    for work in (entk.plan, entk.assemble):
        with pytest.raises(entk.SizeError, match=r"3,000,000,000 x 10 outputs") as caught:
            work(factors)
        assert "7.2e21 bytes" in str(caught.value)
        assert "2^63" in str(caught.value)
        assert isinstance(caught.value, OverflowError)


def test_row_12_row_numbers_beyond_64_bits_are_refused_before_work():
    factors = entk.Factors({"b": entk.Dense(ones(2**60, 4, 1, dtype="int8"))})
    with pytest.raises(entk.SizeError, match=r"2\^63"):
        entk.plan(factors)


def test_row_13_a_result_beyond_the_memory_limit_is_refused_with_a_way_out():
    factors = entk.Factors({"b": entk.Dense(ones(100_000, 2, dtype="float64"))})
    with pytest.raises(entk.MemoryLimitError, match=r"74\.5 GiB.*16\.0 GiB") as caught:
        entk.assemble(factors, memory="16GiB")
    assert 'out="K.npy"' in str(caught.value)
    assert isinstance(caught.value, MemoryError)


def test_row_14_the_smallest_workable_limit_is_named_and_works(rng):
    factors = entk.Factors({"w": entk.Outer(normal(rng, (70, 9_000)), normal(rng, (70, 3)))})
    options = {"tile": 64, "threads": 2}
    enough, text = smallest(factors, **options)
    assert "2 threads" in text
    assert_same_bits(entk.assemble(factors, memory=enough, **options), entk.assemble(factors))


def test_row_15_very_many_outputs_are_refused_with_smaller_kernels():
    factors = entk.Factors({"b": entk.Dense(ones(1000, 100_000, 2))})
    with pytest.raises((entk.MemoryLimitError, entk.SizeError), match="trace"):
        entk.plan(factors, memory="16GiB")


@pytest.mark.parametrize("tile", [0, -1])
def test_row_16_a_tile_without_rows_is_refused(rng, tile):
    with pytest.raises(entk.InputError, match=re.escape(f"tile must be >= 1 (got {tile})")):
        entk.assemble(mlp(rng), tile=tile)


@pytest.mark.parametrize("tile", [True, 2.5, float("nan"), "4"])
def test_row_16_a_tile_that_is_no_integer_is_refused(rng, tile):
    with pytest.raises((entk.InputError, entk.DTypeError), match="tile"):
        entk.assemble(mlp(rng), tile=tile)


def test_row_16_a_tile_beyond_the_kernel_is_clipped(rng):
    factors = mlp(rng)
    assert_same_bits(entk.assemble(factors, tile=10**9), entk.assemble(factors))


@pytest.mark.parametrize("threads", [0, -3, 10**6, True])
def test_row_17_a_number_of_threads_out_of_range_is_refused(rng, threads):
    with pytest.raises(entk.InputError, match="threads must be None or between 1 and 1024"):
        entk.assemble(mlp(rng), threads=threads)


@pytest.mark.parametrize("threads", ["4", 2.5])
def test_row_17_threads_that_are_no_integer_are_refused(rng, threads):
    with pytest.raises((entk.InputError, entk.DTypeError), match="threads"):
        entk.assemble(mlp(rng), threads=threads)


@pytest.mark.parametrize("memory", ["4GB", "4GiB", 4e9, 2**32, np.int64(2**32)])
def test_row_18_a_memory_limit_is_a_number_of_bytes(rng, memory):
    assert entk.assemble(mlp(rng), memory=memory).shape == (5, 5)


@pytest.mark.parametrize(
    "memory", ["4 gigs", "", "GiB", "-4GiB", 0.5, -1, 0, True, "nan", float("nan"), float("inf")]
)
def test_row_18_anything_else_is_refused_with_examples(rng, memory):
    with pytest.raises(entk.InputError, match="memory") as caught:
        entk.assemble(mlp(rng), memory=memory)
    if memory == "4 gigs":
        text = "memory: '4 gigs' not understood (examples: '4GiB', 4_000_000_000)"
        assert text in str(caught.value)


WIDE = {"w": entk.Outer(ones(1, 2**31 + 256), ones(1, 1))}


def test_row_19_more_than_2_to_the_31_features_are_planned():
    assert entk.plan(WIDE).flops > 2**32


@pytest.mark.skipif("ENTK_SLOW" not in os.environ, reason="takes a minute: ENTK_SLOW=1 runs it")
def test_row_19_more_than_2_to_the_31_features_are_summed():
    """The blocks of 256 ones stay exact integers in float32 up to 2**32."""
    assert entk.assemble(WIDE)[0, 0] == np.float32(2**31 + 256)


# B. Layout and dtype. ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_21_to_26_any_layout_gives_the_same_bits(rng, layout, dtype):
    factors = every_leaf(rng, 19, dtype=dtype)
    assert_same_bits(entk.assemble(relaid(factors, layout)), entk.assemble(factors))


def test_row_23_arrays_of_stride_0_are_read_like_any_other(rng):
    row = normal(rng, (1, 7))
    view, copy = (f(np.broadcast_to(row, (5, 7))) for f in (np.asarray, np.array))
    leaves = ({"w": entk.Outer(x, x), "b": entk.Dense(x)} for x in (view, copy))
    assert_same_bits(*map(entk.assemble, leaves))


def test_row_23_an_out_that_overlaps_itself_is_refused(rng):
    out = np.lib.stride_tricks.as_strided(np.zeros(5, np.float32), (5, 5), (0, 4))
    with pytest.raises(entk.InputError, match=r"out has overlapping elements \(stride 0\)"):
        entk.assemble(mlp(rng), out=out)
    sliding = np.lib.stride_tricks.as_strided(np.zeros(9, np.float32), (5, 5), (4, 4))
    with pytest.raises(entk.InputError, match="out has overlapping elements"):
        entk.assemble(mlp(rng), out=sliding)


def test_row_25_a_read_only_out_is_refused(rng):
    with pytest.raises(entk.InputError, match="out is read-only"):
        entk.assemble(mlp(rng), out=read_only(np.zeros((5, 5), np.float32)))


def test_row_27_an_out_of_the_wrong_shape_is_refused(rng):
    with pytest.raises(entk.InputError, match=r"out has shape \(10, 9\); needs \(10, 10\)"):
        entk.assemble(mlp(rng, 10), out=np.zeros((10, 9), np.float32))


def test_row_27_an_out_of_the_wrong_type_is_refused(rng):
    with pytest.raises(entk.DTypeError, match="out is float32; needs float64"):
        entk.assemble(mlp(rng, dtype="float64"), out=np.zeros((5, 5), np.float32))


@pytest.mark.parametrize("layout", ["C", "F", "strided", "negative", "memmap"])
def test_row_27_an_out_of_any_order_and_strides_is_filled(rng, tmp_path, layout):
    factors = mlp(rng, 9)
    out = {
        "C": lambda: np.empty((9, 9), np.float32),
        "F": lambda: np.empty((9, 9), np.float32, order="F"),
        "strided": lambda: np.empty((18, 27), np.float32)[::2, ::3],
        "negative": lambda: np.empty((9, 9), np.float32)[::-1, ::-1],
        "memmap": lambda: np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (9, 9)),
    }[layout]()
    assert entk.assemble(factors, out=out) is out
    assert_same_bits(out, entk.assemble(factors))


def test_row_28_an_out_that_shares_memory_with_an_input_is_refused(rng):
    acts = normal(rng, (5, 5))
    factors = {"fc1": entk.Outer(acts, normal(rng, (5, 2))), "fc2": outer(rng)}
    with pytest.raises(entk.InputError, match="out shares memory with layer 'fc1' activations"):
        entk.assemble(factors, out=acts)


def test_row_29_one_array_may_be_both_factors(rng):
    x = normal(rng, (5, 4))
    assert_same_bits(
        entk.assemble({"w": entk.Outer(x, x)}), entk.assemble({"w": entk.Outer(x, x.copy())})
    )


def test_row_30_float16_factors_are_summed_in_float32(rng):
    factors = entk.Factors({"w": entk.Outer(np.full((3, 99), 300, np.float16), ones(3, 1))})
    np.testing.assert_array_equal(entk.assemble(factors), np.full((3, 3), 300.0 * 300 * 99))


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint16", "bool", "int32", "uint32"])
def test_row_34_small_integers_are_exact(rng, dtype):
    factors = entk.Factors({"b": entk.Dense(rng.integers(0, 2, (5, 7)).astype(dtype))})
    jac = factors["b"].jac.astype(np.int64)
    np.testing.assert_array_equal(entk.assemble(factors), jac @ jac.T)
    assert entk.assemble(factors).dtype == factors.dtype


@pytest.mark.parametrize(("dtype", "row"), [("int64", 34), ("uint64", 35)])
def test_rows_34_and_35_integers_beyond_float64_are_refused(dtype, row):
    jac = np.ones((3, 4), dtype)
    jac[2, 1] = 2**53 + 1
    with pytest.raises(entk.DTypeError, match=rf"layer 'b'.*{dtype} values above 2\^53 cannot"):
        entk.assemble({"b": entk.Dense(jac)})
    jac[2, 1] = 2**40
    assert entk.assemble({"b": entk.Dense(jac)})[2, 0] == 2**40 + 3


@pytest.mark.filterwarnings("ignore:float64 factors are stored")
def test_row_34_integers_beyond_float32_are_refused_where_float32_is_asked_for():
    jac = np.full((3, 4), 2**24 + 1, np.int32)
    with pytest.raises(entk.DTypeError, match=r"int32 values above 2\^24 cannot be represented"):
        entk.assemble({"b": entk.Dense(jac)}, dtype="float32")


def test_row_38_storing_a_float64_leaf_as_float32_warns_once(rng):
    leaves = {"a": dense(rng, dtype="float64"), "b": dense(rng, dtype="float64")}
    with pytest.warns(UserWarning, match="float32") as caught:
        kernel = entk.assemble(leaves, dtype="float32")
    assert kernel.dtype == np.float32
    assert len(caught) == 1


def test_row_41_no_temporary_of_the_size_of_an_input_is_made():
    code = """
import json, numpy as np, entk
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024
x = np.broadcast_to(np.float32(1), (2, 1 << 26))
entk.assemble({"b": entk.Dense(np.ones((2, 2), np.float32))})
before = anonymous()
entk.assemble({"b": entk.Dense(x)})
print(json.dumps(anonymous() - before))
"""
    assert run_json(code) < 1 << 26
