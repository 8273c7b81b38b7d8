#!/usr/bin/env python3
"""Prepare videos with captions for training: shards (WebDataset tars) and one index.

SOURCE is a folder laid out as WebVid (results_*_<split>.csv beside videos/), one such CSV, your own CSV with the columns path and
caption (and, if you
like, split), a .tar of video2dataset or img2dataset, or a folder of them. Every clip is decoded once; bad ones are counted and named, never silently
dropped. The same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.errors import DataError
from data.prepare import PrepareOptions, PrepareSummary, prepare
from data.units import duration, size


def _print(summary: PrepareSummary, out: Path) -> None:
    if summary.done_before:
        print(f"{out} is already prepared")
    for split, number in summary.clips.items():
        print(f"  {split:<14}{number:>12,} clips")
    for reason, number in sorted(summary.bad.items(), key=lambda item: -item[1]):
        print(f"  bad: {reason:<20}{number:>8,}")
    for note in summary.notes:
        print(f"  note: {note}")
    print(
        f"  {size(summary.bytes)} in {duration(summary.seconds)}; bad clips: {100 * summary.bad_share:.2f} %, listed in {out / 'bad_clips.jsonl'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code: 0 done, 1 too many bad clips, 2 an error that you can mend."""
    parser = argparse.ArgumentParser(
        prog="tools/prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = PrepareOptions(Path(), Path())
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the prepared data")
    parser.add_argument(
        "--format", dest="kind", choices=("auto", "webvid", "csv", "webdataset"), default="auto", help="default: %(default)s"
    )
    parser.add_argument(
        "--videos",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder that the CSV's paths start from (default: beside the CSV)",
    )
    parser.add_argument("--shard-clips", type=int, default=defaults.shard_clips, help="clips per shard (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=defaults.workers, help="decoding processes (default: all cores, %(default)s)"
    )
    parser.add_argument(
        "--min-frames", type=int, default=defaults.min_frames, help="fewest frames of a video (default: %(default)s)"
    )
    parser.add_argument(
        "--max-duration-s", type=float, default=defaults.max_duration_s, help="longest video, seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=defaults.timeout_s,
        help="time limit for decoding one clip, seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.2,
        help="share of bad clips above which the exit code is 1 (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON line")
    options = vars(parser.parse_args(argv))
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
        print(f"error: {100 * summary.bad_share:.1f} % of the clips are bad, more than --max-bad-share {limit}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
