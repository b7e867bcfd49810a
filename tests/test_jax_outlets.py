"""Results of a traced program that are the same numbers in the same order are found."""

import jax
import jax.numpy as jnp
import pytest

from entk.jax._outlets import Source, outlets

X, W = jnp.ones((1, 6)), jnp.ones((6, 4))


def found(function):
    jaxpr = jax.make_jaxpr(function)(X, W).jaxpr
    return outlets(jaxpr, jaxpr.invars[:1])


def test_shapes_and_sums_over_one_row_keep_the_numbers():
    def results(x, w):
        h = x @ w
        return h, h.reshape(2, 2), h.sum(0), h[0, None, :], h.T, x[None].ravel()

    first = Source(0)
    assert found(results).sources == (first,) * 5 + (Source(0, of_input=True),)
    assert found(results).computed == (0,)


@pytest.mark.parametrize(
    "other",
    [
        lambda h: -h,
        lambda h: h.reshape(2, 2).T,
        lambda h: h[:, ::-1],
        lambda h: h.sum(1),
        lambda h: h.astype(jnp.bfloat16),
        lambda h: jnp.broadcast_to(h, (2, 4)),
    ],
)
def test_other_numbers_or_orders_are_kept_apart(other):
    def results(x, w):
        h = x @ w
        return h, other(h)

    assert found(results).computed == (0, 1)
    assert found(results).sources == (Source(0), Source(1))


def test_constants_are_results_of_their_own():
    assert found(lambda x, w: (1.0, 1.0)).computed == (0, 1)
