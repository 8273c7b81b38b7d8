"""Figures of a prepared data set: samples as the model sees them, and distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from allinone.common.atomic_io import atomic_path
from allinone.data.config import DataConfig
from allinone.data.loading import contact_sheet as pictures
from allinone.data.loading.batch import Batch
from allinone.data.loading.contact_sheet import ACCENT, FRAME, GAP, INK, PAPER, QUIET

__all__ = ["FRAME", "GAP", "contact_sheet", "plot_distributions"]


def contact_sheet(path: Path, batch: Batch, config: DataConfig, title: str) -> None:
    """Write a PNG with one row per sample.

    Args:
        path: File to write.
        batch: Samples as the model gets them: frames after crop and colour augmentation, caption,
            masked text.
        config: Its mean and std are used to undo the normalisation.
        title: Heading.
    """
    sheet = pictures.contact_sheet(batch, config, title)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def plot_distributions(path: Path, values: dict[str, NDArray[np.float64]], title: str) -> None:
    """Write a PNG with six histograms with their medians marked.

    Args:
        path: File to write.
        values: Title → values; the axis is logarithmic if positive values span more than two
            decades.
        title: Heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.2), layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left")
    for axes, (name, data) in zip(figure.subplots(2, 3).flat, values.items(), strict=True):
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=QUIET, labelsize=9)
        axes.locator_params(axis="y", nbins=5, integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if not data.size:
            axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, color=QUIET)
            continue
        # for a single value, one bar with its label is clearer than a histogram around it
        low, high = float(data.min()), float(data.max())
        if low == high:
            axes.bar([f"{low:,.4g}"], [data.size], width=0.25, color="#3b6ea8")
            axes.set_xlim(-1, 1)
            continue
        if low > 0 and high / low > 100:
            axes.set_xscale("log")
            # bins of equal width on the logarithmic axis
            bins: Any = np.geomspace(low, high, 41)
        elif np.all(data == data.round()) and high - low <= 60:
            # whole numbers: a bin around each
            bins = np.arange(low - 0.5, high + 1.5)
        else:
            bins = 40
        axes.hist(data, bins=bins, color="#3b6ea8", edgecolor=PAPER, linewidth=0.4)
        middle = float(np.median(data))
        axes.axvline(middle, color=ACCENT, linewidth=1.2)
        axes.set_title(f"median {middle:,.4g}", fontsize=9, color=ACCENT, loc="right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
