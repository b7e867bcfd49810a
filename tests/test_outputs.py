"""The ``outputs=`` argument: what it means, and when factors cannot answer."""

import numpy as np
import pytest

import entk
from cases import mlp
from entk._outputs import resolve, resolve_pair


def asked(factors, outputs):
    want = resolve(factors, outputs)
    return want.mode, want.scale


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (None, ("full", 1.0)),
        ("full", ("full", 1.0)),
        ("diagonal", ("diagonal", 1.0)),
        ("sum", ("sum", 0.25)),
        ("trace", ("trace", 0.25)),
        (3, ("index", 1.0)),
        (np.int32(0), ("index", 1.0)),
        ([1.0, 0, 0, 0], ("weights", 1.0)),
        ((1.0, 0, 0, 0), ("weights", 1.0)),
        (np.ones((5, 4), np.float32), ("weights", 1.0)),
    ],
)
def test_full_factors_answer_everything(rng, outputs, expected):
    assert asked(mlp(rng, rows=4), outputs) == expected


@pytest.mark.parametrize("held", ["sum", 2, "weights"])
def test_one_row_of_several_outputs_answers_for_what_it_is(rng, held):
    factors = mlp(rng, outputs=held, n_outputs=4)
    assert asked(factors, None) == ("as-is", 1.0)
    assert asked(factors, held) == ("as-is", 1.0)
    assert resolve(factors, None).label == str(held)
    for other in ("full", "sum", "trace", "diagonal", 2, 3, np.ones(4)):
        if isinstance(other, np.ndarray) or other != held:
            with pytest.raises(entk.InputError, match=r"hold one.*outputs="):
                resolve(factors, other)


@pytest.mark.parametrize("held", [None, "full", "sum", 0])
@pytest.mark.parametrize("outputs", [None, "full", "sum", "trace", 0])
def test_with_one_output_all_words_mean_the_same(rng, held, outputs):
    assert asked(mlp(rng, outputs=held), outputs) == ("as-is", 1.0)


def test_the_diagonal_of_one_output_still_has_an_axis_of_outputs(rng):
    assert entk.reference.assemble(mlp(rng, 5), outputs="diagonal").shape == (1, 5, 5)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("outputs", [True, np.False_, -1, 4, "Sum", "", "weights"])
def test_what_means_nothing_is_refused(rng, rows, outputs):
    with pytest.raises(entk.InputError, match="outputs"):
        resolve(mlp(rng, rows=rows), outputs)


@pytest.mark.parametrize("outputs", [0.5, {}, object(), ["a"] * 4, [1j] * 4])
def test_what_is_no_number_is_refused(rng, outputs):
    with pytest.raises(entk.DTypeError, match="outputs"):
        resolve(mlp(rng, rows=4), outputs)


@pytest.mark.parametrize("shape", [(3,), (4, 5), (1, 4), (5, 4, 1), (5,)])
def test_weights_of_another_shape_are_refused(rng, shape):
    with pytest.raises(entk.InputError, match=r"need \(4,\) or \(5, 4\)"):
        resolve(mlp(rng, rows=4), np.ones(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_with_their_place(rng, bad):
    weights = np.ones((5, 4))
    weights[2, 1] = bad
    with pytest.raises(entk.NonFiniteError, match=rf"weights\[2, 1\] is {bad}"):
        resolve(mlp(rng, rows=4), weights)


def test_cross_kernels_take_a_tuple_of_weights_one_a_side(rng):
    sides = mlp(rng, 5, rows=4), mlp(rng, 3, rows=4)
    left, right = resolve_pair(*sides, (np.ones((5, 4)), np.ones((3, 4))))
    assert (left.weights.shape, right.weights.shape) == ((5, 4), (3, 4))
    left, right = resolve_pair(*sides, np.ones(4))
    assert (left.weights.shape, right.weights.shape) == ((4,), (4,))
    assert [w.mode for w in resolve_pair(*sides, "sum")] == ["sum", "sum"]


@pytest.mark.parametrize(
    "outputs",
    [
        np.ones((5, 4)),
        (np.ones((5, 4)),),
        (np.ones((3, 4)), np.ones((5, 4))),
        (np.ones(4), np.ones(3)),
        (np.ones(4),) * 3,
    ],
)
def test_weights_that_do_not_fit_both_sides_are_refused(rng, outputs):
    with pytest.raises(entk.InputError, match="outputs"):
        resolve_pair(mlp(rng, 5, rows=4), mlp(rng, 3, rows=4), outputs)


def test_a_symmetric_kernel_refuses_two_weights(rng):
    with pytest.raises(entk.InputError, match="for cross kernels"):
        resolve(mlp(rng, rows=4), (np.ones(4), np.ones(4)))
