"""Batches, directions, reuse and the audit of `entk.jax.factors`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entk.jax
from bounds import JACOBIAN
from entk import reference
from entk.jax import _example, _inputs, _plan, _program, _witness
from jax_libraries import linen_cnn
from jax_networks import Numbers
from jax_oracle import error, jacobian, summed

NEW = Numbers(jnp.float32)
PARAMS = {"b": NEW(4), "w": NEW(5, 8), "v": NEW(8, 4)}
X = NEW(7, 5)


def net(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"] + p["b"]


def arrays(factors):
    return [
        np.asarray(getattr(factors[name], part))
        for name in factors
        for part in ("jac", "acts", "ids", "cots")
        if hasattr(factors[name], part)
    ]


def assert_close(one, other):
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert np.abs(a - b).max() <= JACOBIAN["float32"] * np.abs(b).max()


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
def test_batches_of_any_size_give_the_same_factors(size):
    assert_close(
        entk.jax.factors(net, PARAMS, X, batch_size=size), entk.jax.factors(net, PARAMS, X)
    )


def test_inputs_may_be_numpy_or_on_the_device():
    assert_close(
        entk.jax.factors(net, PARAMS, np.asarray(X), batch_size=3), entk.jax.factors(net, PARAMS, X)
    )
    swapped = np.asarray(X).astype(">f4")
    assert_close(entk.jax.factors(net, PARAMS, swapped), entk.jax.factors(net, PARAMS, X))
    host = jax.tree.map(np.asarray, PARAMS)
    assert_close(entk.jax.factors(net, host, X), entk.jax.factors(net, PARAMS, X))


def test_progress_counts_examples_from_nothing_to_all():
    seen = []
    entk.jax.factors(net, PARAMS, X, batch_size=3, progress=lambda *now: seen.append(now))
    assert seen == [(0, 7), (3, 7), (6, 7), (7, 7)]


def test_an_interrupt_between_batches_passes_through():
    def stop(done, n):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entk.jax.factors(net, PARAMS, X, batch_size=2, progress=stop)


def test_directions_are_those_of_the_jacobian():
    rows = jacobian(net, PARAMS, X)
    one, many = np.arange(4.0), np.asarray(NEW(7, 4), np.float64)
    cases = [
        ("sum", "sum", summed(rows)),
        ("full", "full", rows),
        (2, 2, rows[:, 2:3]),
        (np.int64(0), 0, rows[:, :1]),
        (one, "weights", np.einsum("o,nop->np", one, rows)[:, None]),
        (many, "weights", np.einsum("no,nop->np", many, rows)[:, None]),
    ]
    for outputs, meaning, gradients in cases:
        factors = entk.jax.factors(net, PARAMS, X, outputs=outputs, batch_size=4)
        assert (factors.outputs, factors.n_outputs) == (meaning, 4)
        assert error(factors, gradients) < JACOBIAN["float32"]


def test_summed_full_factors_are_the_factors_of_the_sum():
    full = entk.jax.factors(net, PARAMS, X, outputs="full")
    one = reference.assemble(entk.jax.factors(net, PARAMS, X))
    contracted = reference.assemble(full, outputs="sum")
    assert np.abs(contracted - one).max() < JACOBIAN["float32"] * np.abs(one).max()


def test_dense_factors_are_the_jacobian_in_the_order_of_the_parameters():
    rows = jacobian(net, PARAMS, X)
    factors = entk.jax.factors(net, PARAMS, X, outputs="full", structure=False)
    assert {type(leaf) for leaf in factors.values()} == {entk.Dense}
    joined = np.concatenate([np.asarray(leaf.jac) for leaf in factors.values()], 2)
    assert np.abs(joined - rows).max() < JACOBIAN["float32"] * np.abs(rows).max()


def test_leaves_dense_by_count_keep_the_order_of_the_parameter():
    f, params, x, _ = linen_cnn(jnp.float32)
    chosen = entk.jax.factors(f, params, x)
    forced = entk.jax.factors(f, params, x, structure=False)
    dense = [name for name in chosen if isinstance(chosen[name], entk.Dense)]
    assert "params.Conv_0.kernel" in dense
    for name in dense:
        a, b = (np.asarray(F[name].jac) for F in (chosen, forced))
        assert np.abs(a - b).max() < JACOBIAN["float32"] * np.abs(b).max()


def test_half_precision_networks_give_half_precision_factors():
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
    factors = entk.jax.factors(net, params, X.astype(jnp.bfloat16))
    assert {np.asarray(a).dtype for a in arrays(factors)} == {np.dtype(jnp.bfloat16)}
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    truth = reference.assemble(entk.jax.factors(net, wide, X))
    assert np.abs(reference.assemble(factors) - truth).max() < 0.05 * np.abs(truth).max()


def test_single_arrays_and_equal_paths_have_names():
    assert entk.jax.factors(lambda w, x: x @ w, PARAMS["w"], X).leaves == ("params",)
    clash = {"a": {"b": PARAMS["w"]}, "a.b": PARAMS["v"]}
    factors = entk.jax.factors(lambda p, x: x @ p["a"]["b"] @ p["a.b"], clash, X)
    assert factors.leaves == ("['a']['b']", "['a.b']")


def test_a_second_call_compiles_nothing(monkeypatch):
    def f(p, x):
        return net(p, 2 * x)

    entk.jax.factors(f, PARAMS, X)
    made = []
    monkeypatch.setattr(_program, "make_program", lambda *a, **k: made.append(a))
    monkeypatch.setattr("entk.jax._extraction.make_program", lambda *a, **k: made.append(a))
    entk.jax.factors(f, PARAMS, X + 1)
    assert not made


def test_values_a_function_closes_over_may_change_between_calls():
    state = {"shift": jnp.zeros(5), "scale": 1.0}

    def f(p, x):
        return net(p, state["scale"] * x + state["shift"])

    before = reference.assemble(entk.jax.factors(f, PARAMS, X))
    state["shift"] = state["shift"] + 1
    shifted = entk.jax.factors(f, PARAMS, X)
    assert error(shifted, summed(jacobian(f, PARAMS, X))) < JACOBIAN["float32"]
    state["scale"] = 3.0
    scaled = entk.jax.factors(f, PARAMS, X)
    assert error(scaled, summed(jacobian(f, PARAMS, X))) < JACOBIAN["float32"]
    assert not np.allclose(before, reference.assemble(scaled))


def test_functions_are_not_kept_alive():
    import gc
    import weakref

    def f(p, x):
        return net(p, x)

    entk.jax.factors(f, PARAMS, X)
    gone = weakref.ref(f)
    del f
    gc.collect()
    assert gone() is None


def test_a_leaf_whose_factors_are_wrong_becomes_dense(monkeypatch):
    """A seeded bug: cotangents of products are halved. The audit sees it, and nothing is wrong."""
    real = _example._cotangent
    monkeypatch.setattr(_example, "_cotangent", lambda site, cot: 0.5 * real(site, cot))

    def f(p, x):
        return net(p, x)

    with pytest.warns(entk.jax.ModelWarning, match="w failed the audit"):
        factors = entk.jax.factors(f, PARAMS, X)
    assert isinstance(factors["w"], entk.Dense)
    assert factors.reason("w") == "its factors failed the audit"
    assert error(factors, summed(jacobian(net, PARAMS, X))) < JACOBIAN["float32"]


def test_the_audit_does_not_take_noise_for_a_mistake():
    """The sum of probabilities is constant: every gradient is rounding."""

    def f(p, x):
        return jax.nn.softmax(net(p, x))

    assert isinstance(entk.jax.factors(f, PARAMS, X)["w"], entk.Outer)


def test_overlapping_uses_are_told_apart(monkeypatch):
    """Without the comparison of indices the kernel is wrong, and only the audit is left."""

    def f(p, x):
        return jnp.tanh(x @ p["W"][:, :4]) @ p["W"][1:, 2:6]

    params = {"W": NEW(5, 8)}
    factors = entk.jax.factors(f, params, X)
    assert factors.reason("W") == "uses of overlapping parts in different arrangements"
    assert error(factors, summed(jacobian(f, params, X))) < JACOBIAN["float32"]
    monkeypatch.setattr(_plan, "disjoint", lambda *_: True)

    def same(p, x):
        return f(p, x)

    blind = entk.jax.factors(same, params, X, audit=False)
    assert error(blind, summed(jacobian(f, params, X))) > 100 * JACOBIAN["float32"]
    with pytest.warns(entk.jax.ModelWarning, match="W failed the audit"):
        seen = entk.jax.factors(same, params, X)
    assert error(seen, summed(jacobian(f, params, X))) < JACOBIAN["float32"]


def test_outputs_that_depend_on_the_batching_are_refused():
    @jax.custom_batching.custom_vmap
    def twice(x):
        return 2 * x

    @twice.def_vmap
    def _(axis_size, in_batched, x):
        return 3 * x, in_batched[0]

    with pytest.raises(entk.ModelError, match="a custom_vmap rule"):
        entk.jax.factors(lambda p, x: net(p, twice(x)), PARAMS, X)


def test_gradients_that_no_form_of_leaf_gives_are_refused(monkeypatch):
    """A seeded bug: what `jax.grad` is said to give differs from every leaf, dense ones too."""
    real = _witness.Witness.gradient
    monkeypatch.setattr(
        _witness.Witness, "gradient", lambda *a: [1.5 * gradient for gradient in real(*a)]
    )
    with (
        pytest.warns(entk.jax.ModelWarning, match="failed the audit"),
        pytest.raises(entk.ModelError, match=r"differs from jax.grad of one example"),
    ):
        entk.jax.factors(lambda p, x: net({**p, "b": 0.0}, x), {"w": NEW(5, 8), "v": NEW(8, 4)}, X)


def test_arrays_that_are_the_same_numbers_are_kept_once():
    """A bias has the cotangents of its weight, and heads read one array."""

    def f(p, x):
        h = jnp.tanh(x @ p["w"] + p["b"])
        return (h @ p["q"]) * jnp.tanh(h @ p["k"])

    params = {"w": NEW(9, 8), "b": NEW(8), "q": NEW(8, 4), "k": NEW(8, 4)}
    x = np.array(NEW(7, 9))
    factors = entk.jax.factors(f, params, x, batch_size=3)
    assert np.shares_memory(factors["b"].jac, factors["w"].cots)
    assert np.shares_memory(factors["q"].acts, factors["k"].acts)
    assert not np.shares_memory(factors["w"].acts, x)
    on_device = entk.jax.factors(f, params, jnp.asarray(x))
    assert_close(factors, on_device)
    assert error(factors, summed(jacobian(f, params, jnp.asarray(x)))) < JACOBIAN["float32"]


def test_the_audit_looks_at_few_examples():
    assert _inputs.picks(1) == [0]
    assert _inputs.picks(1000) == [0, 499, 999]


def test_mixed_precision_passes_the_audit():
    """Parameters in float32, arithmetic in bfloat16: noise is that of bfloat16."""

    def f(p, x):
        half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), p)
        return net(half, x.astype(jnp.bfloat16)).astype(jnp.float32)

    factors = entk.jax.factors(f, PARAMS, X)
    assert isinstance(factors["w"], entk.Outer)
    assert {a.dtype for a in arrays(factors)} == {np.dtype(np.float32)}


def test_gradients_that_are_not_finite_are_left_to_the_assembly():
    factors = entk.jax.factors(net, PARAMS, X.at[0, 0].set(jnp.nan))
    assert isinstance(factors["w"], entk.Outer)
    with pytest.raises(entk.NonFiniteError):
        entk.assemble(factors)


def test_tied_readouts_at_every_position_have_cross_terms():
    def f(p, tokens):
        return jnp.tanh(p["E"][tokens] @ p["W"]) @ p["E"].T

    params = {"E": NEW(13, 4), "W": NEW(4, 4)}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 13, (3, 2)), jnp.int32)
    for outputs in ("sum", "full"):
        factors = entk.jax.factors(f, params, tokens, outputs=outputs)
        rows = jacobian(f, params, tokens)
        assert isinstance(factors["E"], entk.Tied)
        truth = rows if outputs == "full" else summed(rows)
        assert error(factors, truth) < JACOBIAN["float32"]
