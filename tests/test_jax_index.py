"""Indices of views are those NumPy gives to an array of positions."""

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from entk._forms import choose, choose_lookup, choose_loop
from entk.jax._index import Explicit, Strided, disjoint, same

SIDES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@st.composite
def steps(draw, index):
    """Draw one operation; return how an index and an array of positions take it."""
    shape = index.shape
    kind = draw(st.sampled_from(["transpose", "cut", "reshape", "broadcast"]))
    if kind == "transpose":
        order = draw(st.permutations(range(len(shape))))
        return lambda i: i.transpose(order), lambda a: a.transpose(order)
    if kind == "cut":
        cuts = [draw(st.slices(n).filter(lambda s, n=n: range(n)[s])) for n in shape]
        return lambda i: i.cut(cuts), lambda a: a[tuple(cuts)]
    if kind == "broadcast":
        wide = (2, *shape)
        axes = range(1, len(wide))
        return lambda i: i.broadcast(wide, axes), lambda a: np.broadcast_to(a, wide)
    size, sides = prod(shape), []
    while size > 1:
        sides.append(draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])))
        size //= sides[-1]
        if sides[-1] == 1:
            break
    new = (*sides, size)
    return lambda i: i.reshape(new), lambda a: a.reshape(new)


@settings(deadline=None, max_examples=200)
@given(st.data(), SIDES, st.integers(1, 4))
def test_views_follow_numpy(data, sides, count):
    index, array = Strided.whole(sides), np.arange(prod(sides)).reshape(sides)
    flat = np.random.default_rng(0).standard_normal(array.size)
    for _ in range(count):
        if prod(index.shape) > 200:
            break
        on_index, on_array = data.draw(steps(index))
        index, array = on_index(index), on_array(array)
    assert index.shape == array.shape
    assert (index.positions() == array).all()
    assert index.injective() == (np.unique(array).size == array.size)
    assert index.bounds() == (array.min(), array.max())
    assert same(index, Explicit(np.array(array)))
    order = index.leaf_order(flat.size)
    if order is not None:
        assert (flat[array].transpose(order).reshape(-1) == flat).all()


@settings(deadline=None)
@given(st.data())
def test_disjoint_means_no_element_in_common(data):
    whole = Strided.whole((4, 6))
    pieces = [whole.cut([data.draw(st.slices(n)) for n in whole.shape]) for _ in range(2)]
    one, other = (set(piece.positions().ravel().tolist()) for piece in pieces)
    assert disjoint(*pieces) == (not one & other)


def test_large_parameters_need_no_array():
    index = Strided.whole((1 << 20, 1 << 20)).transpose((1, 0)).reshape((1 << 10, 1 << 10, 1 << 20))
    assert isinstance(index, Strided)
    assert index.injective()
    assert index.leaf_order(1 << 40) == (2, 0, 1)


POSITIVE = st.integers(1, 2000)


@given(POSITIVE, POSITIVE, POSITIVE, st.integers(1, 1000), st.integers(1, 8))
def test_weights_with_smaller_factors_are_never_dense(t, d_in, d_out, rows, groups):
    for pick in (choose, choose_loop):
        form, reason = pick(t, d_in, d_out, rows, groups)
        if t * (d_in + d_out) < d_in * d_out:
            assert form == "outer"
        assert reason


@given(POSITIVE, POSITIVE, POSITIVE)
def test_forms_chosen_for_one_row_are_smaller_or_cheaper(t, d_in, d_out):
    form, _ = choose(t, d_in, d_out, 1)
    smaller = t * (d_in + d_out) < d_in * d_out
    cheaper = t * t * (d_in + d_out + 1) < d_in * d_out
    excess, dense = t * (d_in + d_out) - d_in * d_out, d_in * d_out
    made = 2 * excess <= dense and 32 * excess < t * dense
    assert (form == "outer") == (smaller or cheaper or made)


@given(POSITIVE, POSITIVE, POSITIVE, st.integers(1, 1000))
def test_tables_read_at_few_rows_are_never_dense(t, table_rows, d, rows):
    form, _ = choose_lookup(t, table_rows, d, rows)
    if t * (table_rows + d) < table_rows * d:
        assert form == "lookup"
