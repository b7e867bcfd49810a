"""What has no exact gradient per example is refused, in words that say what to do."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import entk.jax
from jax_networks import Numbers

NEW = Numbers(jnp.float32)
W, X = NEW(5, 3), NEW(4, 5)


def linear(w, x):
    return x @ w


def test_batch_norm_in_training_mode_is_refused():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))

    variables = jax.jit(Net().init, static_argnums=2)(jax.random.key(0), X, False)
    stats = variables["batch_stats"]

    def f(params, x, *, train):
        out = Net().apply(
            {"params": params, "batch_stats": stats}, x, train, mutable=["batch_stats"]
        )
        return out[0]

    where = r"begins in layer 'Net/BatchNorm_0', at `reduce_sum`.*use_running_average"
    with pytest.raises(entk.ModelError, match=where):
        entk.jax.factors(lambda p, x: f(p, x, train=True), variables["params"], X)
    assert entk.jax.factors(lambda p, x: f(p, x, train=False), variables["params"], X).n == 4


def test_a_lone_example_does_not_hide_batch_statistics():
    with pytest.raises(entk.ModelError, match="depend on each other"):
        entk.jax.factors(lambda w, x: linear(w, x - x.mean(0)), W, X[:1])


def test_dropout_with_a_fixed_key_is_refused():
    net = nn.Dropout(0.5, deterministic=False)

    def f(w, x):
        return net.apply({}, x @ w, rngs={"dropout": jax.random.key(0)})

    with pytest.raises(entk.ModelError, match="dropout"):
        entk.jax.factors(f, W, X)


def test_position_in_the_batch_is_refused():
    with pytest.raises(entk.ModelError, match=r"position.*begins at `iota`"):
        entk.jax.factors(lambda w, x: linear(w, x) * jnp.arange(1, len(x) + 1)[:, None], W, X)


def test_centring_by_the_batch_is_refused_by_the_operator_too():
    with pytest.raises(entk.ModelError, match="centring by the batch mean"):
        entk.jax.operator(lambda w, x: linear(w, x - x.mean(0)), W, X)


def test_while_loops_over_parameters_are_refused():
    def one(w, x):
        return jax.lax.while_loop(lambda h: (h < 9).any(), lambda h: h + 1 + w[0, 0] ** 2, x @ w)

    f = jax.vmap(one, in_axes=(None, 0))

    with pytest.raises(entk.ModelError, match=r"while_loop.*scan"):
        entk.jax.factors(f, W, X)


def test_while_loops_over_data_are_fine():
    def f(w, x):
        return jax.lax.while_loop(lambda h: jnp.any(h < 3), lambda h: jnp.maximum(h, h + 1), x) @ w

    grown = np.asarray(X)
    with pytest.raises(entk.ModelError, match="depend on each other"):
        entk.jax.factors(f, W, grown)
    factors = entk.jax.factors(jax.vmap(lambda w, x: f(w, x[None])[0], in_axes=(None, 0)), W, grown)
    assert isinstance(factors["params"], entk.Outer)


@pytest.mark.parametrize(
    ("f", "match"),
    [
        (lambda w, x: jnp.argmax(x @ w, 1), "int32; only floating-point outputs"),
        (lambda w, x: (x @ w).sum(), "first axis must be the batch"),
        (lambda w, x: (x @ w).sum(0), "must be the batch|for an example alone"),
        (lambda w, x: (x @ w).T, "first axis must be the batch"),
        (lambda w, x: jnp.fft.fft(x @ w), "complex64; only floating-point outputs"),
        (lambda w, x: None, "returns nothing"),
    ],
)
def test_outputs_that_are_no_batch_of_numbers_are_refused(f, match):
    with pytest.raises(entk.ModelError, match=match):
        entk.jax.factors(f, W, X)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_squeeze_that_takes_the_axis_of_one_example_is_fine(n):
    def f(w, x):
        return jnp.squeeze(jnp.squeeze(jnp.tanh(x @ w)) @ w[:2, :1])

    w = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((n, 6)), jnp.float32)
    found = entk.jax.factors(f, w, x)
    plain = entk.jax.factors(lambda w, x: jnp.tanh(x @ w) @ w[:2, :1], w, x)
    assert found.n_outputs == 1
    assert np.array_equal(entk.assemble(found), entk.assemble(plain))


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("audit", [True, False])
def test_a_sum_over_the_batch_is_refused_whatever_its_width(width, audit):
    with pytest.raises(entk.ModelError, match=r"must be\s+the batch|depend on each other"):
        entk.jax.factors(lambda w, x: (x @ w[:, :width]).sum(0), jnp.ones((5, 5)), X, audit=audit)


def test_no_examples_are_refused():
    with pytest.raises(entk.ModelError, match="no examples"):
        entk.jax.factors(linear, W, X[:0])
    with pytest.raises(entk.ModelError, match="no examples"):
        entk.jax.factors(linear, W, None)


def test_inputs_that_disagree_are_refused():
    with pytest.raises(entk.InputError, match=r"x\['b'\] has 3 examples, but x\['a'\] has 4"):
        entk.jax.factors(linear, W, {"a": X, "b": X[:3]})
    with pytest.raises(entk.InputError, match="needs a leading batch axis"):
        entk.jax.factors(linear, W, {"a": X, "b": 1.0})


def test_complex_parameters_are_refused_by_name():
    with pytest.raises(entk.DTypeError, match="layer 'b': complex parameters"):
        entk.jax.factors(lambda p, x: x @ p["a"], {"a": W, "b": W + 0j}, X)


def test_parameters_without_numbers_are_refused():
    with pytest.raises(entk.ModelError, match="no floating-point leaf"):
        entk.jax.factors(lambda p, x: x, {"steps": jnp.arange(3), "none": None}, X)


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        ("trace", "outputs='full'"),
        ("mean", "not understood"),
        (3, "outputs 0 to 2"),
        (-1, "outputs 0 to 2"),
        (True, "not understood"),
        (None, "not understood"),
        (np.ones(4), r"shape \(4,\); expected \(3,\) or \(4, 3\)"),
        (np.array([1, np.nan, 0]), "finite"),
        (np.array(["a", "b", "c"]), "must be numbers"),
    ],
)
def test_outputs_that_are_no_direction_are_refused(outputs, match):
    with pytest.raises(entk.InputError, match=match):
        entk.jax.factors(linear, W, X, outputs=outputs)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "8"])
def test_batch_sizes_that_are_no_count_are_refused(size):
    with pytest.raises(entk.InputError, match="batch_size must be"):
        entk.jax.factors(linear, W, X, batch_size=size)


def test_a_memory_limit_that_cannot_hold_the_factors_names_one_that_can():
    with pytest.raises(entk.MemoryLimitError, match=r"need at least [0-9,]+ bytes") as caught:
        entk.jax.factors(linear, W, X, memory=100)
    least = int(str(caught.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    assert entk.jax.factors(linear, W, X, memory=least).n == 4
    with pytest.raises(entk.MemoryLimitError):
        entk.jax.factors(linear, W, X, memory=least - 1)
    with pytest.raises(entk.InputError, match="'4 gigs' not understood"):
        entk.jax.factors(linear, W, X, memory="4 gigs")


def test_unused_parameters_are_told_and_count_nothing():
    with pytest.warns(entk.jax.ModelWarning, match="no use of spare") as caught:
        factors = entk.jax.factors(lambda p, x: x @ p["w"], {"spare": W, "w": W}, X)
    assert caught[0].filename == __file__
    assert not np.asarray(factors["spare"].jac).any()


def test_unused_tables_take_no_memory():
    params = {"table": jnp.zeros((1000, 100)), "w": W}

    def f(p, x):
        return x @ p["w"] + 0 * jax.lax.stop_gradient(p["table"]).sum()

    assert entk.jax.factors(f, params, X).nbytes < 1000


def test_captured_parameters_are_told():
    captured = jnp.ones((32, 32))
    with pytest.warns(entk.jax.ModelWarning, match=r"captures an array of shape \(32, 32\)"):
        entk.jax.factors(lambda w, x: jnp.tanh(x @ w) @ captured, NEW(5, 32), X)


def test_a_well_formed_network_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entk.jax.factors(linear, W, X)


@pytest.mark.parametrize("kind", [nnx.BatchNorm, nnx.Dropout])
def test_modules_that_change_their_state_are_refused_until_they_are_in_evaluation_mode(kind):
    module = kind(0.5 if kind is nnx.Dropout else 5, rngs=nnx.Rngs(0))
    net = nnx.Sequential(nnx.Linear(5, 5, rngs=nnx.Rngs(0)), module)

    def taken():
        graph, params, rest = nnx.split(net, nnx.Param, ...)
        return entk.jax.factors(lambda p, x: nnx.merge(graph, p, rest)(x), params, X)

    with pytest.raises(entk.ModelError, match=r"changes its own state.*model\.eval\(\)"):
        taken()
    net.eval()
    assert taken().n == 4


def test_python_branches_on_values_are_refused():
    with pytest.raises(entk.ModelError, match=r"cannot trace.*jnp\.where"):
        entk.jax.factors(lambda w, x: x @ w if x.sum() > 0 else x, W, X)


def test_errors_of_the_network_itself_pass_through():
    def f(w, x):
        raise KeyError("my own")

    with pytest.raises(KeyError, match="my own"):
        entk.jax.factors(f, W, X)
