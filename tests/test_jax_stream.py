"""`entk.jax.write_factors`: batches to disk, resumable by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import entk.jax
from bounds import JACOBIAN
from jax_networks import Numbers
from jax_oracle import error, jacobian, summed

NEW = Numbers(jnp.float32)
PARAMS = {"b": NEW(3), "table": NEW(17, 5), "w": NEW(5, 6), "v": NEW(6, 3)}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 17, (8, 2)), jnp.int32)
BATCHES = [TOKENS[:3], TOKENS[3:6], TOKENS[6:]]


def net(p, tokens):
    return jnp.tanh(p["table"][tokens].mean(1) @ p["w"]) @ p["v"] + p["b"]


def test_written_factors_are_those_of_all_examples(tmp_path):
    factors = entk.jax.write_factors(tmp_path / "f", net, PARAMS, BATCHES)
    assert (factors.n, factors.outputs, factors.n_outputs) == (8, "sum", 3)
    assert error(factors, summed(jacobian(net, PARAMS, TOKENS))) < JACOBIAN["float32"]
    assert factors.reason("table").startswith("row look-up")


def test_half_precision_survives_the_disk(tmp_path):
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
    factors = entk.jax.write_factors(tmp_path / "f", net, params, BATCHES)
    ram = entk.jax.factors(net, params, TOKENS)
    wide = np.abs(entk.reference.assemble(ram)).max()
    gap = entk.reference.assemble(factors) - entk.reference.assemble(ram)
    assert np.abs(gap).max() <= 2.0**-6 * wide


def test_directions_of_examples_are_cut_to_the_batches(tmp_path):
    weights = np.asarray(NEW(8, 3))
    factors = entk.jax.write_factors(tmp_path / "f", net, PARAMS, BATCHES, outputs=weights)
    rows = np.einsum("no,nop->np", weights, jacobian(net, PARAMS, TOKENS))[:, None]
    assert error(factors, rows) < JACOBIAN["float32"]
    with pytest.raises(entk.InputError, match="weights for 5 examples"):
        entk.jax.write_factors(tmp_path / "g", net, PARAMS, BATCHES, outputs=weights[:5])


def test_a_broken_run_continues_after_its_last_batch(tmp_path):
    calls = []

    def broken():
        yield BATCHES[0]
        raise KeyboardInterrupt

    def counted(done, total):
        calls.append(done)

    with pytest.raises(KeyboardInterrupt):
        entk.jax.write_factors(tmp_path / "f", net, PARAMS, broken())
    with pytest.raises(entk.StoreError):
        entk.jax.write_factors(tmp_path / "f", net, PARAMS, BATCHES)
    factors = entk.jax.write_factors(
        tmp_path / "f", net, PARAMS, BATCHES, resume=True, progress=counted
    )
    assert calls == [0, 1, 2, 3]
    assert error(factors, summed(jacobian(net, PARAMS, TOKENS))) < JACOBIAN["float32"]
    again = entk.jax.write_factors(tmp_path / "f", net, PARAMS, iter(()), resume=True)
    assert again.n == 8


def test_a_store_of_other_parameters_is_not_continued(tmp_path):
    entk.jax.write_factors(tmp_path / "f", net, PARAMS, BATCHES)
    other = PARAMS | {"b": PARAMS["b"] + 1}
    with pytest.raises(entk.StoreMismatchError, match="meta"):
        entk.jax.write_factors(tmp_path / "f", net, other, BATCHES, resume=True)
    with pytest.raises(entk.StoreMismatchError, match="meta"):
        entk.jax.write_factors(tmp_path / "f", net, PARAMS, BATCHES, outputs="full", resume=True)


def test_other_batches_do_not_continue_a_store(tmp_path):
    def broken():
        yield BATCHES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        entk.jax.write_factors(tmp_path / "f", net, PARAMS, broken())
    with pytest.raises(entk.StoreMismatchError, match="resume with the same batches"):
        entk.jax.write_factors(tmp_path / "f", net, PARAMS, [TOKENS[:2], TOKENS[2:]], resume=True)


def test_a_single_array_is_no_list_of_batches(tmp_path):
    with pytest.raises(entk.InputError, match=r"pass \[x\]"):
        entk.jax.write_factors(tmp_path / "f", net, PARAMS, TOKENS)
