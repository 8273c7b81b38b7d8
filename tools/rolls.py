#!/usr/bin/env python3
"""Temporal token rolling as a picture: which patches of which frame each block of the model sees
together.

    python tools/rolls.py --checkpoint runs/demo/train --video clip.mp4 --out roll
    python tools/rolls.py --size base --video clip.mp4

Writes roll.png and roll.html. Every slot of a frame is drawn with the patch that it holds, tinted
by the frame that the patch came from; it is drawn where its own patch was before the first roll.
Where each patch is comes from the model's own roll (tools/inspection/patch_attribution.py,
slot_origins); weights play no part, so --size does without a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from PIL import Image

from allinone.common.command import at_least_one
from allinone.common.command_line import run_command
from allinone.common.errors import InputError
from allinone.data.config import DataConfig
from allinone.model import SIZES, AllInOneConfig
from allinone.tools.inspection.checkpoints import find_weights
from allinone.tools.inspection.figure import (
    FORMATS,
    FRAME_COLOURS,
    HEADING,
    PAPER,
    Colour,
    Section,
    Sheet,
    cells,
    column,
    legend,
    outline,
    paragraph,
    row,
    tinted,
)
from allinone.tools.inspection.media_inputs import ClipReader, InputClip, upscaled
from allinone.tools.inspection.patch_attribution import slot_origins

LEFT = 190
"""Width of the titles of rows, pixels."""
LEAD = (
    "No block lets one frame attend to another. Instead, before every block, some patches move on"
    " to the next frame and some to the one before, and the block sees them beside the patches that"
    " stayed. Each row shows what one block sees; a patch carries the colour of the frame that it"
    " came from. Outlined patches are visitors from another frame."
)


def rows_shown(config: AllInOneConfig, frames: int) -> list[int]:
    """Numbers of rolls to draw: none, then up to the one that brings every patch home (T), or as
    many as the model has blocks."""
    return list(range(min(config.num_hidden_layers, frames) + 1))


def held(
    pictures: Sequence[Image.Image], frame: int, config: AllInOneConfig, rolls: int
) -> Image.Image:
    """The slots of one frame after some rolls, each with the patch that it holds, at the place of
    the patch that it held at first."""
    side = pictures[0].width
    sources, patches = (
        labels[frame].tolist() for labels in slot_origins(config, len(pictures), rolls)
    )
    places = slot_origins(config, len(pictures), 0)[1][frame].tolist()
    boxes = cells(side, round(len(places) ** 0.5))
    image = Image.new("RGB", (side, side))
    for place, source, patch in zip(places, sources, patches, strict=True):
        left, top, right, bottom = boxes[place]
        piece = pictures[source].crop(boxes[patch]).resize((right - left, bottom - top))
        image.paste(
            tinted(piece, colour_of(source), 0.15 if source == frame else 0.45), (left, top)
        )
        if source != frame:
            outline(image, boxes[place], colour_of(source), max(1, min(3, (right - left) // 8)))
    return image


def colour_of(frame: int) -> Colour:
    """The colour that stands for a frame."""
    return FRAME_COLOURS[frame % len(FRAME_COLOURS)]


def row_title(config: AllInOneConfig, frames: int, rolls: int, visitors: int) -> Image.Image:
    """Which blocks see the clip after that many rolls, and how many of a frame's patches are
    visitors then; LEFT pixels wide."""
    blocks = [
        str(block)
        for block in range(1, config.num_hidden_layers + 1)
        if block % frames == rolls % frames
    ]
    shown = f"{', '.join(blocks[:4])}{' …' if len(blocks) > 4 else ''}"
    title = f"block{'s' if len(blocks) > 1 else ''} {shown}" if rolls else "as read"
    note = (
        f"{visitors} of {config.num_patches} patches\nin each frame\nare visitors"
        if visitors
        else "every patch\nis at home"
    )
    return column([paragraph(title, LEFT, HEADING, bold=True), paragraph(note, LEFT)], 6)


def draw(config: AllInOneConfig, clip: InputClip) -> Section:
    """A row per number of rolls, a column per frame."""
    frames = len(clip.pictures)
    side = max(112, min(230, 900 // frames))
    pictures = [upscaled(picture, side) for picture in clip.pictures]
    titles = [
        paragraph(f"frame {f + 1}", side, HEADING, colour_of(f), bold=True) for f in range(frames)
    ]
    lines = [row([Image.new("RGB", (LEFT, 1), PAPER), *titles])]
    for rolls in rows_shown(config, frames):
        visitors = int((slot_origins(config, frames, rolls)[0][0] != 0).sum())
        title = row_title(config, frames, rolls, visitors)
        lines.append(row([title, *(held(pictures, f, config, rolls) for f in range(frames))]))
    body = column(lines, gap=10)
    key = legend([(colour_of(f), f"came from frame {f + 1}") for f in range(frames)], body.width)
    return Section(
        "",
        column([body, key], gap=12),
        note=describe(config, frames),
        alt="a grid of frames with exchanged patches",
    )


def describe(config: AllInOneConfig, frames: int) -> str:
    """What the roll of this model does, in words and numbers."""
    patches = config.num_patches
    frame, _ = slot_origins(config, frames, 1)
    forward, back = int((frame[1] == 0).sum()), int((frame[0] == 1).sum())
    forward, back = (forward, back) if frames > 2 else (forward // 2, back - back // 2)
    choice = (
        "the first and last patches in raster order"
        if config.patch_order == "raster"
        else "a fixed random choice, another one in each frame"
    )
    return (
        f"Before every block {forward} of the {patches} patches move one frame forward and {back}"
        f" one frame back ({choice}), the last frame handing on to the first. The other"
        f" {patches - forward - back}, the class token and the words stay. After {frames} rolls"
        " every patch is home again."
    )


def read_config(args: argparse.Namespace) -> AllInOneConfig:
    """The config of --checkpoint or --size with the options of the roll; InputError where no patch
    would move."""
    changes = {"num_frames": args.frames, "patch_order": args.patch_order}
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.size:
        config = AllInOneConfig.from_size(args.size, **changes)
    else:
        weights = find_weights(args.checkpoint)
        try:
            config = AllInOneConfig(
                **{**json.loads((weights / "config.json").read_text()), **changes}
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"--checkpoint {weights}: config.json cannot be read ({error})"
            ) from error
    if config.roll != "roll":
        raise InputError(
            f"--checkpoint: this model exchanges frames by {config.roll!r}; patches move only with"
            " 'roll'"
        )
    return config


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="tools/rolls.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="save_pretrained folder, checkpoint, or run"
    )
    model.add_argument("--size", choices=tuple(SIZES), help="a new model of this size")
    parser.add_argument("--video", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--frames", type=at_least_one, metavar="T", help="frames (default: the model's)"
    )
    parser.add_argument(
        "--patch-order",
        choices=("raster", "shuffled"),
        help="which patches roll (default: as the model)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("roll"),
        metavar="STEM",
        help="files to write, without ending (default: %(default)s)",
    )
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=["png", "html"], help="default: png html"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0 done, 2 an error that you can mend."""
    args = build_parser().parse_args(argv)

    def tool() -> None:
        config = read_config(args)
        clip = ClipReader(config, DataConfig(backend="cpu", dali_threads=1))(args.video)
        if len(clip.pictures) < 2:
            raise InputError(
                f"--video {args.video} gives {len(clip.pictures)} frame; a roll needs at least 2"
                " (--frames, and no still picture)"
            )
        sheet = Sheet(
            "Temporal token rolling: frames exchange patches",
            LEAD,
            [draw(config, clip)],
            f"clip: {args.video.name}",
        )
        for path in sheet.save(args.out, args.formats):
            print(path)

    return run_command(tool)


if __name__ == "__main__":
    sys.exit(main())
