#!/usr/bin/env python3
"""Prepare videos or images with captions for training: shards (WebDataset tars) and an index.

SOURCE is the official list of WebVid, HowTo100M, YT-Temporal-180M, CC3M, CC12M, SBU, COCO
(Karpathy) or Visual Genome, or the folder with it; your own CSV with the columns path (from its
folder on, or absolute) and caption (and, if you like, split); a .tar of video2dataset or
img2dataset, or a folder of them. Every clip is decoded once; bad ones are counted and named, never
silently dropped. The same command continues after an interruption.

What is lost of a finished folder, a shard that was deleted for instance, the same command makes
anew. --retry missing,timeout tries clips again that were bad for a reason outside them: storage
that was not mounted, a node too busy; --videos may then name another folder.

On several machines: --part 1/16 to --part 16/16 in any order or at the same time, then --merge
(slurm/prepare_array.sh does both).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.errors import DataError
from allinone.common.formatting import duration, size
from allinone.data.prepare.encode import CODECS, Encoding
from allinone.data.prepare.pipeline import OUTSIDE, RETRIED, PrepareOptions, PrepareSummary, prepare
from allinone.data.sources import FORMATS, NAME_FIELDS


def _print(summary: PrepareSummary, out: Path) -> None:
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
    for line in summary.official:
        print(f"  official: {line}")
    print(
        f"  {size(summary.bytes)} in {duration(summary.seconds)}; kept"
        f" {100 * summary.kept_share:.2f} % of the listed clips; bad ones are listed in"
        f" {out / 'bad_clips.jsonl'}"
    )


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n, for example 3/16")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/prepare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, cores = parser.add_argument, PrepareOptions(Path(), Path()).workers
    add("source", type=Path, metavar="SOURCE")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the prepared data")
    add(
        "--format",
        dest="kind",
        choices=("auto", *FORMATS),
        default="auto",
        help="format of SOURCE (default: %(default)s)",
    )
    add(
        "--videos",
        type=Path,
        metavar="DIR",
        help="folder that the list's videos or images lie in (default: the official place)",
    )
    add(
        "--names",
        metavar="TEMPLATE",
        help=f"where an image lies of which the list knows the URL only; fields: {NAME_FIELDS}",
    )
    add(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="ids to leave out, one a line; for vg: dataset_coco.json, its val and test",
    )
    add("--shard-clips", type=int, help="files per shard (default: 1000, long videos 100)")
    add(
        "--workers",
        type=int,
        default=cores,
        help="decoding processes (default: all cores, %(default)s)",
    )
    add("--min-frames", type=int, default=2, help="fewest frames of a video (default: %(default)s)")
    add(
        "--max-duration-s",
        type=float,
        help="longest video, seconds (default: 3600, of long videos 36000)",
    )
    add(
        "--timeout-s",
        type=float,
        help="time limit for decoding one file, seconds (default: 60, of long videos 1800)",
    )
    add(
        "--codec",
        choices=CODECS,
        help=(
            "encode anew for training (default: the stream is copied; h264 with the two options"
            " below)"
        ),
    )
    add(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="scale to this shorter side, never up; images too",
    )
    add(
        "--gop",
        type=int,
        metavar="FRAMES",
        help=f"frames from keyframe to keyframe (default: {Encoding.gop})",
    )
    add(
        "--part",
        type=_part,
        metavar="i/n",
        help="make only the i-th of n shares of the shards, i from 1, and no index",
    )
    add(
        "--merge", action="store_true", help="make only the index, when all parts are done, or anew"
    )
    add(
        "--retry",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="REASON,…",
        help=(
            "make those shards anew that hold files which are bad for such a reason; what is still"
            f" missing is not tried ({', '.join(RETRIED)})"
        ),
    )
    add(
        "--max-bad-share",
        type=float,
        default=0.2,
        help="share of bad clips above which the exit code is 1 (default: %(default)s)",
    )
    add("--json", action="store_true", help="print the summary as one JSON line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0 done, 1 too many bad clips, 2 an error that you
    can mend."""
    options = vars(_parser().parse_args(argv))
    limit, as_json = options.pop("max_bad_share"), options.pop("json")
    try:
        summary = prepare(PrepareOptions(**options))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    if as_json:
        print(json.dumps({**vars(summary), "bad_share": summary.bad_share}))
    else:
        _print(summary, options["out"])
    if summary.bad_share > limit:
        again = ",".join(reason for reason in OUTSIDE if summary.bad.get(reason))
        hint = (
            f"; when what kept them away is mended, --retry {again} tries those again"
            if again
            else ""
        )
        print(
            f"error: {100 * summary.bad_share:.1f} % of the clips are bad, more than"
            f" --max-bad-share {limit:g}{hint}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
