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


def kernels(studies: list[Study], labels: Array) -> Figure:
    """Draw the pNTK of all images, a panel a network, sorted by class."""
    from entk import plot

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, len(studies), squeeze=False)[0]
    for axes, study in zip(panels, studies, strict=True):
        plot.heatmap(study.kernels["pNTK, all images"], labels, ax=axes)
        axes.set_title(f"{study.name} after training")
    figure.suptitle(f"pNTK of {len(labels):,} images, sorted by digit")
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
