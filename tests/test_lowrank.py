"""Low-rank factors: their stated errors, their cost in entries, and what is done with them."""

import numpy as np
import pytest

import entk
from bounds import SIGMAS, assert_rounding, assert_same_solution
from entk import lowrank, reference
from entk.lowrank import _rpcholesky
from kernels import Operator, Stored, gram, smooth, with_spectrum


@pytest.mark.parametrize("wrap", [np.asarray, Stored, Operator])
def test_the_trace_residual_is_exact(rng, wrap):
    kernel = gram(rng, 60, d=30)
    low = lowrank.rpcholesky(wrap(kernel), 10, seed=3)
    left = kernel - low.factor @ low.factor.T
    assert low.factor.shape == (60, 10)
    assert len(set(low.pivots.tolist())) == 10
    assert_rounding(low.trace_residual + low.trace, np.trace(left) + np.trace(kernel), 60 * 10)
    assert np.linalg.eigvalsh(left)[0] > -np.linalg.eigvalsh(kernel)[-1] * 2.0**-40
    assert_rounding(low.factor @ low.factor[low.pivots].T, kernel[:, low.pivots], 60)


def test_rpcholesky_reads_a_fraction_of_the_entries(rng):
    op = Operator(gram(rng, 300))
    low = lowrank.rpcholesky(op, 20)
    assert op.products == 0
    assert op.entries <= 20 * 300 + 100 * (300 // 10)
    assert low.rank == 20


def test_the_residual_falls_with_the_rank_and_stops_at_the_tolerance(rng):
    kernel = smooth(200)
    parts = [lowrank.rpcholesky(kernel, k, seed=1).trace_residual for k in (1, 3, 6, 9)]
    assert parts == sorted(parts, reverse=True)
    low = lowrank.rpcholesky(kernel, 100, tol=1e-6)
    assert low.trace_residual <= 1e-6 * low.trace
    assert low.rank < 30


def test_the_factor_stops_at_the_numerical_rank(rng):
    kernel = gram(rng, 50, d=5)
    low = lowrank.rpcholesky(kernel, 50)
    assert low.rank == 5
    assert_rounding(low.factor @ low.factor.T, kernel, 50)


def test_the_residual_is_near_the_best_possible_on_average(rng):
    values = np.geomspace(1.0, 1e-6, 120)[::-1]
    kernel = with_spectrum(rng, values)
    got = np.mean([lowrank.rpcholesky(kernel, 30, seed=s).trace_residual for s in range(20)])
    # Chen, Epperly, Tropp, Webber, theorem 1.1: rank k is as good as the best rank r < k, up to a
    # factor; r = 15 leaves room for it here.
    assert got <= 2 * values[:-15].sum()


def test_resuming_goes_on_where_the_first_run_stopped(rng):
    kernel = gram(rng, 80, d=40)
    half = lowrank.rpcholesky(kernel, 10, seed=5)
    whole = half.resume(kernel, 25)
    np.testing.assert_array_equal(whole.factor[:, :10], half.factor)
    np.testing.assert_array_equal(whole.pivots[:10], half.pivots)
    assert whole.rank == 25
    left = kernel - whole.factor @ whole.factor.T
    assert_rounding(whole.trace_residual + whole.trace, np.trace(left) + np.trace(kernel), 2000)
    with pytest.raises(entk.InputError, match="state is of 80 samples"):
        lowrank.rpcholesky(gram(rng, 7), 3, state=half)


def test_pivots_are_drawn_in_proportion_to_the_diagonal():
    diag = np.array([1.0, 2.0, 5.0])
    draws = np.array([lowrank.rpcholesky(np.diag(diag), 1, seed=s).pivots[0] for s in range(300)])
    share = np.bincount(draws, minlength=3) / 300
    expected = diag / diag.sum()
    assert (np.abs(share - expected) <= SIGMAS * np.sqrt(expected / 300)).all()


def test_proposing_blocks_does_not_change_the_law_of_the_pivots(monkeypatch):
    """Ordered pairs of pivots against the definition: the diagonal of what is left, each time."""
    monkeypatch.setattr(_rpcholesky, "proposals", lambda rank: 4)
    x = np.array([[2.0, 0.0], [1.9, 0.4], [0.0, 1.0]])
    kernel = x @ x.T + 0.05 * np.eye(3)
    law = np.zeros((3, 3))
    for i in range(3):
        left = np.diag(kernel) - kernel[i] ** 2 / kernel[i, i]
        left[i] = 0.0
        law[i] = kernel[i, i] / np.trace(kernel) * left / left.sum()
    draws = 600
    counts = np.zeros((3, 3))
    for seed in range(draws):
        counts[tuple(lowrank.rpcholesky(kernel, 2, seed=seed).pivots)] += 1
    off = np.abs(counts / draws - law)
    assert (off <= SIGMAS * np.sqrt(law * (1 - law) / draws)).all()


def test_nystrom_on_all_landmarks_is_the_kernel(rng):
    kernel = gram(rng, 30)
    low = lowrank.nystrom(kernel, np.arange(30))
    assert_same_solution(low.factor @ low.factor.T, kernel, kernel)


def test_nystrom_with_repeated_samples_drops_what_depends(rng):
    kernel = gram(rng, 20)[:, [0, 0, *range(18)]][[0, 0, *range(18)]]
    low = lowrank.nystrom(Stored(kernel), [0, 1, 5])
    assert low.rank == 2
    assert_rounding((low.factor @ low.factor.T)[0], kernel[0], 20)


def test_nystrom_draws_landmarks_by_seed(rng):
    kernel = gram(rng, 30)
    a, b, c = (lowrank.nystrom(kernel, 5, seed=s).pivots.tolist() for s in (0, 0, 1))
    assert a == b != c


def test_products_solutions_and_operators_are_those_of_the_factor(rng):
    low = lowrank.rpcholesky(gram(rng, 40), 8)
    dense = low.factor @ low.factor.T
    b = rng.standard_normal((40, 2))
    op = low.to_operator()
    assert_rounding(low.matvec(b), dense @ b, 40)
    assert_rounding(op @ b, dense @ b, 40)
    assert_rounding(op.block(slice(3, 5), [1, 2]), dense[3:5, 1:3], 40)
    assert_rounding(op.rows([7]), dense[[7]], 40)
    assert_rounding([op.trace()], [np.trace(dense)], 40)
    regular = dense + 0.1 * np.eye(40)
    assert_same_solution(low.solve(b, 0.1), np.linalg.solve(regular, b), regular)
    assert_same_solution(low.solve(b[:, 0], 0.1), np.linalg.solve(regular, b[:, 0]), regular)
    assert_rounding(low.eigenvalues(), np.linalg.eigvalsh(dense)[-8:], 40)


def test_solving_with_a_low_rank_matrix_needs_a_ridge(rng):
    with pytest.raises(entk.InputError, match="ridge must be > 0"):
        lowrank.rpcholesky(gram(rng, 5), 2).solve(np.ones(5), 0.0)


@pytest.mark.parametrize("landmarks", [8, [0, 3, 5, 7], [1, 2, 4, 19]])
def test_new_points_get_the_rows_that_they_would_have_had(rng, landmarks):
    """Old points extend to their own rows; new ones to the Nystrom kernel, by its definition."""
    both = gram(rng, 26)
    kernel, cross = both[:20, :20], both[20:, :20]
    low = (
        lowrank.rpcholesky(kernel, landmarks)
        if isinstance(landmarks, int)
        else lowrank.nystrom(kernel, landmarks)
    )
    part = low.pivots
    assert_same_solution(low.extend(kernel[:, part]), low.factor, kernel[np.ix_(part, part)])
    corner = kernel[np.ix_(part, part)]
    want = cross[:, part] @ np.linalg.solve(corner, kernel[part])
    assert_same_solution(low.extend(cross[:, part]) @ low.factor.T, want, corner)


def test_new_points_of_landmarks_that_depend_on_each_other(rng):
    kernel = gram(rng, 20)[:, [0, 0, *range(18)]][[0, 0, *range(18)]]
    low = lowrank.nystrom(kernel, [0, 1, 5])
    assert_rounding(low.extend(kernel[:, [0, 1, 5]]), low.factor, 20)


def test_new_points_need_their_kernel_with_the_pivots(rng):
    low = lowrank.rpcholesky(gram(rng, 9), 4)
    with pytest.raises(entk.InputError, match=r"cross has shape \(2, 9\); expected \(M, 4\)"):
        low.extend(np.ones((2, 9)))
    with pytest.raises(entk.NonFiniteError, match="cross"):
        low.extend(np.full((1, 4), np.nan))
    with pytest.raises(entk.InputError, match="a sketch has no pivots"):
        lowrank.sketch(entk.Factors(leaves(rng, 3)), 5).extend(np.ones((1, 5)))


def leaves(rng, n):
    ids = rng.integers(-1, 6, (n, 3))
    tied = entk.Tied(
        [
            entk.Lookup(rng.integers(0, 6, (n, 2)), rng.standard_normal((n, 2, 2, 4))),
            entk.Outer(
                rng.standard_normal((n, 4)), rng.standard_normal((n, 2, 6)), transposed=True
            ),
        ]
    )
    return {
        "dense": entk.Dense(rng.standard_normal((n, 2, 7))),
        "outer": entk.Outer(rng.standard_normal((n, 5)), rng.standard_normal((n, 2, 3))),
        "groups": entk.Outer(
            rng.standard_normal((n, 2, 3, 4)), rng.standard_normal((n, 2, 2, 3, 2))
        ),
        "lookup": entk.Lookup(ids, rng.standard_normal((n, 2, 3, 4))),
        "tied": tied,
    }


@pytest.mark.parametrize("kind", ["dense", "outer", "groups", "lookup", "tied", "all"])
def test_a_sketch_is_unbiased_with_the_error_it_states(rng, kind):
    parts = leaves(rng, 5)
    factors = entk.Factors(parts if kind == "all" else {kind: parts[kind]})
    exact = reference.assemble(factors)
    seeds = 60
    draws = [lowrank.sketch(factors, 40, seed=s) for s in range(seeds)]
    kernels = np.array([d.factor @ d.factor.T for d in draws])
    size = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    spread = np.sqrt((9 * size**2 - exact**2) / 40)
    off = np.abs(kernels.mean(axis=0) - exact)
    assert (off <= SIGMAS * spread / np.sqrt(seeds)).all()
    # A sample variance of 60 draws is within this of its mean.
    assert (kernels.var(axis=0) <= spread**2 * (1 + SIGMAS * np.sqrt(2 / seeds))).all()
    assert draws[0].entry_error == 3 / np.sqrt(40)


def test_a_kernel_of_one_parameter_is_sketched_exactly(rng):
    """The square of a sign is 1, so there is nothing random left but the scale."""
    x = rng.standard_normal((6, 1))
    for leaf in (entk.Dense(x), entk.Outer(x, np.ones((6, 1)))):
        low = lowrank.sketch(entk.Factors({"w": leaf}), 40)
        assert_rounding(low.factor @ low.factor.T, x @ x.T, 40)


def test_sketches_of_parts_are_the_parts_of_the_sketch(rng):
    factors = entk.Factors(leaves(rng, 6))
    whole = lowrank.sketch(factors, 300, seed=7).factor
    part = lowrank.sketch(factors.take([1, 4]), 300, seed=7).factor
    assert_rounding(part, whole.reshape(6, 2, -1)[[1, 4]].reshape(4, -1), 60)
