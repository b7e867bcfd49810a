"""Pictures: what is drawn is what the numbers say."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import entk
from bounds import assert_rounding
from entk import dynamics, plot
from kernels import Stored, gram, smooth


@pytest.fixture(autouse=True)
def _no_window(tmp_path):
    mpl.use("agg")


def drawn(ax):
    """Render, so that faults of drawing show, and return the lines."""
    ax.figure.canvas.draw()
    return ax.get_lines()


def test_spectrum_draws_the_eigenvalues_above_the_floor_in_order(rng):
    kernel = gram(rng, 20)
    lines = drawn(plot.spectrum(kernel, label="mine"))
    assert_rounding(lines[0].get_ydata(), np.linalg.eigvalsh(kernel)[::-1], 20)
    assert lines[0].get_label() == "mine"


def test_spectrum_counts_what_it_cannot_draw():
    values = entk.linalg.eigvalsh(smooth(60))
    line = drawn(plot.spectrum(smooth(60)))[0]
    lost = int(np.sum(np.asarray(values) <= 0))
    assert f"({lost} not above 0)" in line.get_label()
    assert len(line.get_ydata()) == 60 - values.n_below_floor


def test_a_floor_far_below_does_not_flatten_the_spectrum(rng):
    kernel = gram(rng, 30)
    lowest = float(np.linalg.eigvalsh(kernel)[0])
    ax = plot.spectrum(kernel)
    drawn(ax)
    assert lowest / 10 < ax.get_ylim()[0] < lowest
    assert "noise floor" in ax.get_legend().get_texts()[1].get_text()
    plot.spectrum(smooth(60), ax=ax)  # a floor among its eigenvalues is drawn
    assert ax.get_ylim()[0] < entk.linalg.eigvalsh(smooth(60)).floor


def test_counts_are_written_as_numbers(rng):
    ax = plot.spectrum(gram(rng, 12))
    drawn(ax)
    assert {"1", "2", "5", "10"} <= {t.get_text() for t in ax.get_xticklabels()}


def test_the_diagonal_does_not_darken_a_heatmap(rng):
    kernel = gram(rng, 50)
    ax = plot.heatmap(kernel)
    drawn(ax)
    assert ax.images[0].get_clim()[1] < 0.8
    drawn(plot.heatmap(np.eye(1)))
    drawn(plot.heatmap(np.ones((4, 4)), scale="kernel"))


def test_several_spectra_share_axes(rng):
    ax = Figure().subplots()
    assert plot.spectrum(gram(rng, 5), ax=ax) is ax
    plot.spectrum(gram(rng, 5), ax=ax)
    assert len(ax.get_lines()) == 6


def test_heatmap_sorts_by_class_and_scales_to_cosines(rng):
    kernel = gram(rng, 6)
    ax = plot.heatmap(kernel, [1, 0, 1, 0, 1, 0])
    drawn(ax)
    order = [1, 3, 5, 0, 2, 4]
    size = np.sqrt(np.diag(kernel))
    want = (kernel / size / size[:, None])[np.ix_(order, order)]
    assert_rounding(ax.images[0].get_array(), want, 6)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1"]


def test_heatmap_of_a_large_kernel_is_averaged(rng, monkeypatch):
    monkeypatch.setattr(plot, "PIXELS", 10)
    kernel = gram(rng, 40)
    ax = plot.heatmap(Stored(kernel), scale="kernel")
    drawn(ax)
    want = kernel.reshape(10, 4, 10, 4).mean(axis=(1, 3))
    assert_rounding(ax.images[0].get_array(), want, 40)


def test_heatmap_of_a_block_kernel_takes_a_label_a_sample(rng):
    drawn(plot.heatmap(gram(rng, 12), ["a", "b", "a", "b"]))
    with pytest.raises(entk.InputError, match="labels have shape"):
        plot.heatmap(gram(rng, 12), ["a"] * 5)


def test_a_learning_curve_falls_as_samples_are_added(rng):
    x = rng.standard_normal((120, 10))
    line = drawn(plot.learning_curve(x @ x.T, x @ rng.standard_normal(10), sizes=[4, 8, 40]))[0]
    assert line.get_xdata().tolist() == [4, 8, 40]
    assert (np.diff(line.get_ydata()) < 0).all()


def test_a_learning_curve_of_labels_counts_errors(rng):
    x = rng.standard_normal((60, 4))
    ax = plot.learning_curve(x @ x.T, np.where(x[:, 0] > 0, "yes", "no"), ridge=0.1)
    assert ax.get_ylabel() == "share of errors"
    assert 0 <= drawn(ax)[0].get_ydata().min() <= drawn(ax)[0].get_ydata().max() <= 1
    with pytest.raises(entk.InputError, match="sizes must lie"):
        plot.learning_curve(x @ x.T, x[:, 0], sizes=[60])


def test_training_draws_the_losses_of_the_flow(rng):
    both = gram(rng, 15)
    k, k_star, y, y_star = both[:10, :10], both[10:, :10], np.ones(10), np.zeros(5)
    times = np.array([0.1, 1.0, 10.0])
    ax = plot.training(k, y, 1.0, times=times, K_star=k_star, y_star=y_star)
    train, test = dynamics.gradient_flow(k, y, times, 1.0, K_star=k_star)
    lines = drawn(ax)
    assert_rounding(lines[0].get_ydata(), np.mean((train - y) ** 2, axis=1), 10)
    assert_rounding(lines[1].get_ydata(), np.mean((test - y_star) ** 2, axis=1), 10)
    assert len(drawn(plot.training(k, y, 1.0))[0].get_xdata()) == 60
