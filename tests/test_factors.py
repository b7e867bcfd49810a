"""`entk.Factors` and its leaves: what they accept, keep, say and share."""

import ml_dtypes
import numpy as np
import pytest

import entk
from bounds import assert_same_bits
from cases import LEAVES, arrays_of, dense, every_leaf, lookup, mlp, normal, one_leaf, outer, tied
from entk._factors import as_factors

# The mapping. ------------------------------------------------------------------------------------


def test_factors_are_an_ordered_mapping_from_names_to_leaves(rng):
    leaves = {name: make(rng) for name, make in reversed(LEAVES.items())}
    factors = entk.Factors(leaves)
    assert list(factors) == list(leaves)
    assert factors.leaves == tuple(leaves)
    assert len(factors) == len(leaves)
    assert all(factors[name] is leaf for name, leaf in leaves.items())
    assert "nothing" not in factors
    with pytest.raises(KeyError):
        factors["nothing"]


def test_factors_are_read_only(rng):
    factors = mlp(rng)
    with pytest.raises(TypeError):
        factors["fc1.weight"] = dense(rng)
    with pytest.raises(TypeError):
        del factors["fc1.weight"]
    for name in ("n", "rows", "outputs", "leaves", "dtype"):
        with pytest.raises(AttributeError):
            setattr(factors, name, 1)


def test_later_changes_to_the_mapping_do_not_reach_the_factors(rng):
    leaves = {"a": dense(rng)}
    factors = entk.Factors(leaves)
    leaves["b"] = dense(rng)
    assert factors.leaves == ("a",)


def test_a_list_of_pairs_gets_numbers_as_names(rng):
    pairs = [(normal(rng, (5, 3)), normal(rng, (5, 2))) for _ in range(3)]
    factors = entk.Factors(pairs)
    assert factors.leaves == ("0", "1", "2")
    assert factors["2"].acts is pairs[2][0]
    assert factors["2"].cots is pairs[2][1]


def test_factors_of_factors_keep_their_meaning(rng):
    factors = mlp(rng, outputs=3, n_outputs=5, reasons={"fc1.bias": "a bias"})
    again = entk.Factors(factors)
    assert (again.outputs, again.n_outputs, again.leaves) == (3, 5, factors.leaves)
    assert again.reason("fc1.bias") == "a bias"


def test_as_factors_takes_whatever_assemble_takes(rng):
    factors = mlp(rng)
    assert as_factors(factors) is factors
    assert as_factors(dict(factors)).leaves == factors.leaves
    assert as_factors([(np.ones((2, 3)), np.ones((2, 1)))]).leaves == ("0",)


def test_factors_come_back_from_the_path_they_were_saved_to(rng, tmp_path):
    reasons = {"outer": "smaller"}
    factors = every_leaf(rng, 5, 3, "bfloat16", reasons=reasons)
    factors.save(tmp_path / "F")
    for again in (entk.Factors(str(tmp_path / "F")), as_factors(tmp_path / "F")):
        assert (again.leaves, again.outputs, again.n_outputs) == (factors.leaves, "full", 3)
        assert again.reason("outer") == "smaller"
        for name in factors:
            for a, b in zip(arrays_of(again[name]), arrays_of(factors[name]), strict=True):
                np.testing.assert_array_equal(np.asarray(a), b.reshape(np.shape(a)))


@pytest.mark.parametrize("wrong", [3, None, np.ones((2, 3)), b"path", {1, 2}])
def test_anything_else_is_refused(wrong):
    with pytest.raises(entk.InputError, match="expected a mapping from names to leaves"):
        entk.Factors(wrong)


def test_an_array_that_is_no_leaf_is_refused_with_advice():
    with pytest.raises(entk.InputError, match=r"layer 'w' is a ndarray; .*entk.Dense"):
        entk.Factors({"w": np.ones((2, 3))})


# Names. ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w", "params.Dense_0/~/kernel", "..", "/", "é" * 127, "qkv[0]"])
def test_any_text_is_a_name(rng, name):
    assert entk.Factors({name: dense(rng)}).leaves == (name,)


@pytest.mark.parametrize("name", ["", "a\n", "\x00", "\x7f", "x" * 256, "é" * 128, "\ud800", 3])
def test_bad_names_are_refused(rng, name):
    with pytest.raises(entk.InputError, match="leaf name"):
        entk.Factors({name: dense(rng)})


# Shapes. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", LEAVES)
def test_every_kind_of_leaf_knows_its_examples_and_rows(rng, kind, rows):
    factors = one_leaf(kind, rng, 5, rows)
    assert (factors.n, factors.rows, factors.n_outputs) == (5, rows, rows)


@pytest.mark.parametrize("rows", [(), (3,)])
@pytest.mark.parametrize("body", [(), (4,), (2, 4)])
def test_the_axes_of_acts_decide_the_form_of_an_outer_leaf(rng, body, rows):
    acts, cots = normal(rng, (5, *body, 6)), normal(rng, (5, *rows, *body, 2))
    leaf = entk.Outer(acts, cots)
    g, t = (1,) * (2 - len(body)) + body
    assert leaf._acts.shape == (5, g, t, 6)
    assert leaf._cots.shape == (5, *(rows or (1,)), g, t, 2)
    assert np.shares_memory(leaf._acts.array, acts)
    assert np.shares_memory(leaf._cots.array, cots)


@pytest.mark.parametrize("rows", [(), (3,)])
@pytest.mark.parametrize("body", [(), (4,)])
def test_the_axes_of_ids_decide_the_form_of_a_lookup(rng, body, rows):
    ids, cots = rng.integers(-1, 9, (5, *body)), normal(rng, (5, *rows, *body, 2))
    leaf = entk.Lookup(ids, cots)
    t = body or (1,)
    assert leaf._ids.shape == (5, *t)
    assert leaf._cots.shape == (5, *(rows or (1,)), *t, 2)


def test_one_row_may_have_an_axis_of_its_own(rng):
    factors = entk.Factors({"a": dense(rng), "b": entk.Dense(normal(rng, (5, 1, 2)))})
    assert factors.rows == 1


@pytest.mark.parametrize("use", [dense, tied, lambda rng: np.ones((5, 3))])
def test_a_tied_leaf_has_uses_of_matrices_and_lookups_only(rng, use):
    with pytest.raises(entk.InputError, match=r"use 1 is a .*; expected Outer or Lookup"):
        entk.Factors({"w": entk.Tied([lookup(rng), use(rng)])})


def test_a_tied_leaf_without_uses_is_refused():
    with pytest.raises(entk.InputError, match="layer 'w': a tied leaf needs at least one use"):
        entk.Factors({"w": entk.Tied([])})


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"n": 6}, "use 1 has 6 samples, use 0 has 5"),
        ({"rows": 2}, "use 1 has 2 outputs, use 0 has 1"),
        ({"d_out": 9}, "use 1 has 9 columns of the table, use 0 has 4"),
        ({"d_in": 9}, r"uses have tables of . and . rows"),
        ({"g": 2, "t": 3}, r"uses have \[1, 2\] blocks"),
    ],
)
def test_uses_that_disagree_are_refused(rng, other, text):
    with pytest.raises(entk.InputError, match=f"layer 'w': {text}"):
        entk.Factors({"w": entk.Tied([outer(rng), outer(rng, **other)])})


def test_a_transposed_use_turns_its_table(rng):
    uses = [outer(rng, d_in=6, d_out=4), outer(rng, d_in=4, d_out=6, transposed=True)]
    assert entk.Factors({"w": entk.Tied(uses)})["w"].uses == tuple(uses)
    with pytest.raises(entk.InputError, match="columns of the table"):
        entk.Factors({"w": entk.Tied([uses[0], outer(rng, d_in=4, d_out=6)])})


# The meaning of the rows. ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "given", "expected"),
    [
        (1, {}, ("full", 1)),
        (3, {}, ("full", 3)),
        (1, {"outputs": "full"}, ("full", 1)),
        (3, {"outputs": "full", "n_outputs": 3}, ("full", 3)),
        (1, {"outputs": "sum"}, ("sum", 1)),
        (1, {"outputs": "sum", "n_outputs": 10}, ("sum", 10)),
        (1, {"outputs": 4, "n_outputs": 10}, (4, 10)),
        (1, {"outputs": np.int64(4)}, (4, 5)),
        (1, {"outputs": "weights", "n_outputs": 10}, ("weights", 10)),
        (1, {"n_outputs": 10}, ("weights", 10)),
    ],
)
def test_the_rows_mean_what_was_said(rng, rows, given, expected):
    factors = mlp(rng, rows=rows, **given)
    assert (factors.outputs, factors.n_outputs) == expected


@pytest.mark.parametrize(
    ("rows", "given"),
    [
        (3, {"outputs": "sum"}),
        (3, {"outputs": "weights"}),
        (3, {"outputs": 1}),
        (3, {"outputs": "full", "n_outputs": 4}),
        (3, {"n_outputs": 4}),
        (1, {"outputs": "full", "n_outputs": 2}),
        (1, {"outputs": "trace"}),
        (1, {"outputs": "diagonal"}),
        (1, {"outputs": "Sum"}),
        (1, {"outputs": True}),
        (1, {"outputs": -1}),
        (1, {"outputs": 10, "n_outputs": 10}),
        (1, {"outputs": 0.5}),
        (1, {"n_outputs": 0}),
    ],
)
def test_rows_that_cannot_mean_that_are_refused(rng, rows, given):
    with pytest.raises(entk.InputError, match="output"):
        mlp(rng, rows=rows, **given)


# Types and bytes. --------------------------------------------------------------------------------

NARROW = ["float32", "float16", "bfloat16", "int8", "int16", "uint8", "uint16", "bool"]
WIDE = ["float64", "int32", "int64", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", NARROW + WIDE)
def test_a_kernel_is_float32_where_float32_holds_every_value(dtype):
    jac = np.ones((2, 3)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    factors = entk.Factors({"a": entk.Dense(np.ones((2, 3), np.float32)), "b": entk.Dense(jac)})
    assert factors.dtype == np.dtype("float32" if dtype in NARROW else "float64")
    assert isinstance(factors.dtype, np.dtype)


def test_the_type_of_ids_does_not_decide_the_type_of_a_kernel(rng):
    assert one_leaf("lookup", rng).dtype == np.float32
    assert one_leaf("tied", rng).dtype == np.float32


def test_nbytes_counts_shared_memory_once(rng):
    weight = outer(rng, n=5, d_in=6, d_out=4)
    bias = entk.Dense(weight.cots)
    assert entk.Factors({"w": weight}).nbytes == 4 * 5 * (6 + 4)
    assert entk.Factors({"w": weight, "b": bias}).nbytes == 4 * 5 * (6 + 4)


def test_factors_print_one_line_per_leaf_with_kind_shapes_bytes_and_reason(rng):
    factors = every_leaf(rng, reasons={"outer": "6 + 4 < 6 x 4"})
    lines = repr(factors).splitlines()
    assert len(lines) == 1 + len(factors)
    assert f"{len(factors)} leaves" in lines[0]
    assert "5 examples" in lines[0]
    line = next(line for line in lines if line.startswith("  outer "))
    for fact in ("Outer", "200 bytes", "activations 5x6 float32", "5x4", "[6 + 4 < 6 x 4]"):
        assert fact in line


def test_a_reason_is_kept_for_every_leaf(rng):
    factors = mlp(rng, reasons={"fc1.weight": "smaller"})
    assert factors.reason("fc1.weight") == "smaller"
    assert factors.reason("fc2.bias") == "as given"
    assert factors.select("fc1.*").reason("fc1.weight") == "smaller"
    assert factors.take([0]).reason("fc1.weight") == "smaller"
    with pytest.raises(KeyError):
        factors.reason("nothing")


# Nothing is copied or read. ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", LEAVES)
def test_leaves_expose_the_very_arrays_they_were_made_of(rng, kind):
    leaf = LEAVES[kind](rng)
    before = arrays_of(leaf)
    entk.Factors({"w": leaf})
    assert all(a is b for a, b in zip(before, arrays_of(leaf), strict=True))


@pytest.mark.parametrize("kind", LEAVES)
def test_the_views_the_core_reads_are_the_memory_of_the_arrays(rng, kind):
    leaf = one_leaf(kind, rng, 5, 3)[kind]
    for part, array in zip(leaf._parts, arrays_of(leaf), strict=True):
        assert np.shares_memory(part.host.array, array)
        assert part.given().array.shape == array.shape


def test_a_slice_of_examples_shares_memory(rng):
    factors = every_leaf(rng, 7, 3)
    for part in (slice(2, 5), slice(None, None, -1), slice(None, None, 2)):
        for name, leaf in factors.take(part).items():
            for a, b in zip(arrays_of(leaf), arrays_of(factors[name]), strict=True):
                assert np.shares_memory(a, b)
                assert_same_bits(a, b[part])


def test_selected_leaves_are_the_same_objects(rng):
    factors = mlp(rng)
    assert factors.select("fc2.bias")["fc2.bias"] is factors["fc2.bias"]
