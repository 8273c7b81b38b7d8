"""Temporal token rolling as a figure: the patches that each block sees."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from allinone.model import AllInOneConfig
from allinone.tools.inspection.figure import (
    FRAME_COLOURS,
    HEADING,
    TEXT,
    Colour,
    PictureGrid,
    Section,
    Sheet,
    cells,
    outline,
    text_style,
    tinted,
)
from allinone.tools.inspection.media_inputs import InputClip, upscaled
from allinone.tools.inspection.patch_attribution import slot_origins

LEFT = 190
"""Width of the row titles, pixels."""
LEAD = (
    "No block attends from one frame to another. Instead, before every block, some patches move to"
    " the next frame and some to the previous one, and the block sees them together with the"
    " patches that stayed. Each row shows the input of one block; a patch has the colour of the"
    " frame that it came from. Outlined patches came from another frame."
)


def rolls_shown(config: AllInOneConfig, frames: int) -> list[int]:
    """Numbers of rolls to draw: from none to T, after which every patch is back in its frame, or to
    the number of blocks if that is smaller."""
    return list(range(min(config.num_hidden_layers, frames) + 1))


def frame_after_rolls(
    pictures: Sequence[Image.Image], frame: int, config: AllInOneConfig, rolls: int
) -> Image.Image:
    """Draw one frame after some rolls.

    Args:
        pictures: All frames, square.
        frame: Which frame to draw.
        config: The model.
        rolls: Number of rolls.

    Returns:
        The patch in each slot of the frame, drawn where the slot's own patch was before the first
        roll.
    """
    side = pictures[0].width
    origins = slot_origins(config, len(pictures), rolls)
    sources, patches = (labels[frame].tolist() for labels in origins)
    positions = slot_origins(config, len(pictures), 0)[1][frame].tolist()
    boxes = cells(side, round(len(positions) ** 0.5))
    image = Image.new("RGB", (side, side))
    for position, source, patch in zip(positions, sources, patches, strict=True):
        left, top, right, bottom = boxes[position]
        # cells differ by a pixel where `side` is not a multiple of the grid
        crop = pictures[source].crop(boxes[patch]).resize((right - left, bottom - top))
        strength = 0.15 if source == frame else 0.45
        image.paste(tinted(crop, frame_colour(source), strength), (left, top))
        if source != frame:
            line = max(1, min(3, (right - left) // 8))
            outline(image, boxes[position], frame_colour(source), line)
    return image


def frame_colour(frame: int) -> Colour:
    """The colour of a frame."""
    return FRAME_COLOURS[frame % len(FRAME_COLOURS)]


def _row_title(config: AllInOneConfig, frames: int, rolls: int, moved: int) -> tuple[str, str]:
    """The blocks that see the clip after `rolls` rolls, and how many patches moved."""
    blocks = [
        str(block)
        for block in range(1, config.num_hidden_layers + 1)
        if block % frames == rolls % frames  # T rolls bring every patch back
    ]
    shown = f"{', '.join(blocks[:4])}{' …' if len(blocks) > 4 else ''}"
    title = f"block{'s' if len(blocks) > 1 else ''} {shown}" if rolls else "input"
    if moved:
        note = f"{moved} of {config.num_patches} patches\nin each frame came\nfrom another frame"
    else:
        note = "every patch is\nin its own frame"
    return title, note


def roll_section(config: AllInOneConfig, clip: InputClip) -> Section:
    """One row per number of rolls, one column per frame."""
    frames = len(clip.pictures)
    side = max(112, min(230, 900 // frames))
    pictures = [upscaled(picture, side) for picture in clip.pictures]
    legend = [(frame_colour(frame), f"came from frame {frame + 1}") for frame in range(frames)]
    numbers = rolls_shown(config, frames)
    grid = PictureGrid(len(numbers), frames, side, left=LEFT, legend=legend)
    for row, rolls in enumerate(numbers):
        moved = int((slot_origins(config, frames, rolls)[0][0] != 0).sum())
        title, note = _row_title(config, frames, rolls, moved)
        grid.left[row].text(0, 1, title, va="top", **text_style(HEADING, bold=True))
        grid.left[row].text(0, 0.87, note, va="top", linespacing=1.35, **text_style(TEXT))
        for frame in range(frames):
            image = frame_after_rolls(pictures, frame, config, rolls)
            name = "" if row else f"frame {frame + 1}"
            style = text_style(HEADING, frame_colour(frame), bold=True)
            grid.show(row, frame, image, name, **style)
    return Section(
        "",
        grid.image(),
        note=describe_roll(config, frames),
        alt="a grid of frames with exchanged patches",
    )


def describe_roll(config: AllInOneConfig, frames: int) -> str:
    """The roll of this model in words and numbers."""
    patches = config.num_patches
    frame, _ = slot_origins(config, frames, 1)
    forward = int((frame[1] == 0).sum())
    back = int((frame[0] == 1).sum())
    if frames == 2:  # the next frame is also the previous one, so both counts hold both directions
        forward, back = forward // 2, back - back // 2
    choice = (
        "the first and last patches in raster order"
        if config.patch_order == "raster"
        else "a fixed random choice, another one in each frame"
    )
    distillation = (
        " The distillation token moves forward with them." if config.distillation_token else ""
    )
    return (
        f"Before every block {forward} of the {patches} patches move one frame forward and {back}"
        f" one frame back ({choice}); the last frame is followed by the first.{distillation} The"
        f" other {patches - forward - back}, the class token and the words stay. After {frames}"
        " rolls every patch is back in its own frame."
    )


def roll_figure(config: AllInOneConfig, clip: InputClip) -> Sheet:
    """The figure of one clip."""
    title = "Temporal token rolling: frames exchange patches"
    return Sheet(title, LEAD, [roll_section(config, clip)], f"clip: {clip.path.name}")
