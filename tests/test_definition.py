"""`entk.assemble` against `entk.reference`: any factors, any question, any options."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import entk
from bounds import assert_same_bits, check
from cases import cast, every_leaf, lookup, mlp, normal, outer

IDS = ("int8", "uint8", ">i2", "int32", "uint32", "int64", ">u8")
TYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint16", ">f4", ">f8")
OUTPUTS = ("full", "sum", "trace", "diagonal", 0, "vector", "matrix")

pytestmark = pytest.mark.filterwarnings("ignore:.*has 0 input features", "ignore:.*0 features")


@st.composite
def sizes(draw):
    """Sizes of one leaf: mostly small, now and then wider than a chain block."""
    width = st.one_of(st.integers(0, 9), st.sampled_from([17, 257, 300]))
    return {
        "g": draw(st.sampled_from([None, 1, 3])),
        "t": draw(st.sampled_from([1, 2, 5, 20])),
        "d_in": draw(width),
        "d_out": draw(st.integers(0, 9)),
    }


@st.composite
def leaf_makers(draw):
    """A function (rng, n, rows) -> leaf; both sides of a kernel are made by it."""
    kind = draw(st.sampled_from(["dense", "outer", "lookup", "tied"]))
    size, dtype = draw(sizes()), draw(st.sampled_from(TYPES))
    ids = draw(st.sampled_from(IDS))

    def table_row_numbers(rng, n, height):
        low = 0 if "u" in ids else -1
        return rng.integers(low, min(height, 100), (n, size["t"])).astype(ids)

    def make(rng, n, rows):
        leading = (n,) if rows == 1 else (n, rows)
        d = size["d_out"]
        if kind == "dense":
            return entk.Dense(values(rng, (*leading, size["d_in"]), dtype))
        if kind == "lookup":
            number = table_row_numbers(rng, n, 4)
            return entk.Lookup(number, values(rng, (*leading, size["t"], d), dtype))
        body = (size["t"],) if size["g"] is None else (size["g"], size["t"])
        height = max(size["d_in"], 1)
        acts = values(rng, (n, *body, height if kind == "tied" else size["d_in"]), dtype)
        cots = values(rng, (*leading, *body, d), dtype)
        if kind == "outer" or size["g"] not in (None, 1):
            return entk.Outer(acts, cots)
        number = table_row_numbers(rng, n, height)
        return entk.Tied(
            [
                entk.Lookup(number, values(rng, (*leading, size["t"], d), dtype)),
                entk.Outer(acts, cots),
                entk.Outer(
                    values(rng, (n, d), dtype),
                    values(rng, (*leading, height), dtype),
                    transposed=True,
                ),
            ]
        )

    return make


def values(rng, shape, dtype):
    if dtype.lstrip(">")[0] in "iu":
        # So small that sums stay exact: an odd square is 1 modulo 8, so where the last bit is worth
        # 2 a diagonal entry is always rounded down, which breaks the soft bound but not the hard.
        return rng.integers(0, 3, shape).astype(dtype)
    return cast(rng.standard_normal(shape), dtype)


@st.composite
def questions(draw):
    """Factors, another side or none, and options of assemble."""
    makers = draw(st.lists(leaf_makers(), min_size=1, max_size=3))
    rows = draw(st.sampled_from([1, 1, 2, 3]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    n, m = draw(st.integers(1, 20)), draw(st.integers(1, 20))

    def side(examples):
        return entk.Factors({str(i): make(rng, examples, rows) for i, make in enumerate(makers)})

    factors, other = side(n), side(m) if draw(st.booleans()) else None
    outputs = None if rows == 1 else draw(st.sampled_from(OUTPUTS))
    if outputs == "vector":
        outputs = rng.standard_normal(rows)
    elif outputs == "matrix":
        outputs = rng.standard_normal((n, rows))
        outputs = outputs if other is None else (outputs, rng.standard_normal((m, rows)))
    options = {
        "tile": draw(st.sampled_from([1, 7, 16, 4096])),
        "threads": draw(st.sampled_from([1, 2])),
        "accumulate": draw(st.sampled_from([None, "float64"])),
    }
    return factors, other, outputs, options


@settings(deadline=None, max_examples=150)
@given(questions())
def test_assemble_is_the_definition_within_its_bound(question):
    factors, other, outputs, options = question
    kernel = entk.assemble(factors, other, outputs=outputs, **options)
    assert kernel.dtype == factors.dtype
    accumulate = options["accumulate"] or kernel.dtype.name
    check(kernel, factors, other=other, outputs=outputs, accumulate=accumulate)


@settings(deadline=None, max_examples=50)
@given(questions())
def test_the_diagonal_has_the_bits_of_the_kernel(question):
    factors, _, outputs, _ = question
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    kernel = entk.assemble(factors, outputs=outputs)
    expected = np.diagonal(kernel, axis1=-2, axis2=-1)
    assert_same_bits(entk.diagonal(factors, outputs=outputs), expected)


@settings(deadline=None, max_examples=50)
@given(questions())
def test_the_other_triangle_of_a_cross_kernel_is_the_transpose(question):
    factors, other, outputs, options = question
    if other is None:
        return
    turned = outputs[::-1] if isinstance(outputs, tuple) else outputs
    left = entk.assemble(factors, other, outputs=outputs, **options)
    right = entk.assemble(other, factors, outputs=turned, **options)
    assert_same_bits(left, right.swapaxes(-1, -2))


def test_the_sides_may_have_different_numbers_of_positions(rng):
    left, right = (
        entk.Factors(
            {
                "w": outer(rng, n, t=t, dtype="float64"),
                "e": lookup(rng, n, t=t, dtype="float64"),
            }
        )
        for n, t in ((5, 3), (4, 7))
    )
    check(entk.assemble(left, right), left, other=right)


@pytest.mark.parametrize("held", ["sum", 2, "weights"])
def test_factors_of_one_direction_add_no_scale(rng, held):
    factors = mlp(rng, outputs=held, n_outputs=10)
    plain = entk.Factors(dict(factors))
    assert_same_bits(entk.assemble(factors), entk.assemble(plain))
    assert_same_bits(entk.assemble(factors, outputs=held), entk.assemble(plain))


@pytest.mark.parametrize("outputs", ["sum", 1, "vector", "matrix"])
def test_contracting_before_or_during_assembly_agrees(rng, outputs):
    factors = every_leaf(rng, 9, 3)
    if outputs in ("vector", "matrix"):
        outputs = rng.standard_normal(3 if outputs == "vector" else (9, 3))
    check(entk.assemble(factors.contract(outputs)), factors, outputs=outputs)


def test_leaf_weights_are_factors_on_the_leaves_kernels(rng):
    factors = mlp(rng, 9, dtype="float64")
    weights = {"fc1.*": 2.0, "fc1.bias": 0.5, "fc2.weight": 0.0}
    parts = {name: entk.assemble(factors.select(name)) for name in factors}
    expected = 2 * parts["fc1.weight"] + 0.5 * parts["fc1.bias"] + parts["fc2.bias"]
    assert_same_bits(entk.assemble(factors, leaf_weights=weights), expected)


def test_a_kernel_of_one_leaf_and_its_bias_costs_the_sum_of_both(rng):
    cots = normal(rng, (9, 3))
    weight = entk.Outer(normal(rng, (9, 4)), cots)
    both = entk.Factors({"w": weight, "b": entk.Dense(cots)})
    check(entk.assemble(both), both)
