"""Accuracy: promises P8 and P9 on the input families, and proof that the checks can fail."""

import numpy as np
import pytest

import entk
import exact
from bounds import KC, NEARLY_ONE, SOFT, SOFT_POSITIONS, check, eigenvalue_floor
from cases import DTYPES, FAMILIES, LEAVES, cast, every_leaf, family, one_leaf

pytestmark = pytest.mark.filterwarnings("ignore:.*it was flushed by float")

# One row tile, and sizes beyond every blocking constant.
SMALL, WIDE, MANY = 17, 2 * KC + 3, 257
PRECISIONS = {
    "float32": {},
    "float64-accumulation": {"accumulate": "float64"},
    "float64": {"dtype": "float64"},
}


def checked(factors, **options):
    """Assemble `factors` and check the kernel against its bounds."""
    kernel = entk.assemble(factors, **options)
    check_options = {k: v for k, v in options.items() if k in ("accumulate", "outputs")}
    return check(kernel, factors, **check_options)


# P8: every entry within its bound. ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [None, 2, 9])
@pytest.mark.parametrize("name", FAMILIES)
def test_p8_every_family_and_type_is_within_its_bound(rng, name, t, dtype):
    checked(family(name, rng, SMALL, t=t, dtype=dtype))


@pytest.mark.parametrize("name", FAMILIES)
def test_p8_float64_accumulation_is_one_rounding_of_the_exact_kernel(rng, name):
    factors = family(name, rng, SMALL, WIDE)
    kernel = entk.assemble(factors, accumulate="float64")
    assert kernel.dtype == np.float32
    check(kernel, factors, accumulate="float64", soft=NEARLY_ONE)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("d", [1, 2, 5, KC - 1, KC, KC + 1, WIDE, 1000])
def test_p8_every_width_is_within_its_bound(rng, d, precision):
    checked(family("F3-gaussian", rng, SMALL, d), **PRECISIONS[precision])


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, MANY])
def test_p8_every_number_of_examples_is_within_its_bound(rng, n):
    checked(family("F4-non-negative", rng, n, 40), tile=100)


@pytest.mark.parametrize("name", ["F3-gaussian", "F4-non-negative", "F7-cancelling"])
def test_p8_problems_beyond_every_blocking_constant_are_within_their_bound(rng, name):
    factors = family(name, rng, 2 * 384 + 5, WIDE, 20, leaves=1)
    # Equal pairs round alike, so their errors add up: 600,000 entries of them reach 19 u.
    soft = SOFT_POSITIONS if name == "F7-cancelling" else SOFT
    check(entk.assemble(factors), factors, soft=soft)


@pytest.mark.parametrize("leaves", [1, 8])
def test_p8_every_number_of_leaves_is_within_its_bound(rng, leaves):
    checked(family("F9-graded-layers", rng, SMALL, leaves=leaves))


@pytest.mark.parametrize("outputs", ["full", "sum", "trace", "diagonal", 1, "weights"])
@pytest.mark.parametrize("kind", LEAVES)
def test_p8_every_leaf_and_contraction_is_within_its_bound(rng, kind, outputs):
    factors = one_leaf(kind, rng, SMALL, 3)
    checked(factors, outputs=rng.standard_normal((SMALL, 3)) if outputs == "weights" else outputs)


@pytest.mark.parametrize("outputs", ["full", "sum", "trace", "diagonal", 1, "weights"])
def test_p8_cross_kernels_are_within_their_bound(rng, outputs):
    factors, other = every_leaf(rng, SMALL, 3), every_leaf(rng, 5, 3)
    if outputs == "weights":
        outputs = rng.standard_normal((SMALL, 3)), rng.standard_normal((5, 3))
    check(entk.assemble(factors, other, outputs=outputs), factors, other=other, outputs=outputs)


@pytest.mark.parametrize("t", [20, 40])
def test_p8_many_positions_are_within_their_bound(rng, t):
    for name in ("F3-gaussian", "F7-cancelling"):
        checked(family(name, rng, SMALL, 12, 10, t=t, leaves=1))


@pytest.mark.parametrize("t", [None, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_p8_float64_is_within_its_bound_of_the_exact_kernel(rng, name, t):
    """In whole numbers, since float64 cannot judge float64."""
    factors = family(name, rng, 7, 20, 5, t=t, dtype="float64")
    check(entk.assemble(factors), factors, exact=exact.kernel(factors))


@pytest.mark.parametrize("d", [KC, KC + 1, WIDE])
def test_p8_float64_chains_are_within_their_bound_of_the_exact_kernel(rng, d):
    factors = family("F4-non-negative", rng, 3, d, 5, dtype="float64")
    check(entk.assemble(factors), factors, exact=exact.kernel(factors))


@pytest.mark.parametrize("engine", ["fused", "blas"])
def test_p8_both_engines_are_within_the_bound(rng, engine):
    factors = family("F3-gaussian", rng, 65, WIDE)
    check(entk.assemble(factors, engine=engine), factors)


# P9: positive semi-definite up to the floor. -----------------------------------------------------


def clusters(rng, n):
    """Examples near a few centres: the hardest spectra there are."""
    centres = rng.standard_normal((10, 30))
    return centres[np.arange(n) % 10] + 1e-3 * rng.standard_normal((n, 30))


def smooth(rng, n):
    """Smooth features of one variable: a kernel of small numerical rank."""
    x = np.linspace(-1, 1, n)[:, None]
    return np.tanh(x @ rng.standard_normal((1, 30)) + rng.standard_normal(30))


def two_leaves(features, rng, dtype):
    hidden = np.tanh(features @ rng.standard_normal((30, 20)))
    return entk.Factors(
        {
            "fc1": entk.Outer(cast(features, dtype), cast(1 - hidden**2, dtype)),
            "fc2": entk.Outer(cast(hidden, dtype), cast(np.ones((len(features), 1)), dtype)),
        }
    )


PSD_FAMILIES = {
    "clusters": clusters,
    "smooth": smooth,
    "duplicates": lambda rng, n: rng.standard_normal((n, 30))[np.arange(n) // 2],
    "all-equal": lambda rng, n: np.tile(rng.standard_normal((1, 30)), (n, 1)),
    "zero-rows": lambda rng, n: rng.standard_normal((n, 30)) * (np.arange(n) % 7 > 0)[:, None],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("name", PSD_FAMILIES)
def test_p9_no_eigenvalue_lies_below_the_floor(rng, name, options, dtype):
    factors = two_leaves(PSD_FAMILIES[name](rng, 150), rng, dtype)
    kernel = entk.assemble(factors, **options)
    u = "float64" if options.get("dtype") == "float64" else "float32"
    lowest = np.linalg.eigvalsh(kernel.astype(np.float64))[0]
    assert lowest >= -eigenvalue_floor(kernel, factors, unit=u)


def test_p9_bfloat16_factors_give_a_semi_definite_kernel_in_float64(rng):
    factors = two_leaves(clusters(rng, 150), rng, "bfloat16")
    kernel = entk.assemble(factors, dtype="float64")
    floor = eigenvalue_floor(kernel, factors, unit="float64")
    assert np.linalg.eigvalsh(kernel)[0] >= -floor


# The checks can fail. ----------------------------------------------------------------------------


def planted(rng, size):
    """A kernel with one entry off by `size`, relative to the diagonal."""
    factors = family("F3-gaussian", rng, SMALL)
    kernel = entk.reference.assemble(factors).astype(np.float32)
    kernel[3, 9] += np.float32(size * np.sqrt(kernel[3, 3] * kernel[9, 9]))
    return kernel, factors


def test_a_planted_error_breaks_the_hard_bound(rng):
    kernel, factors = planted(rng, 3e-4)
    with pytest.raises(AssertionError, match="error bound violated"):
        check(kernel, factors)


def test_a_small_planted_error_breaks_the_soft_bound(rng):
    kernel, factors = planted(rng, 2e-6)
    with pytest.raises(AssertionError, match="more than 16"):
        check(kernel, factors)


def test_a_right_kernel_passes(rng):
    kernel, factors = planted(rng, 0.0)
    assert check(kernel, factors, accumulate="float64", soft=NEARLY_ONE).cancel < 1 + NEARLY_ONE


def test_an_indefinite_kernel_is_below_the_floor(rng):
    factors = two_leaves(clusters(rng, 150), rng, "float32")
    kernel = entk.reference.assemble(factors)
    floor = eigenvalue_floor(kernel, factors, unit="float32")
    shifted = kernel - 2e-6 * np.mean(np.diag(kernel)) * np.eye(150)
    assert np.linalg.eigvalsh(shifted)[0] < -floor


def test_the_exact_kernel_agrees_with_the_reference(rng):
    factors = family("F3-gaussian", rng, 5, t=3, dtype="float64")
    check(entk.reference.assemble(factors), factors, exact=exact.kernel(factors))
