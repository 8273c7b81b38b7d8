"""Clusters of patches as a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from allinone.tools.inspection.figure import (
    FRAME_COLOURS,
    PAPER,
    SMALL,
    PictureGrid,
    Section,
    Sheet,
    cells,
    text_style,
    tinted,
)
from allinone.tools.inspection.media_inputs import InputClip, upscaled

LEAD = (
    "All patches of all frames are grouped by the similarity of their features after the last block"
    " (k-means). Same colour = same cluster in every frame: a colour that follows an object from"
    " frame to frame means that its patches stay similar to the model while it moves. Random"
    " weights also separate objects by their colours, so what a model has learned shows only in"
    " comparison with another model (--compare)."
)


def _colour(cluster: int) -> tuple[int, int, int]:
    return FRAME_COLOURS[cluster % len(FRAME_COLOURS)]


def _painted(picture: Image.Image, labels: NDArray[np.int64]) -> Image.Image:
    """A frame whose patches are tinted by their clusters [P], with white lines between clusters."""
    grid = round(len(labels) ** 0.5)
    image = picture.copy()
    boxes = cells(picture.width, grid)
    for box, cluster in zip(boxes, labels, strict=True):
        image.paste(tinted(picture.crop(box), _colour(int(cluster)), 0.5), box)
    # after the patches are painted, because a line covers pixels of both neighbours
    pen = ImageDraw.Draw(image)
    for index, (left, top, right, bottom) in enumerate(boxes):
        if (index + 1) % grid and labels[index] != labels[index + 1]:
            pen.line((right, top, right, bottom), fill=PAPER, width=3)
        if index + grid < len(labels) and labels[index] != labels[index + grid]:
            pen.line((left, bottom, right, bottom), fill=PAPER, width=3)
    return image


def cluster_section(
    clip: InputClip, models: Sequence[tuple[str, NDArray[np.int64]]], groups: int
) -> Section:
    """Draw the clusters of one clip.

    Args:
        clip: The video.
        models: For each model its title and the clusters, int64 [T, cells].
        groups: Number of clusters, for the legend.

    Returns:
        The frames, the same frames with the clusters of each model, and a legend.
    """
    # about 900 pixels for a row, as wide as a page shows it without scaling
    side = max(128, min(230, 900 // len(clip.pictures)))
    pictures = [upscaled(picture, side) for picture in clip.pictures]
    legend = [(_colour(cluster), f"cluster {cluster + 1}") for cluster in range(groups)]
    several = len(models) > 1
    rows = 1 + len(models)
    row_gap = 36 if several else 12
    grid = PictureGrid(rows, len(pictures), side, row_gap=row_gap, legend=legend)
    for frame, picture in enumerate(pictures):
        grid.show(0, frame, picture, f"frame {frame + 1}")
    for row, (name, labels) in enumerate(models, start=1):
        for frame, picture in enumerate(pictures):
            title = name if several and frame == 0 else ""
            style = text_style(SMALL, bold=True)
            grid.show(row, frame, _painted(picture, labels[frame]), title, **style)
    alt = "; ".join(
        f"clusters of {name}, a list per frame in raster order: {labels.tolist()}"
        for name, labels in models
    )
    return Section(clip.path.name, grid.image(), alt=alt)


def cluster_figure(sections: Sequence[Section], source: str) -> Sheet:
    """All clips in one figure; `source` says how the clusters were computed."""
    return Sheet("Which patches the model finds similar", LEAD, sections, source)
