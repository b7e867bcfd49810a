"""`Factors.contract`: all output rows to one direction."""

import ml_dtypes
import numpy as np
import pytest

import entk
from bounds import U, assert_close_in_float64, assert_same_bits
from cases import LEAVES, arrays_of, every_leaf, mlp, normal, one_leaf
from entk import reference


@pytest.mark.parametrize("outputs", ["sum", 0, 2, "weights", "weights per example"])
@pytest.mark.parametrize("kind", LEAVES)
def test_contracted_factors_give_the_contracted_kernel(rng, kind, outputs):
    factors = one_leaf(kind, rng, 5, 3, "float64")
    if outputs == "weights":
        outputs = rng.standard_normal(3)
    elif outputs == "weights per example":
        outputs = rng.standard_normal((5, 3))
    one = factors.contract(outputs)
    assert (one.rows, one.n_outputs) == (1, 3)
    assert one.outputs == (outputs if isinstance(outputs, str | int) else "weights")
    expected = reference.assemble(factors, outputs=outputs)
    assert_close_in_float64(reference.assemble(one), expected, terms=1000)


def test_the_sum_has_one_over_the_root_of_the_outputs_in_it(rng):
    jac = normal(rng, (4, 3, 2), "float64")
    one = entk.Factors({"b": entk.Dense(jac)}).contract("sum")
    assert_close_in_float64(one["b"].jac, jac.sum(axis=1) / np.sqrt(3), 3)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        ("float64", "float64"),
        ("float32", "float32"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("int8", "float32"),
        ("int32", "float64"),
    ],
)
def test_contraction_rounds_once_to_the_type_of_the_leaf(rng, dtype, result):
    wide = 100 * rng.standard_normal((4, 3, 2))
    jac = wide.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    w = rng.standard_normal(3)
    one = entk.Factors({"b": entk.Dense(jac)}).contract(w)["b"].jac
    assert one.dtype == result
    exact = np.einsum("r,nrp->np", w, jac.astype(np.float64))
    size = np.einsum("r,nrp->np", np.abs(w), np.abs(jac.astype(np.float64)))
    # One rounding to the type, three products and two sums in float64.
    assert (np.abs(one - exact) <= (U[result] + 10 * U["float64"]) * size).all()


def test_one_output_is_a_view(rng):
    factors = every_leaf(rng, 5, 3)
    one = factors.contract(1)
    for name in factors:
        for a, b in zip(arrays_of(one[name]), arrays_of(factors[name]), strict=True):
            assert np.shares_memory(a, b)


def test_contraction_shares_activations_and_ids(rng):
    factors = every_leaf(rng, 5, 3)
    one = factors.contract("sum")
    assert np.shares_memory(one["outer"].acts, factors["outer"].acts)
    assert np.shares_memory(one["lookup"].ids, factors["lookup"].ids)


def test_what_is_held_already_is_returned_as_it_is(rng):
    held = mlp(rng, outputs="sum", n_outputs=10)
    assert held.contract("sum") is held
    logit = mlp(rng, outputs=4, n_outputs=10)
    assert logit.contract(4) is logit
    single = mlp(rng)
    assert single.contract("sum") is single


@pytest.mark.parametrize("outputs", ["trace", "diagonal", "full", "weights", None])
def test_what_is_no_direction_is_refused(rng, outputs):
    with pytest.raises(entk.InputError, match="not one direction"):
        mlp(rng, rows=3).contract(outputs)


def test_a_trace_is_refused_with_advice(rng):
    with pytest.raises(entk.InputError, match=r"entk.assemble\(factors, outputs='trace'\)"):
        mlp(rng, rows=3).contract("trace")


@pytest.mark.parametrize("outputs", [3, -1, True, [1.0, 2.0], [np.nan, 1, 1], np.ones((4, 3))])
def test_a_direction_that_does_not_fit_is_refused(rng, outputs):
    with pytest.raises(entk.InputError):
        mlp(rng, 5, rows=3).contract(outputs)


def test_one_row_of_several_outputs_answers_only_for_itself(rng):
    held = mlp(rng, outputs="sum", n_outputs=10)
    for outputs in (0, np.ones(10)):
        with pytest.raises(entk.InputError, match="hold one"):
            held.contract(outputs)


def test_large_factors_are_contracted_in_chunks(rng, monkeypatch):
    factors = every_leaf(rng, 7, 3)
    whole = factors.contract("sum")
    monkeypatch.setattr("entk._contract._CHUNK_BYTES", 1)
    for name, leaf in factors.contract("sum").items():
        for a, b in zip(arrays_of(leaf), arrays_of(whole[name]), strict=True):
            assert_same_bits(a, b)


def test_arrays_of_repeats_stand_in_for_large_ones_in_a_plan():
    # 27 times 120 GB of one number: whoever reads them to compare them does not come back.
    sizes = range(27)
    leaves = {f"w{i}": entk.Dense(np.broadcast_to(np.ones(1, "f4"), (10**6, 30000))) for i in sizes}
    plan = entk.plan(entk.Factors(leaves), out="K.npy")
    assert plan.flops < 2 * 10**6 * (10**6 + 1) * 30000
