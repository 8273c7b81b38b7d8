#!/usr/bin/env python3
"""Prepare videos or images with captions for training: shards (WebDataset tars) and an index."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import parse, run_command
from allinone.common.console import setup_logging
from allinone.common.errors import DataError
from allinone.common.exit_codes import ExitCode
from allinone.common.formatting import duration, size
from allinone.common.object_storage import remote_url
from allinone.data.prepare.options import EXTERNAL_REASONS, PrepareOptions

if TYPE_CHECKING:
    from allinone.data.prepare.pipeline import PrepareSummary

log = logging.getLogger(__name__)

DESCRIPTION = """\
Prepare videos or images with captions for training: shards (WebDataset tars) and an index.

SOURCE is the official list of WebVid, HowTo100M, YT-Temporal-180M, Panda-70M, InternVid,
OpenVid-1M, CC3M, CC12M, SBU, COCO (Karpathy) or Visual Genome, or the folder that holds it; your
own CSV with the columns path (absolute, or relative to its folder), caption and, optionally, split;
a .tar of video2dataset or img2dataset, or a folder of them. Every clip is decoded once; bad ones
are counted and listed in bad_clips.jsonl.

The same command continues after an interruption, and makes lost shards of a finished folder again.
--retry missing,timeout tries clips again that were bad for a reason outside the file: storage that
was not mounted, an overloaded node; --videos may then name another folder.

On several machines: --part 1/16 to --part 16/16 in any order or at the same time, then --merge
(slurm/prepare_array.sh does both)."""


@dataclass(frozen=True)
class PrepareCommand(PrepareOptions):
    """Options of the command."""

    max_bad_share: float = 0.2
    """Share of bad clips above which the exit code is 1."""
    json: bool = False
    """Print the summary as one JSON line; messages go to stderr."""


def _print(summary: PrepareSummary, out: Path | str) -> None:
    if summary.part:
        print(f"  {summary.part} ({duration(summary.seconds)})")
    elif summary.done_before:
        print(f"{out} is already prepared")
    for split, number in summary.clips.items():
        print(f"  {split:<14}{number:>12,} clips")
    for reason, number in sorted(summary.bad.items(), key=lambda item: -item[1]):
        print(f"  bad: {reason:<20}{number:>8,}")
    if summary.part:
        return
    for line in summary.warnings:
        print(f"  warning: {line}")
    for line in summary.official:
        print(f"  official: {line}")
    print(
        f"  {size(summary.bytes)} in {duration(summary.seconds)}; kept"
        f" {100 * summary.kept_share:.2f} % of the listed clips; bad ones are listed in"
        f" {out}/bad_clips.jsonl"
    )


def _run(options: PrepareCommand) -> int:
    from allinone.data.prepare.pipeline import prepare

    if options.json:
        setup_logging(stderr=True)
    try:
        summary = prepare(options)
    except KeyboardInterrupt:
        log.error("interrupted; the same command continues")
        return 130
    if options.json:
        print(json.dumps({**vars(summary), "bad_share": summary.bad_share}))
    else:
        _print(summary, remote_url(options.out) or options.out)
    if summary.bad_share > options.max_bad_share:
        again = ",".join(reason for reason in EXTERNAL_REASONS if summary.bad.get(reason))
        raise DataError(
            f"{100 * summary.bad_share:.1f} % of the clips are bad, more than --max-bad-share"
            f" {options.max_bad_share:g}",
            hint=f"once the cause is fixed, --retry {again} tries them again" if again else "",
            exit_code=ExitCode.FAILURE,
        )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; exit code 1: too many bad clips."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parse(PrepareCommand, arguments, prog="allinone prepare", description=DESCRIPTION)
    return run_command(lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
