"""Values that are no numbers, too large or too small: a test per row of the list of faults."""

import re

import numpy as np
import pytest

import entk
from bounds import assert_same_bits
from cases import every_leaf, integers, mlp, normal, outer
from isolated import run_json


def with_value(rng, value, at=(17, 3), where="acts", n=20):
    """Factors of two layers, the first with `value` in one place."""
    acts, cots = normal(rng, (n, 6)), normal(rng, (n, 4))
    (acts if where == "acts" else cots)[at] = value
    return entk.Factors({"fc1": entk.Outer(acts, cots), "fc2": outer(rng, n)})


def test_row_42_a_nan_is_refused_with_its_place(rng):
    text = (
        r"layer 'fc1' activations\[17, 3\] is nan; 1 sample affected\. "
        r"Use nonfinite='propagate' or drop it"
    )
    with pytest.raises(entk.NonFiniteError, match=text):
        entk.assemble(with_value(rng, np.nan))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize(("where", "word"), [("acts", "activations"), ("cots", "output gradients")])
def test_row_43_an_infinity_is_refused_with_its_place(rng, value, where, word):
    with pytest.raises(entk.NonFiniteError, match=rf"layer 'fc1' {word}\[17, 3\] is {value}"):
        entk.assemble(with_value(rng, value, where=where))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_43_a_zero_in_the_other_factor_does_not_hide_it(rng, value):
    factors = with_value(rng, value)
    factors["fc1"].cots[:] = 0
    with pytest.raises(entk.NonFiniteError, match=r"activations\[17, 3\]"):
        entk.assemble(factors)


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (lambda x: entk.Dense(x[:, :, 0]), r"Jacobian\[1, 2\]"),
        (lambda x: entk.Outer(np.ones((3, 4, 2)), x), r"output gradients\[1, 2, 0\]"),
        (lambda x: entk.Lookup(np.zeros((3, 4), int), x), r"output gradients\[1, 2, 0\]"),
    ],
)
def test_row_42_the_place_is_that_in_the_array_as_given(leaf, text):
    x = np.ones((3, 4, 2))
    x[1, 2, 0] = np.nan
    with pytest.raises(entk.NonFiniteError, match=rf"layer 'w' {text} is nan"):
        entk.assemble({"w": leaf(x)})


def test_row_44_nans_everywhere_are_one_error_with_a_count(rng):
    factors = with_value(rng, np.nan, at=(slice(None), 2))
    with pytest.raises(entk.NonFiniteError, match=r"activations\[0, 2\] is nan; 20 samples"):
        entk.assemble(factors)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("look", [1, 100, 1 << 27])
def test_p6_the_first_of_several_is_named_however_the_values_are_read(
    rng, monkeypatch, threads, look
):
    monkeypatch.setattr("entk._values._LOOK", look)
    factors = with_value(rng, np.nan, at=(3, 1))
    factors["fc1"].acts[[11, 19], [0, 5]] = np.inf
    factors["fc1"].cots[0, 0] = np.nan
    text = r"layer 'fc1' activations\[3, 1\] is nan; 3 samples affected"
    with pytest.raises(entk.NonFiniteError, match=text):
        entk.assemble(factors, threads=threads)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 9, 19])
@pytest.mark.parametrize("where", ["acts", "cots"])
def test_propagated_values_reach_exactly_their_row_and_column(rng, value, at, where):
    bad = with_value(rng, value, at=(at, 0), where=where)
    clean = entk.Factors(
        {
            "fc1": entk.Outer(
                np.nan_to_num(bad["fc1"].acts, nan=0, posinf=0, neginf=0),
                np.nan_to_num(bad["fc1"].cots, nan=0, posinf=0, neginf=0),
            ),
            "fc2": bad["fc2"],
        }
    )
    expected = entk.assemble(clean)
    expected[at, :] = expected[:, at] = np.nan
    for options in ({}, {"tile": 7}, {"threads": 2}):
        assert_same_bits(entk.assemble(bad, nonfinite="propagate", **options), expected)


def test_a_leaf_of_weight_zero_is_not_read(rng):
    factors = with_value(rng, np.nan)
    got = entk.assemble(factors, leaf_weights={"fc1": 0})
    assert_same_bits(got, entk.assemble(factors.select("fc2")))


def test_row_45_overflow_is_refused_with_the_entry_and_the_layer(rng):
    acts, cots = normal(rng, (12, 3)), normal(rng, (12, 2))
    acts[[3, 9]], cots[[3, 9]] = 1e10, 1e10
    factors = entk.Factors({"fc1": outer(rng, 12), "fc2": entk.Outer(acts, cots)})
    with pytest.raises(
        entk.KernelOverflowError, match="overflowed float32 in layer 'fc2'"
    ) as caught:
        entk.assemble(factors)
    assert re.search(r"K\[(3|9), (3|9)\]", str(caught.value))
    assert "G = 3e" in str(caught.value)
    assert "H = 2e" in str(caught.value)
    assert "accumulate='float64'" in str(caught.value)


def test_row_45_a_kernel_that_float64_holds_is_not_refused_there(rng):
    big = entk.Factors({"w": entk.Outer(np.full((2, 2), 1e10), np.full((2, 2), 1e10))})
    assert (entk.assemble(big) == 4e40).all()
    with pytest.raises(entk.KernelOverflowError):
        entk.assemble(entk.Factors({"w": entk.Outer(*(np.full((2, 2), 1e160),) * 2)}))


def test_row_46_a_layer_lost_to_underflow_warns(rng):
    tiny = np.full((5, 3), 1e-15, np.float32)
    factors = {"fc1": outer(rng), "fc3": entk.Outer(tiny, tiny)}
    text = "layer 'fc3' contributes less than 1e-38; it was flushed by float32"
    with pytest.warns(UserWarning, match=text):
        entk.assemble(factors)


def test_row_47_subnormals_survive_a_caller_that_flushes_them():
    code = """
import json, numpy as np, torch, entk
x = np.full((3, 5), 2.0**-70, np.float32)
factors = {"b": entk.Dense(x)}
assert torch.set_flush_denormal(True)
kernel = entk.assemble(factors, threads=1), entk.assemble(factors, threads=2)
flushed = float(np.float32(2.0**-130) * np.float32(2.0)) == 0.0
torch.set_flush_denormal(False)
print(json.dumps([*(float(k[0, 0]) for k in kernel), flushed]))
"""
    pytest.importorskip("torch")
    one, two, caller_still_flushes = run_json(code)
    assert one == two == 5 * 2.0**-140
    assert caller_still_flushes


def test_row_48_a_zero_sample_gives_a_zero_row(rng):
    factors = mlp(rng, 9)
    for leaf in factors.values():
        for part in leaf._parts:
            part.host.array[5] = 0
    kernel = entk.assemble(factors)
    assert (kernel[5] == 0).all()
    with pytest.raises(entk.NotPositiveDefiniteError, match="sample 5 has a zero diagonal"):
        entk.linalg.cholesky(kernel)


def test_row_49_a_sum_without_terms_is_positive_zero():
    negative = np.full((5, 3), -0.0, np.float32)
    kernel = entk.assemble({"b": entk.Dense(negative), "w": entk.Outer(negative, -negative)})
    assert_same_bits(kernel, np.zeros((5, 5), np.float32))


@pytest.mark.parametrize("kind", [every_leaf, integers])
def test_row_50_equal_samples_have_equal_rows(rng, kind):
    factors = kind(rng, 31).take([*range(31), 0, 7, 7])
    kernel = entk.assemble(factors, tile=16)
    assert_same_bits(kernel[31], kernel[0])
    assert_same_bits(kernel[32:], kernel[[7, 7]])


def test_row_50_duplicates_without_a_ridge_are_not_positive_definite(rng):
    kernel = entk.assemble(mlp(rng, 12, dtype="float64").take([*range(12), 4]))
    with pytest.raises(entk.NotPositiveDefiniteError, match=r"pivot.*noise floor"):
        entk.linalg.cholesky(kernel)
