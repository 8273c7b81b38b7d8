"""Figures of a prepared data set: samples as the model sees them, and distributions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.common.atomic_io import atomic_path
from allinone.data.config import DataConfig
from allinone.data.loading import contact_sheet as pictures
from allinone.data.loading.batch import Batch
from allinone.data.loading.contact_sheet import ACCENT, FRAME, GAP, INK, PAPER, QUIET

__all__ = ["FRAME", "GAP", "bin_edges", "contact_sheet", "plot_distributions"]

BINS = 40
EQUAL = 1e-6
"""Relative difference up to which values count as one: a rate measured from a clip's times differs
by rounding, and 40 bins between two neighbouring floating-point numbers do not exist."""
LARGEST = 1e300
"""Values from here on are not plotted: matplotlib's margins overflow."""
LOG_RATIO = 100
"""Ratio of the largest to the smallest value above which bins are spaced logarithmically."""


def contact_sheet(path: Path, batch: Batch, config: DataConfig, title: str) -> None:
    """Write a PNG with the samples, in two columns from four on.

    Args:
        path: File to write.
        batch: Samples as the model gets them: frames after crop and colour augmentation, caption,
            masked text.
        config: Its mean and std are used to undo the normalisation.
        title: Heading.
    """
    sheet = pictures.contact_sheet(batch, config, title, columns=2 if len(batch) > 3 else 1)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def bin_edges(data: NDArray[np.float64]) -> list[float] | None:
    """Edges of a histogram's bins.

    Integers have a bin each if they span at most 60.

    Args:
        data: At least one value; all finite, and smaller than LARGEST.

    Returns:
        Ascending edges that enclose all values; None if all are equal within EQUAL, as the frame
        rates of clips that differ by rounding.
    """
    low, high = float(data.min()), float(data.max())
    if high - low <= EQUAL * max(abs(low), abs(high)):
        return None
    if low > 0 and high / low > LOG_RATIO:
        edges = np.geomspace(low, high, BINS + 1)
    elif high - low <= 60 and np.all(data == data.round()):
        edges = np.arange(low - 0.5, high + 1.5)
    else:
        edges = np.linspace(low, high, BINS + 1)
    # the outer edges are exact: rounding must not leave a value outside
    return [min(low, float(edges[0])), *edges[1:-1].tolist(), max(high, float(edges[-1]))]


def plot_distributions(path: Path, values: dict[str, NDArray[np.float64]], title: str) -> None:
    """Write a PNG with six histograms with their medians marked.

    Args:
        path: File to write.
        values: Title → values; the axis is logarithmic if positive values span more than two
            decades. Values that cannot be plotted are counted below the axis.
        title: Heading.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.2), layout="constrained")
    style = {"fontsize": 13, "fontweight": "bold", "color": INK, "parse_math": False}
    figure.suptitle(title, x=0.01, ha="left", **style)
    for axes, (name, data) in zip(figure.subplots(2, 3).flat, values.items(), strict=True):
        axes.set_title(name, fontsize=11, color=INK, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=QUIET, labelsize=9)
        axes.locator_params(axis="y", nbins=5, integer=True)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        finite = data[np.abs(data) < LARGEST]
        if finite.size < data.size:
            missing = f"{data.size - finite.size:,} not finite or too large"
            axes.set_xlabel(missing, fontsize=9, color=ACCENT, loc="right")
        if not finite.size:
            axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, color=QUIET)
            continue
        edges = bin_edges(finite)
        if edges is None:  # one bar with its label is clearer than a histogram around a value
            axes.bar([f"{finite[0]:,.4g}"], [finite.size], width=0.25, color="#3b6ea8")
            axes.set_xlim(-1, 1)
            continue
        if edges[0] > 0 and edges[-1] / edges[0] > LOG_RATIO:
            axes.set_xscale("log")
        axes.hist(finite, bins=edges, color="#3b6ea8", edgecolor=PAPER, linewidth=0.4)
        middle = float(np.median(finite))
        axes.axvline(middle, color=ACCENT, linewidth=1.2)
        axes.set_title(f"median {middle:,.4g}", fontsize=9, color=ACCENT, loc="right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
