#!/usr/bin/env python3
"""Temporal token rolling: which patches of which frame each block of the model sees together.

    python tools/rolls.py --checkpoint runs/demo/train --video clip.mp4 --out roll
    python tools/rolls.py --size base --video clip.mp4

Writes roll.png and roll.html. Patches are coloured by the frame that they came from and drawn in
the slot that they move to. They are tracked by the model's own roll (slot_origins in
tools/inspection/patch_attribution.py); weights do not matter, so --size works without a checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.validation import COUNT, require
from allinone.tools.inspection.options import FigureOptions, PatchOrder, Size, require_one

if TYPE_CHECKING:
    from allinone.model import AllInOneConfig


@dataclass(frozen=True, kw_only=True)
class RollOptions(FigureOptions):
    """Options of tools/rolls.py. Give either --checkpoint or --size."""

    checkpoint: Path | None = None
    """Run, checkpoint, model folder, file of weights, or hub id."""
    size: Size | None = None
    """A new model of this size."""
    video: Path
    """Video file."""
    frames: int | None = None
    """Number of frames, at least 1; the model's by default."""
    patch_order: PatchOrder | None = None
    """Which patches roll; the model's by default."""
    out: Path = Path("roll")
    """Files to write, without extension."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        require_one(("--checkpoint", self.checkpoint), ("--size", self.size))
        require(self, COUNT, ("frames",))


def _read_config(options: RollOptions) -> AllInOneConfig:
    """The configuration of --checkpoint or --size, changed by --frames and --patch-order."""
    from allinone.model import AllInOneConfig

    changes = {"num_frames": options.frames, "patch_order": options.patch_order}
    changes = {name: value for name, value in changes.items() if value is not None}
    if options.checkpoint is None:
        config = AllInOneConfig.from_size(str(options.size), **changes)
    else:
        from allinone.finetune.task_model.source import config_fields, read_source_checkpoint

        saved = config_fields(read_source_checkpoint(options.checkpoint).config)
        config = AllInOneConfig(**{**saved, **changes})
    if config.roll != "roll":
        raise InputError(
            f"--checkpoint: this model exchanges frames by {config.roll!r}; patches move only with"
            " 'roll'"
        )
    return config


def _run(argv: Sequence[str]) -> None:
    options = parse(RollOptions, argv, prog="tools/rolls.py", description=__doc__ or "")
    options.check()
    from allinone.data.config import DataConfig
    from allinone.tools.inspection.media_inputs import ClipReader
    from allinone.tools.inspection.roll_figure import roll_figure

    config = _read_config(options)
    clip = ClipReader(config, DataConfig(backend="cpu", dali_threads=1))(options.video)
    if len(clip.pictures) < 2:
        raise InputError(
            f"--video {options.video} gives {len(clip.pictures)} frame; a roll needs at least 2"
            " (--frames, and a video instead of an image)"
        )
    for path in roll_figure(config, clip).save(options.out, options.formats):
        print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
