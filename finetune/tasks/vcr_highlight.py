"""Draws VCR's detections into the picture, so that a question can refer to them.

As in MERLOT (Zellers et al. 2021, appendix on VCR).

Only detections that the texts of a task mention are drawn, `vcr_text.mentioned(item, task)`: MERLOT
makes one picture for Q→A, from question and answers, and another for QA→R, which includes the
rationales. A picture for Q→A that shows what only the rationales mention would give the answer
away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from allinone.finetune.annotations.schema import VCRItem

STYLES = ("masks", "boxes", "none")
"""How detections are shown: MERLOT's released configuration, its other rendering, or not at
all."""
OPACITY = 38
"""15 % of 255."""
OUTLINE = 7
"""Pixels, on stills of about 800 pixels in height."""
SMALL_SIDE = 400
"""Pixels. On smaller pictures, where 7 pixels would cover a face, the outline is proportionally
thinner."""
LEAST_OUTLINE = 2
"""Pixels of outline that must remain after the picture has been resized for the model."""
GREY = (145, 145, 145)
"""Colour of detections that are not persons."""
# fmt: off
PALETTE = (
    (255, 0, 0), (0, 255, 0), (236, 176, 31), (0, 0, 255), (255, 0, 255), (170, 0, 255),
    (255, 255, 0), (170, 84, 0), (84, 84, 0), (255, 127, 0), (76, 189, 237), (170, 0, 127),
    (0, 255, 204), (0, 0, 51), (0, 102, 255), (51, 153, 0), (255, 0, 102), (255, 255, 204),
    (204, 153, 255), (255, 153, 153), (0, 51, 51), (51, 0, 0), (51, 153, 102), (0, 0, 153),
    (153, 255, 102), (51, 153, 255), (153, 0, 51), (153, 255, 255), (102, 102, 153), (102, 51, 153),
    (255, 204, 255), (204, 204, 102), (204, 102, 255), (204, 153, 102), (204, 102, 153), (0, 51, 0),
    (255, 51, 204), (51, 153, 153), (0, 204, 102), (153, 0, 0), (102, 51, 0), (255, 102, 102),
    (153, 204, 0), (255, 255, 255), (153, 204, 153), (255, 51, 153), (0, 102, 0), (0, 255, 102),
    (102, 51, 102), (153, 255, 0), (153, 102, 102), (204, 255, 153), (102, 0, 51), (0, 0, 102),
    (0, 0, 0),
)
# fmt: on
"""Colours of persons, by the index of the detection in the official list modulo 55. The first
twelve are MERLOT's; each further one is the colour of the 6 x 6 x 6 cube that is farthest in CIELAB
from all previous ones and from GREY (smallest distance of any two: 24). Fine-tuning and evaluation
must use the same table; nothing else depends on its values."""

Colour = tuple[int, int, int]
Polygon = Sequence[tuple[float, float]]


def colour(item: VCRItem, region: int) -> Colour:
    """The colour of a detection."""
    # by its index in the official list, which also selects the names in the texts
    return PALETTE[region % len(PALETTE)] if item.regions[region].name == "person" else GREY


def outline_width(width: int, height: int, image_size: int | None = None) -> int:
    """Outline width in pixels: 7, or less on a small picture, but at least LEAST_OUTLINE after
    resizing.

    Args:
        width: Width of the picture, pixels.
        height: Height of the picture, pixels.
        image_size: Pixels that the short side will be resized to; None: unknown.
    """
    short = min(width, height)
    wanted = max(1, round(OUTLINE * min(1.0, short / SMALL_SIDE)))
    return max(wanted, math.ceil(LEAST_OUTLINE * short / image_size)) if image_size else wanted


def highlight(
    image: NDArray[np.uint8],
    item: VCRItem,
    mentioned: Sequence[int],
    *,
    polygons: Sequence[Sequence[Polygon]] | None = None,
    image_size: int | None = None,
) -> NDArray[np.uint8]:
    """A copy of the picture with detections filled at 15 % opacity and outlined in full colour.

    Args:
        image: uint8 RGB [H, W, 3].
        item: The question, with its regions.
        mentioned: Indices of the regions to draw.
        polygons: Outlines of every region of the item, pixels (`vcr.outlines`). Without outlines, a
            region's box is drawn.
        image_size: Pixels that the short side will be resized to.

    Raises:
        ValueError: `image` is not an RGB picture, a region does not exist, or the polygons belong
            to another item.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"the picture is {image.dtype} {list(image.shape)}; expected uint8 RGB [H, W, 3]"
        )
    if polygons is not None and len(polygons) != len(item.regions):
        raise ValueError(
            f"item {item.id} has {len(item.regions)} regions, but outlines were given for"
            f" {len(polygons)}"
        )
    if any(not 0 <= region < len(item.regions) for region in mentioned):
        raise ValueError(
            f"item {item.id} has regions 0 to {len(item.regions) - 1}, mentioned are"
            f" {list(mentioned)}"
        )
    picture = Image.fromarray(image)
    width = outline_width(picture.width, picture.height, image_size)
    # by index, not by mention: the picture does not depend on the order of the texts
    for region in sorted(set(mentioned)):
        shapes = list(polygons[region]) if polygons is not None else []
        _draw(picture, shapes or [_box(item, region)], colour(item, region), width)
    return np.asarray(picture).copy()


def _box(item: VCRItem, region: int) -> Polygon:
    x1, y1, x2, y2 = item.regions[region].box
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _draw(picture: Image.Image, shapes: Sequence[Polygon], colour: Colour, width: int) -> None:
    """Fill the union of the shapes, then draw their outlines."""
    right, bottom, half = picture.width - 1, picture.height - 1, width / 2
    # moved inwards at the picture's edge, so that outlines stay visible
    inside = [
        [(min(max(x, half), right - half), min(max(y, half), bottom - half)) for x, y in shape]
        for shape in shapes
        if len(shape) > 1
    ]
    # one mask for all shapes: overlapping parts are not filled twice
    mask = Image.new("L", picture.size)
    for shape in inside:
        ImageDraw.Draw(mask).polygon(shape, fill=OPACITY)
    picture.paste(colour, (0, 0), mask)
    for shape in inside:
        # One corner beyond the closed shape, so that the last corner's joint is drawn too.
        ImageDraw.Draw(picture).line([*shape, *shape[:2]], fill=colour, width=width, joint="curve")
