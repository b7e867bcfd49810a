"""The definitions against each other: Gram products of factors, and an explicit ``J J^T``."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import entk
from bounds import assert_close_in_float64
from cases import LEAVES, every_leaf, lookup, one_leaf, outer
from entk import reference

N, M, R = 5, 4, 3
TERMS = 1000


def explicit(factors, other=None):
    """Return ``Theta[n, r, m, s]`` by forming both Jacobians."""
    columns = factors if other is None else other
    heights = {
        name: max(int(f[name]._ids.array.max(initial=-1)) + 1 for f in (factors, columns))
        for name in factors
        if name.startswith("lookup")
    }
    left = np.concatenate(reference.jacobian(factors, heights=heights), axis=2)
    right = np.concatenate(reference.jacobian(columns, heights=heights), axis=2)
    return np.einsum("nrp,msp->nrms", left, right)


@pytest.mark.parametrize("kind", LEAVES)
def test_gram_products_equal_the_explicit_jacobian(rng, kind):
    factors = one_leaf(kind, rng, N, R, "float64")
    assert_close_in_float64(reference.blocks(factors), explicit(factors), TERMS)


@pytest.mark.parametrize("kind", LEAVES)
def test_cross_blocks_equal_the_explicit_jacobians(rng, kind):
    factors, other = (one_leaf(kind, rng, n, R, "float64") for n in (N, M))
    assert_close_in_float64(reference.blocks(factors, other), explicit(factors, other), TERMS)


def test_the_kernel_of_several_leaves_is_the_sum_of_their_kernels(rng):
    factors = every_leaf(rng, N, R, "float64")
    parts = [reference.blocks(factors.select(name)) for name in factors]
    assert_close_in_float64(reference.blocks(factors), sum(parts), TERMS)


sides = st.integers(0, 4)


@settings(deadline=None, max_examples=60)
@given(n=sides, g=st.integers(1, 3), t=sides, d_in=sides, d_out=sides, seed=st.integers(0, 99))
def test_any_shape_equals_the_explicit_jacobian(n, g, t, d_in, d_out, seed):
    rng = np.random.default_rng(seed)
    sizes = {"d_in": d_in, "d_out": d_out, "dtype": "float64"}
    factors = entk.Factors(
        {
            "plain": outer(rng, n, 2, **sizes),
            "positions": outer(rng, n, 2, t=t, **sizes),
            "blocks": outer(rng, n, 2, g=g, t=t, **sizes),
            "lookup": lookup(rng, n, 2, t, d_out, dtype="float64"),
        }
    )
    assert_close_in_float64(reference.blocks(factors), explicit(factors), TERMS)


def contracted_by_hand(theta, outputs, w, v):
    """Every kernel of the contract, written as loops over outputs."""
    o = theta.shape[1]
    pairs = [(a, b) for a in range(o) for b in range(o)]
    if isinstance(outputs, int):
        return theta[:, outputs, :, outputs]
    return {
        "full": lambda: np.block([[theta[n, :, m] for m in range(M)] for n in range(N)]),
        "sum": lambda: sum(theta[:, a, :, b] for a, b in pairs) / o,
        "trace": lambda: sum(theta[:, a, :, a] for a in range(o)) / o,
        "diagonal": lambda: np.stack([theta[:, a, :, a] for a in range(o)]),
        "weights": lambda: sum(w[:, a, None] * theta[:, a, :, b] * v[None, :, b] for a, b in pairs),
    }[outputs]()


@pytest.mark.parametrize("outputs", ["full", "sum", "trace", "diagonal", 0, 2, "weights"])
def test_every_outputs_is_its_contraction_of_the_full_kernel(rng, outputs):
    factors, other = (every_leaf(rng, n, R, "float64") for n in (N, M))
    w, v = rng.standard_normal((N, R)), rng.standard_normal((M, R))
    wanted = contracted_by_hand(explicit(factors, other), outputs, w, v)
    asked = (w, v) if outputs == "weights" else outputs
    assert_close_in_float64(reference.assemble(factors, other, asked), wanted, TERMS)


def test_weights_of_one_axis_serve_every_example_of_both_sides(rng):
    factors, other = (every_leaf(rng, n, R, "float64") for n in (N, M))
    w = rng.standard_normal(R)
    both = (np.tile(w, (N, 1)), np.tile(w, (M, 1)))
    expected = reference.assemble(factors, other, both)
    assert_close_in_float64(reference.assemble(factors, other, w), expected, TERMS)
    assert_close_in_float64(reference.assemble(factors, other, (w, w)), expected, TERMS)


def test_a_full_kernel_is_ordered_by_samples_then_outputs(rng):
    factors = one_leaf("dense", rng, N, R, "float64")
    jac = factors["dense"].jac.reshape(N * R, -1)
    assert_close_in_float64(reference.assemble(factors), jac @ jac.T, TERMS)


def test_the_sum_kernel_is_that_of_the_summed_outputs(rng):
    factors = every_leaf(rng, N, R, "float64")
    jac = np.concatenate(reference.jacobian(factors), axis=2).sum(axis=1) / np.sqrt(R)
    assert_close_in_float64(reference.assemble(factors, outputs="sum"), jac @ jac.T, TERMS)


def test_a_transposed_use_of_one_matrix_adds_cross_terms(rng):
    """f(x) = x W W^T for a square W: two uses, one of them transposed."""
    square = {"d_in": 3, "d_out": 3, "dtype": "float64"}
    plain, turned = outer(rng, N, **square), outer(rng, N, **square, transposed=True)
    both = entk.Factors({"w": entk.Tied([plain, turned])})
    tables = [np.einsum("na,nb->nab", plain.acts, plain.cots)]
    tables.append(np.einsum("na,nb->nba", turned.acts, turned.cots))
    jac = sum(tables).reshape(N, -1)
    assert_close_in_float64(reference.assemble(both), jac @ jac.T, TERMS)
    apart = reference.assemble({"a": plain, "b": turned})
    cross = np.einsum("nab,mab->nm", *tables)
    assert_close_in_float64(apart + cross + cross.T, jac @ jac.T, TERMS)


def test_an_embedding_tied_to_its_readout_equals_its_table_gradient(rng):
    height, d, t = 6, 3, 4
    embed = lookup(rng, N, 1, t, d, height, "float64")
    read = outer(rng, N, d_in=d, d_out=height, dtype="float64", transposed=True)
    table = np.einsum("nd,nv->nvd", read.acts, read.cots)
    for n, position in np.argwhere(embed.ids >= 0):
        table[n, embed.ids[n, position]] += embed.cots[n, position]
    jac = table.reshape(N, -1)
    tied = entk.Factors({"embedding": entk.Tied([embed, read])})
    assert_close_in_float64(reference.assemble(tied), jac @ jac.T, TERMS)


def test_ids_of_minus_one_contribute_nothing(rng):
    cots = rng.standard_normal((N, 4, 3))
    nothing = entk.Factors({"e": entk.Lookup(np.full((N, 4), -1), cots)})
    np.testing.assert_array_equal(reference.assemble(nothing), np.zeros((N, N)))


def test_an_id_beyond_a_tied_table_is_refused(rng):
    uses = [lookup(rng, height=9), outer(rng, d_in=3, d_out=5, transposed=True)]
    uses[0].ids[0, 0] = 8
    with pytest.raises(entk.InputError, match="id 8 is outside of the tied table, which has 5"):
        reference.assemble({"w": entk.Tied(uses)})


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "bool"])
def test_narrow_types_are_widened_exactly(rng, dtype):
    import ml_dtypes

    acts = rng.integers(0, 2, (N, 6)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    wide = np.asarray(acts, np.float64)
    narrow = reference.assemble({"w": entk.Outer(acts, acts[:, :2])})
    np.testing.assert_array_equal(narrow, (wide @ wide.T) * (wide[:, :2] @ wide[:, :2].T))


def test_absolute_blocks_bound_the_blocks(rng):
    factors = every_leaf(rng, N, R, "float64")
    assert (np.abs(reference.blocks(factors)) <= reference.blocks(factors, each=np.abs)).all()


def test_no_examples_give_an_empty_kernel(rng):
    empty = every_leaf(rng, N, R).take(slice(0))
    assert reference.assemble(empty).shape == (0, 0)
    assert reference.assemble(empty, every_leaf(rng, M, R), "sum").shape == (0, M)
    assert reference.assemble(empty, outputs="diagonal").shape == (R, 0, 0)
