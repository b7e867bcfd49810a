"""The certificate: what it measures, and that it fails for heads with correlated rows."""

import numpy as np
import pytest

import entk
from bounds import assert_rounding
from entk import metrics
from entk._certify import certify
from networks import two_layer, two_layer_factors


def test_the_numbers_are_those_of_the_three_kernels():
    factors, (full, summed, _) = two_layer_factors(0, 64, 4, 12), two_layer(0, 64, 4, 12)
    got = certify(factors, samples=12)
    want = metrics.compare(summed, full)
    assert_rounding(got.frobenius_sum, want.frobenius, 64 * 48)
    assert_rounding(got.eigmax_ratio, want.eigmax_ratio, 64 * 48)
    blocks = full.reshape(12, 4, 12, 4)
    assert_rounding(
        got.frobenius_trace,
        metrics.compare(np.einsum("nomo->nm", blocks) / 4, full).frobenius,
        64 * 48,
    )
    cosines = [
        blocks[n, o, n, p] / np.sqrt(blocks[n, o, n, o] * blocks[n, p, n, p])
        for n in range(12)
        for o in range(4)
        for p in range(4)
        if o != p
    ]
    assert_rounding(got.cosine, np.mean(cosines), 64 * 48)


def test_a_wide_network_at_initialisation_passes():
    got = certify(two_layer_factors(1, 2048, 5, 30))
    assert got.ok
    assert "is fit" in str(got)
    assert got.frobenius_sum < 0.1
    assert any("log-determinants" in reason for reason in got.reasons)


@pytest.mark.parametrize("outputs", [4, 16, 64])
def test_a_head_whose_rows_share_a_direction_fails_and_says_why(outputs):
    got = certify(two_layer_factors(2, 512, outputs, 8, shared=1.0))
    assert not got.ok
    assert got.cosine > 0.1
    assert "is NOT fit" in str(got)
    assert "share a direction" in got.reasons[0]


def test_the_error_of_a_correlated_head_grows_with_the_outputs():
    sizes = [4, 16, 64]
    errors = [certify(two_layer_factors(3, 256, o, 6, shared=0.7)).frobenius_sum for o in sizes]
    assert errors[0] < errors[1] < errors[2]


def test_large_outputs_are_measured_on_fewer_examples(monkeypatch):
    monkeypatch.setattr("entk._certify.MOST_ROWS", 30)
    got = certify(two_layer_factors(4, 16, 10, 20))
    assert got.samples == 3
    assert got.n_outputs == 10


def test_one_output_needs_no_certificate():
    got = certify(two_layer_factors(5, 16, 1, 10))
    assert got.ok
    assert got.frobenius_sum == got.cosine == 0.0


def test_factors_of_a_sum_cannot_be_certified():
    factors = two_layer_factors(6, 16, 3, 5).contract("sum")
    with pytest.raises(entk.InputError, match='outputs="full"'):
        certify(factors)


def test_the_sample_is_drawn_by_seed():
    factors = two_layer_factors(7, 16, 3, 40)
    a, b, c = (certify(factors, samples=10, seed=s).frobenius_sum for s in (0, 0, 1))
    assert a == b != c
