"""Kernel comparison against its definitions, and the laws of the two-layer ReLU network."""

import numpy as np
import pytest

from bounds import LAW, SLOPE, assert_rounding
from entk import metrics
from entk._errors import InputError
from kernels import Operator, Stored, gram
from networks import two_layer


def centred(kernel, blocks=1):
    n = len(kernel) // blocks
    h = np.kron(np.eye(n) - 1.0 / n, np.eye(blocks))
    return h @ kernel @ h


def cosine(a, b):
    return np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("wrap", [np.asarray, Stored, Operator])
def test_compare_follows_its_definitions(rng, wrap):
    a, b = gram(rng, 30), gram(rng, 30)
    got = metrics.compare(wrap(a), wrap(b))
    assert_rounding(got.frobenius, np.linalg.norm(a - b) / np.linalg.norm(b), 900)
    assert_rounding(got.alignment, cosine(centred(a), centred(b)), 900)
    top = np.linalg.eigvalsh(a)[-1] / np.linalg.eigvalsh(b)[-1]
    assert_rounding(got.eigmax_ratio, top, 30)
    kappa = np.linalg.cond(a) / np.linalg.cond(b)
    assert_rounding(got.condition_ratio, kappa, 30 * np.linalg.cond(a))


@pytest.mark.parametrize("order", [1, -1])
def test_a_small_kernel_stands_for_one_block_an_output(rng, order):
    small, full = gram(rng, 12), gram(rng, 36)
    expanded = np.kron(small, np.eye(3))
    got = metrics.compare(*(small, full)[::order])
    pair = (expanded, full)[::order]
    assert_rounding(got.frobenius, np.linalg.norm(pair[0] - pair[1]) / np.linalg.norm(pair[1]), 999)
    assert_rounding(got.alignment, cosine(*(centred(k, 3) for k in pair)), 999)


def test_a_kernel_is_like_itself(rng):
    k = gram(rng, 20)
    got = metrics.compare(k, k)
    assert got.frobenius == 0.0
    assert_rounding([got.alignment, got.eigmax_ratio, got.condition_ratio], [1.0, 1.0, 1.0], 400)


def test_alignment_does_not_see_scale_or_constants(rng):
    k = gram(rng, 20)
    assert_rounding(metrics.compare(3.0 * k + 5.0, k).alignment, 1.0, 400 * 20)


def test_the_floor_says_which_differences_are_rounding(rng):
    k = gram(rng, 60)
    got = metrics.compare(k.astype(np.float32), k)
    assert 0 < got.frobenius < got.floor
    assert metrics.compare(gram(rng, 60).astype(np.float32), k).frobenius > got.floor


def test_kernels_of_unrelated_sizes_are_refused():
    with pytest.raises(InputError, match="K1 is 4 x 4 and K2 is 6 x 6"):
        metrics.compare(np.eye(4), np.eye(6))


@pytest.mark.parametrize("centre", [True, False])
def test_label_alignment_follows_its_definition(rng, centre):
    k, y = gram(rng, 25), rng.standard_normal((25, 3))
    want = cosine(centred(k), centred(y @ y.T)) if centre else cosine(k, y @ y.T)
    assert_rounding(metrics.label_alignment(k, y, centred=centre), want, 625)


def test_effective_ranks_follow_their_definitions(rng):
    k = gram(rng, 25, d=10)
    values = np.linalg.eigvalsh(k)
    share = values[values > 0] / values[values > 0].sum()
    want = {
        "entropy": np.exp(-np.sum(share * np.log(share))),
        "participation": values.sum() ** 2 / np.sum(values**2),
        "intrinsic": values.sum() / values.max(),
    }
    for kind, value in want.items():
        assert_rounding(metrics.effective_rank(k, kind), value, 25 * 25)
    assert metrics.effective_rank(np.zeros((3, 3))) == 0.0


WIDTHS = np.array([64, 256, 1024, 4096])


def test_the_error_of_the_summed_kernel_follows_its_closed_form():
    """One input: rms over networks of the errors of its O x O block, against both laws."""
    outputs = 10
    for width in WIDTHS:
        frobenius, trace, rhos = [], [], []
        for seed in range(60):
            theta, summed, rho = two_layer(seed, width, outputs, 1)
            frobenius.append(metrics.compare(summed, theta).frobenius)
            trace.append(summed[0, 0] / (np.trace(theta) / outputs) - 1)
            rhos.append(rho)
        rho = rms(rhos)
        law = np.sqrt((outputs + 4) * (outputs - 1) / outputs) * rho
        assert abs(rms(frobenius) / law - 1) < LAW, f"width {width}: {rms(frobenius)} and {law}"
        law = np.sqrt(2 * (outputs - 1) / outputs) * rho
        # A spread estimated from 60 draws.
        assert abs(rms(trace) / law - 1) < 2 * LAW, f"width {width}: {rms(trace)} and {law}"


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def test_errors_halve_when_the_width_grows_fourfold():
    table = np.array(
        [[metrics.compare(*two_layer(s, w, 5, 30)[1::-1])[:4] for s in range(2)] for w in WIDTHS]
    ).mean(axis=1)
    slope = np.polyfit(np.log(WIDTHS), np.log(table[:, 0]), 1)[0]
    assert abs(slope + 0.5) < SLOPE
    assert (np.diff(table[:, 0]) < 0).all()
    # The largest eigenvalue converges first, the condition number last.
    assert (np.abs(1 - table[:, 2]) < np.abs(1 - table[:, 3])).all()
    assert abs(1 - table[-1, 2]) < table[-1, 0]
