#!/usr/bin/env python3
"""Our results beside the paper's: one HTML page and one Markdown file in the layout of the paper's
tables.

    tools/report.py runs/msrvtt_qa runs/vcr                 two runs
    tools/report.py 'runs/*' --out report                   all runs below a folder, to report.html and report.md
    tools/report.py --compare A.jsonl B.jsonl               two predictions files of one test set, item by item (exit code 1 where they differ)

RUNS are folders of runs, folders that hold such folders, results files, or patterns in quotes. A
result stands in a cell of the paper only where model size, pre-training, frames, views, image size,
split and variant are the paper's; what differs is listed with the reason.
"""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.atomic_io import write_atomic
from allinone.common.command_line import run_command
from allinone.common.errors import InputError
from allinone.finetune.evaluation.results import (
    RESULTS,
    EvaluationResult,
    ResultError,
    read_results,
)
from allinone.tools.reporting.compare import compare
from allinone.tools.reporting.page import html_page, markdown
from allinone.tools.reporting.tables import ReportedRun, arrange


def collect(arguments: Sequence[str], *, skip_damaged: bool = False) -> list[ReportedRun]:
    """The results that the arguments name, each file once, newest first. InputError names all
    damaged files and folders without results."""
    faults: list[str] = []
    found: dict[Path, tuple[Path, EvaluationResult]] = {}
    for place in _places(arguments):
        try:
            files = _files(place)
        except ResultError as error:
            faults.append(str(error))
            continue
        for file in files:
            try:
                found[file.resolve()] = read_results(file)[0]
            except ResultError as error:
                if skip_damaged:
                    print(f"warning: left out: {error}", file=sys.stderr)
                else:
                    faults.append(str(error))
    if faults:
        raise InputError(
            "\n       ".join(
                [*faults, "Evaluate again, or leave damaged files out with --skip-damaged"]
            )
        )
    newest = sorted(found.values(), key=lambda each: (each[1].date, str(each[0])), reverse=True)
    return [ReportedRun(number, file, result) for number, (file, result) in enumerate(newest, 1)]


def _places(arguments: Sequence[str]) -> list[Path]:
    places: list[Path] = []
    for argument in arguments:
        pattern = glob.has_magic(argument) and not Path(argument).exists()
        matches = sorted(glob.glob(argument, recursive=True)) if pattern else [argument]  # noqa: PTH207 - absolute patterns too
        if not matches:
            raise InputError(f"nothing matches {argument!r}")
        kept = [Path(match) for match in matches]
        # 'runs/*' names logs and folders of other kinds as well: of a pattern, only what holds
        # results counts
        places += (
            kept
            if len(kept) == 1
            else [path for path in kept if path.suffix == ".json" or _holds(path)] or kept
        )
    return places


def _holds(path: Path) -> bool:
    return path.is_dir() and (path.name == RESULTS or bool(_below(path)))


def _below(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.rglob(f"{RESULTS}/*.json") if not file.name.startswith(".")
    )


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ResultError(f"{place} is neither a file nor a folder")
    files = sorted(place.glob("*.json")) if place.name == RESULTS else _below(place)
    if not files:
        raise ResultError(
            f"{place} holds no results: no {RESULTS}/*.json in it or below. Give the folder of a"
            " run that was evaluated"
        )
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUNS",
        help="folders of runs, results files, or patterns; none: the paper's tables alone",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/report"),
        help="write OUT.html and OUT.md (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="warn about damaged results files instead of stopping",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="two predictions files (predictions/*.jsonl of a run)",
    )
    args = parser.parse_args(argv)
    if args.compare and args.runs:
        parser.error("--compare takes two predictions files and no RUNS")

    def tool() -> int:
        if args.compare:
            return compare(*args.compare)
        report = arrange(collect(args.runs, skip_damaged=args.skip_damaged))
        page, text = (
            args.out.with_name(f"{args.out.name}.html"),
            args.out.with_name(f"{args.out.name}.md"),
        )
        write_atomic(page, html_page(report, page.parent))
        write_atomic(text, markdown(report, text.parent))
        print(f"{report.summary()}\n  {page}\n  {text}")
        return 0

    return run_command(tool)


if __name__ == "__main__":
    sys.exit(main())
