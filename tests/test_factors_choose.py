"""Choosing leaves and examples of `entk.Factors`, and joining examples."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import entk
from bounds import assert_same_bits
from cases import arrays_of, dense, every_leaf, lookup, mlp, outer
from entk._factors import check_cross, matching

# Choosing leaves. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("fc1.weight", ["fc1.weight"]),
        ("fc1.*", ["fc1.weight", "fc1.bias"]),
        ("*.bias", ["fc1.bias", "fc2.bias"]),
        ("fc[12].bias", ["fc1.bias", "fc2.bias"]),
        ("fc?.weight", ["fc1.weight", "fc2.weight"]),
    ],
)
def test_select_takes_names_and_globs_in_kernel_order(rng, pattern, expected):
    assert list(mlp(rng).select(pattern)) == expected


def test_brackets_in_names_stand_for_themselves(rng):
    names = ["a.qkv[0]", "a.qkv[1]", "a.qkv0", "b.qkv[0]"]
    factors = entk.Factors({name: dense(rng) for name in names})
    assert list(factors.select("a.qkv[0]")) == ["a.qkv[0]"]
    assert list(factors.select("b.qkv[0]")) == ["b.qkv[0]"]
    assert set(factors.select("?.qkv[0]")) == {"a.qkv[0]", "b.qkv[0]", "a.qkv0"}
    assert list(factors.select("a.*")) == names[:3]


def test_several_patterns_are_joined_in_kernel_order(rng):
    assert list(mlp(rng).select("fc2.*", "fc1.bias")) == ["fc1.bias", "fc2.weight", "fc2.bias"]


@pytest.mark.parametrize("patterns", [("FC1.*",), ("fc1.*", "fc3.*"), (), ("",)])
def test_a_pattern_that_matches_nothing_is_refused(rng, patterns):
    with pytest.raises(entk.InputError, match=r"no leaf matches|at least one"):
        mlp(rng).select(*patterns)


def test_a_name_beats_a_glob_that_it_could_be():
    assert matching("w[0]", ["w[0]", "w0"]) == ["w[0]"]


# Choosing examples. ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_take_is_numpy_indexing_of_every_array(data):
    n = data.draw(st.integers(1, 6))
    factors = every_leaf(np.random.default_rng(0), n, 2)
    index = data.draw(
        st.one_of(
            st.lists(st.integers(-n, n - 1), max_size=8),
            st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
            st.slices(n),
        )
    )
    chosen = np.arange(n)[index if isinstance(index, slice | np.ndarray) else np.array(index, int)]
    taken = factors.take(index)
    assert taken.n == len(chosen)
    for name in factors:
        for a, b in zip(arrays_of(taken[name]), arrays_of(factors[name]), strict=True):
            assert_same_bits(a, b[chosen])


@pytest.mark.parametrize("index", [[0, 5], [-6], [True] * 4, [0.0], "ab", [[0], [1]], 7])
def test_examples_that_do_not_exist_are_refused(rng, index):
    with pytest.raises(entk.InputError, match=r"out of range|mask|index"):
        mlp(rng, 5).take(index)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64"])
def test_take_accepts_any_integers(rng, dtype):
    assert mlp(rng, 200).take(np.array([3, 100], dtype)).n == 2


def test_small_signed_indices_count_from_the_end_of_many_examples(rng):
    factors = entk.Factors({"b": entk.Dense(np.arange(300.0)[:, None])})
    assert factors.take(np.array([-1], np.int8))["b"].jac == [[299.0]]


def test_one_example_keeps_its_axis(rng):
    assert mlp(rng, 5).take(-1).n == 1


def test_taken_bfloat16_stays_bfloat16(rng):
    factors = every_leaf(rng, 5, 2, "bfloat16").take([3, 1])
    assert factors["dense"].jac.dtype == ml_dtypes.bfloat16
    assert factors.dtype == np.float32


# Joining examples. -------------------------------------------------------------------------------


def test_concatenate_undoes_a_split(rng):
    factors = every_leaf(rng, 7, 3, reasons={"dense": "a bias"})
    joined = entk.Factors.concatenate([factors.take(slice(0, 3)), factors.take(slice(3, None))])
    assert joined.n == 7
    assert joined.reason("dense") == "a bias"
    for name in factors:
        for a, b in zip(arrays_of(joined[name]), arrays_of(factors[name]), strict=True):
            assert_same_bits(a, b)


def test_concatenate_keeps_the_meaning_of_the_rows(rng):
    parts = [mlp(rng, n, outputs="sum", n_outputs=10) for n in (2, 3)]
    joined = entk.Factors.concatenate(parts)
    assert (joined.outputs, joined.n_outputs, joined.n) == ("sum", 10, 5)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (lambda rng: mlp(rng, widths=((6, 4),)), "other leaves"),
        (
            lambda rng: mlp(rng, widths=((5, 4), (4, 3))),
            "layer 'fc1.weight' of part 1 does not fit",
        ),
        (lambda rng: mlp(rng, rows=2), "rows = 2, but part 0 has 1"),
        (lambda rng: mlp(rng, outputs="sum"), "outputs = 'sum', but part 0 has 'full'"),
        (lambda rng: mlp(rng, dtype="float64"), "layer 'fc1.weight' activations: .* float64"),
    ],
)
def test_parts_of_different_networks_are_not_joined(rng, part, text):
    with pytest.raises(entk.InputError, match=text):
        entk.Factors.concatenate([mlp(rng), part(rng)])


def test_parts_with_different_numbers_of_positions_are_not_joined(rng):
    parts = [{"w": outer(rng, t=t)} for t in (3, 4)]
    with pytest.raises(entk.InputError, match="differ beyond the first axis"):
        entk.Factors.concatenate([entk.Factors(p) for p in parts])


def test_nothing_to_join_is_refused():
    with pytest.raises(entk.InputError, match="got 0"):
        entk.Factors.concatenate([])


# Sides of a cross kernel. ------------------------------------------------------------------------


def test_sides_may_differ_in_examples_and_positions(rng):
    check_cross(
        entk.Factors({"w": outer(rng, 5, t=3), "e": lookup(rng, 5, t=3)}),
        entk.Factors({"w": outer(rng, 4, t=2), "e": lookup(rng, 4, t=2)}),
    )


@pytest.mark.parametrize("other", [{"d_in": 7}, {"d_out": 7}, {"g": 2, "t": 1}])
def test_sides_of_different_networks_are_refused(rng, other):
    sides = [entk.Factors({"w": outer(rng)}), entk.Factors({"w": outer(rng, **other)})]
    with pytest.raises(entk.InputError, match="layer 'w' of other does not fit"):
        check_cross(*sides)
