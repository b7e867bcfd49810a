"""The two pictures of the demonstration: kernels sorted by class, and spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from entk._demo import Study

    Array = NDArray[Any]

SUBSET = ("pNTK", "trace", "full eNTK")
DARKEST = 0.01  # share of entries that may be drawn in the darkest colour


def cosines(kernel: Array) -> Array:
    """Scale a kernel to a unit diagonal, so that all classes show on one scale."""
    length = np.sqrt(np.diagonal(kernel))
    scaled: Array = kernel / length[:, None] / length[None, :]
    return scaled


def kernels(studies: list[Study], labels: Array) -> Figure:
    """Draw the pNTK of all images, a panel a network, sorted by class."""
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(11)) - 0.5
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, len(studies), squeeze=False)[0]
    middle = (edges[1:] + edges[:-1]) / 2
    for axes, study in zip(panels, studies, strict=True):
        shown = cosines(study.kernels["pNTK, all images"])[np.ix_(order, order)]
        low = float(np.quantile(shown, DARKEST))
        image = axes.imshow(shown, cmap="viridis", vmin=low, vmax=1, interpolation="antialiased")
        for edge in edges[1:-1]:
            axes.axhline(edge, color="white", linewidth=0.4)
            axes.axvline(edge, color="white", linewidth=0.4)
        axes.set_xticks(middle, range(10))
        axes.set_yticks(middle, range(10))
        axes.tick_params(length=0)
        axes.set_title(f"{study.name} after training")
        axes.set_xlabel("digit")
        bar = figure.colorbar(image, ax=axes, shrink=0.85)
    panels[0].set_ylabel("digit")
    bar.set_label("cosine of the two images' gradients")
    figure.suptitle(f"pNTK of {len(labels):,} images, sorted by class")
    return figure


def spectra(studies: list[Study]) -> Figure:
    """Draw the eigenvalues of the subset's kernels, a panel a network."""
    from entk import linalg

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, len(studies), squeeze=False, sharey=True)[0]
    for axes, study in zip(panels, studies, strict=True):
        for name in SUBSET:
            kernel = study.kernels[name]
            scale = np.trace(kernel, dtype=np.float64) / len(kernel)
            values = np.sort(np.asarray(linalg.eigvalsh(kernel)))[::-1] / scale
            shown = np.where(values > 0, values, np.nan)
            share = np.arange(1, len(shown) + 1) / len(shown)
            axes.plot(share, shown, marker=".", label=f"{name}, {len(shown):,} rows")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(visible=True, which="major", linewidth=0.3)
        axes.set_title(f"{study.name} after training")
        axes.set_xlabel("index / rows")
        axes.legend()
    panels[0].set_ylabel("eigenvalue / mean diagonal")
    figure.suptitle("Spectra of the subset's kernels")
    return figure
