"""Selection against brute force and its guarantees."""

from itertools import combinations

import numpy as np
import pytest

import entk
from bounds import assert_rounding
from entk import lowrank, select
from kernels import Operator, Stored, gram

DESIGNS = [
    lambda k, c: select.greedy_logdet(k, c, noise=0.1).chosen,
    lambda k, c: select.maximin(k, c).chosen,
    lambda k, c: select.k_center(k, c).chosen,
]


def logdet(kernel, index, noise):
    return np.linalg.slogdet(np.eye(len(index)) + kernel[np.ix_(index, index)] / noise)[1]


def distances(kernel):
    d = np.diag(kernel)
    return np.sqrt(np.maximum(d[:, None] + d - 2 * kernel, 0.0))


def test_greedy_logdet_takes_the_best_next_sample_each_time(rng):
    kernel = gram(rng, 15)
    got = select.greedy_logdet(kernel, 5, noise=0.2)
    for step in range(5):
        before = got.chosen[:step].tolist()
        values = [logdet(kernel, [*before, i], 0.2) for i in range(15) if i not in before]
        reached = logdet(kernel, got.chosen[: step + 1], 0.2)
        assert_rounding(reached, max(values), 15)
        assert_rounding(got.gains[: step + 1].sum(), reached, 15 * 15)


def test_greedy_logdet_keeps_its_guarantee(rng):
    kernel = gram(rng, 9)
    best = max(logdet(kernel, list(c), 0.1) for c in combinations(range(9), 3))
    assert select.greedy_logdet(kernel, 3, noise=0.1).gains.sum() >= (1 - np.exp(-1)) * best


def test_greedy_logdet_goes_on_from_labelled_samples(rng):
    kernel = gram(rng, 12)
    whole = select.greedy_logdet(kernel, 6, noise=0.1)
    rest = select.greedy_logdet(kernel, 4, noise=0.1, initial=whole.chosen[:2])
    np.testing.assert_array_equal(rest.chosen, whole.chosen[2:])


def test_maximin_takes_the_farthest_sample_each_time(rng):
    kernel = gram(rng, 20)
    got, d = select.maximin(kernel, 6), distances(kernel)
    assert got.chosen[0] == np.argmax(np.diag(kernel))
    for step in range(1, 6):
        reach = d[:, got.chosen[:step]].min(axis=1)
        assert got.chosen[step] == np.argmax(reach)
        assert_rounding(got.gains[step], reach.max(), 20)


def test_k_center_covers_within_twice_the_best_radius(rng):
    kernel = gram(rng, 12, d=2)
    d = distances(kernel)
    best = min(d[:, list(c)].min(axis=1).max() for c in combinations(range(12), 3))
    got = select.k_center(kernel, 3)
    assert got.radius <= 2 * best
    near = d[:, got.chosen]
    assert_rounding(near[np.arange(12), got.nearest], near.min(axis=1), 12)
    assert_rounding(got.radius, near.min(axis=1).max(), 12)


def test_initial_centres_count_as_chosen(rng):
    kernel = gram(rng, 10)
    got = select.k_center(kernel, 2, initial=[3, 4])
    assert not set(got.chosen.tolist()) & {3, 4}
    assert got.nearest[3] == -2
    assert got.nearest[4] == -1


@pytest.mark.parametrize("design", DESIGNS)
def test_repeated_samples_are_not_chosen_while_others_are_left(rng, design):
    kernel = gram(rng, 8)[np.ix_([0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1])]
    chosen = design(kernel, 4)
    assert sorted(i % 4 for i in chosen.tolist()) == [0, 1, 2, 3]
    assert sorted(design(kernel, 6).tolist()) == list(range(6))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("wrap", [Stored, Operator])
def test_every_kind_of_kernel_gives_the_same_design_by_rows_alone(rng, design, wrap):
    kernel = gram(rng, 40)
    wrapped = wrap(kernel)
    np.testing.assert_array_equal(design(wrapped, 5), design(kernel, 5))
    if wrap is Operator:
        assert wrapped.products == 0
        assert wrapped.entries <= 5 * 40


@pytest.mark.parametrize("design", DESIGNS)
def test_a_low_rank_factor_will_do(rng, design):
    kernel = gram(rng, 30, d=6)
    low = lowrank.rpcholesky(kernel, 30)
    np.testing.assert_array_equal(design(low, 4), design(kernel, 4))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("count", [0, 6, True])
def test_a_number_that_cannot_be_chosen_is_refused(design, count):
    with pytest.raises(entk.InputError, match="k must be between 1 and 5"):
        design(np.eye(5), count)


def test_indices_out_of_range_and_no_noise_are_refused():
    with pytest.raises(entk.InputError, match="initial must hold indices"):
        select.maximin(np.eye(3), 1, initial=[3])
    with pytest.raises(entk.InputError, match="noise must be > 0"):
        select.greedy_logdet(np.eye(3), 1, noise=0.0)
