#!/usr/bin/env python3
"""Index a folder of videos and images, to search it by text: embeddings of every clip.

    allinone index ~/videos --checkpoint runs/mine --out index
    allinone search "a dog in the snow" --index index

Long videos are divided into clips. The same command updates the index: new and changed files are
embedded, deleted ones are dropped; after an interruption it continues. Files that cannot be read
are named and counted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tyro.conf import Positional

from allinone.common.command_line import parse, run_command
from allinone.common.console import setup_logging
from allinone.common.formatting import duration
from allinone.common.validation import COUNT, NOT_NEGATIVE, Bounds, require
from allinone.tools.inspection.options import InspectionOptions

NAMED = 10
"""Files that cannot be read that are named."""


@dataclass(frozen=True, kw_only=True)
class IndexOptions(InspectionOptions):
    """Options of the command."""

    dir: Positional[Path]
    """Folder of the videos and images, here or in object storage; subfolders are searched too."""
    out: Path
    """Folder of the index; an index there is updated."""
    clip_s: float = 10.0
    """Length of the clips that longer videos are divided into, seconds; the model sees the same
    number of frames of each."""
    precision: Literal["fp16", "fp32"] = "fp16"
    """Of the stored embeddings. fp16 halves the size and changes similarities by at most 0.001."""
    batch_size: int = 16
    """Clips per forward pass."""
    workers: int = min(4, os.cpu_count() or 1)
    """Processes that decode; 0 decodes in this process."""
    retry: bool = False
    """Try files again that could not be read."""
    json: bool = False
    """Print the summary as one JSON line; messages go to stderr."""

    def check(self) -> None:
        """Raise InputError for values that cannot be used."""
        require(self, COUNT, ("batch_size",))
        require(self, NOT_NEGATIVE, ("workers",))
        require(self, Bounds(0.5), ("clip_s",))


def _run(argv: Sequence[str]) -> int:
    options = parse(IndexOptions, argv, prog="tools/index.py", description=__doc__)
    options.check()
    setup_logging(stderr=options.json)
    from allinone.tools.inspection.checkpoints import load_checkpoint
    from allinone.tools.video_index.build import update_index

    summary = update_index(
        load_checkpoint(options.checkpoint, options.device),
        str(options.checkpoint),
        options.dir,
        options.out,
        clip_s=options.clip_s,
        precision=options.precision,
        batch_size=options.batch_size,
        workers=options.workers,
        retry=options.retry,
        quiet=options.json,
    )
    if options.json:
        print(json.dumps(asdict(summary), ensure_ascii=False))
        return 0
    print(
        f"{options.out}: {summary.clips:,} clips, {summary.added:,} of them new;"
        f" {summary.unchanged_files:,} files unchanged, {summary.deleted_files:,} deleted"
        f" ({duration(summary.seconds)})"
    )
    for path, reason in list(summary.problems.items())[:NAMED]:
        print(f"  not indexed: {path}: {reason}")
    if len(summary.problems) > NAMED:
        print(f"  … and {len(summary.problems) - NAMED:,} more (--json lists all)")
    print(f'next: allinone search "…" --index {options.out}')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
