#!/usr/bin/env python3
"""Temporal token rolling as a picture: which patches of which frame each block of the model sees together.

    python tools/rolls.py --checkpoint runs/demo/train --video clip.mp4 --out roll
    python tools/rolls.py --size base --video clip.mp4

Writes roll.png and roll.html. Every slot of a frame is drawn with the patch that it holds, tinted by the frame that the patch came from. Where
each patch is comes from the model's own roll (tools/tokens.py, slot_origins); weights play no part, so --size does without a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.config import DataConfig
from model import SIZES, AllInOneConfig
from tools.checkpoints import find_weights
from tools.command import InputError, at_least_one, run_tool
from tools.inputs import Clip, ClipReader, upscaled
from tools.sheet import (
    FORMATS,
    FRAME_COLOURS,
    HEADING,
    Section,
    Sheet,
    cells,
    column,
    label,
    legend,
    outline,
    paragraph,
    row,
    tinted,
)
from tools.tokens import slot_origins

LEFT = 170
"""Width of the titles of rows, pixels."""
LEAD = (
    "No block lets one frame attend to another. Instead, before every block, some patches move on to the next frame and some to the one before, and "
    "the block sees them beside the patches that stayed. Each row shows what one block sees; a patch carries the colour of the frame that it "
    "came from. Outlined patches are visitors from another frame."
)


def rows_shown(config: AllInOneConfig, frames: int) -> list[int]:
    """Numbers of rolls to draw: none, then up to the one that brings every patch home (T), or as many as the model has blocks."""
    return list(range(min(config.num_hidden_layers, frames) + 1))


def held(pictures: Sequence[Image.Image], frame: int, origins: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Image.Image:
    """The slots of one frame, each with the patch (frame, patch) that `origins` [T, P] says it holds."""
    side = pictures[0].width
    boxes = cells(side, round(origins[0].shape[1] ** 0.5))
    image = Image.new("RGB", (side, side))
    for slot, box in enumerate(boxes):
        source, patch = int(origins[0][frame, slot]), int(origins[1][frame, slot])
        away = source != frame
        piece = pictures[source].crop(boxes[patch]).resize((box[2] - box[0], box[3] - box[1]))
        image.paste(tinted(piece, FRAME_COLOURS[source % len(FRAME_COLOURS)], 0.45 if away else 0.15), box)
    for slot, box in enumerate(boxes):
        source = int(origins[0][frame, slot])
        if source != frame:
            outline(image, box, FRAME_COLOURS[source % len(FRAME_COLOURS)], max(1, min(3, (box[2] - box[0]) // 8)))
    return image


def draw(config: AllInOneConfig, clip: Clip) -> Section:
    """A row per number of rolls, a column per frame."""
    frames = len(clip.pictures)
    side = max(112, min(230, 900 // frames))
    pictures = [upscaled(picture, side) for picture in clip.pictures]
    blocks = config.num_hidden_layers
    lines = [
        row(
            [
                Image.new("RGB", (LEFT, 1), "white"),
                *(
                    paragraph(f"frame {f + 1}", side, HEADING, FRAME_COLOURS[f % len(FRAME_COLOURS)], bold=True)
                    for f in range(frames)
                ),
            ]
        )
    ]
    for rolls in rows_shown(config, frames):
        frame, patch = (labels.numpy() for labels in slot_origins(config, frames, rolls))
        visitors = int((frame[0] != 0).sum())
        seen = [number for number in range(1, blocks + 1) if number % frames == rolls % frames]
        title = (
            "as read"
            if rolls == 0
            else f"block{'s' if len(seen) > 1 else ''} {', '.join(map(str, seen[:4]))}{' …' if len(seen) > 4 else ''}"
        )
        note = f"{visitors} of {frame.shape[1]} patches\nin each frame\nare visitors" if visitors else "every patch\nis at home"
        texts = column([label(title, HEADING, bold=True), paragraph(note, LEFT)], 6)
        texts = column([texts, Image.new("RGB", (LEFT, 1), "white")])
        lines.append(row([texts, *(held(pictures, f, (frame, patch)) for f in range(frames))]))
    entries = [(FRAME_COLOURS[f % len(FRAME_COLOURS)], f"came from frame {f + 1}") for f in range(frames)]
    body = column(lines, gap=10)
    return Section(
        "",
        column([body, legend(entries, body.width)], gap=12),
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
        f"Before every block {forward} of the {patches} patches move one frame forward and {back} one frame back ({choice}), the last frame "
        f"handing on to the first. The other {patches - forward - back}, the class token and the words stay. After {frames} rolls every patch is "
        "home again."
    )


def read_config(args: argparse.Namespace) -> AllInOneConfig:
    """The config of --checkpoint or --size with the options of the roll; InputError where no patch would move."""
    changes = {"num_frames": args.frames, "patch_order": args.patch_order}
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.size:
        config = AllInOneConfig.from_size(args.size, **changes)
    else:
        weights = find_weights(args.checkpoint)
        try:
            config = AllInOneConfig(**{**json.loads((weights / "config.json").read_text()), **changes})
        except (OSError, ValueError) as error:
            raise InputError(f"--checkpoint {weights}: config.json cannot be read ({error})") from error
    if config.roll != "roll":
        raise InputError(f"--checkpoint: this model exchanges frames by {config.roll!r}; patches move only with 'roll'")
    return config


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="tools/rolls.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", type=Path, metavar="DIR", help="save_pretrained folder, checkpoint, or run")
    model.add_argument("--size", choices=tuple(SIZES), help="a new model of this size")
    parser.add_argument("--video", type=Path, required=True, metavar="FILE")
    parser.add_argument("--frames", type=at_least_one, metavar="T", help="frames (default: the model's)")
    parser.add_argument("--patch-order", choices=("raster", "shuffled"), help="which patches roll (default: as the model)")
    parser.add_argument(
        "--out", type=Path, default=Path("roll"), metavar="STEM", help="files to write, without ending (default: %(default)s)"
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["png", "html"], help="default: png html")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0 done, 2 an error that you can mend."""
    args = build_parser().parse_args(argv)

    def tool() -> None:
        config = read_config(args)
        clip = ClipReader(config, DataConfig(backend="cpu", dali_threads=1))(args.video)
        if len(clip.pictures) < 2:
            raise InputError(
                f"--video {args.video} gives {len(clip.pictures)} frame; a roll needs at least 2 (--frames, and no still picture)"
            )
        sheet = Sheet("Temporal token rolling: frames exchange patches", LEAD, [draw(config, clip)], f"clip: {args.video.name}")
        for path in sheet.save(args.out, args.formats):
            print(path)

    return run_tool(tool)


if __name__ == "__main__":
    sys.exit(main())
