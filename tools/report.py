#!/usr/bin/env python3
"""Report our results next to the paper's numbers: one HTML page and one Markdown file.

    tools/report.py runs/msrvtt_qa runs/vcr      two runs
    tools/report.py 'runs/*' --out report        all runs below a folder
    tools/report.py 'runs/*' --ours-only         leave out what no run has a result for
    tools/report.py --compare A.jsonl B.jsonl    two predictions files of one test set, item by item
    tools/report.py status gpu_report.json       add a report of `make gpu-check` to docs/status.md

A result is compared with a number of the paper only if it was scored on all items of the official
split, and if model size, pre-training, frames, views, image size and variant are the same. A result
on other items is listed with their number, a result of another setting gets a row that states the
differences. --compare exits with 1 if the files differ.
"""

from __future__ import annotations

import glob
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from allinone.common.command_line import parse, run_command
from allinone.common.console import setup_logging
from allinone.common.errors import InputError
from allinone.common.paths import ROOT

if TYPE_CHECKING:
    from allinone.finetune.evaluation.results import EvaluationResult
    from allinone.tools.reporting.tables import ReportedRun

log = logging.getLogger("allinone.tools.report")  # not __name__, which is __main__ in a script


@dataclass(frozen=True)
class ReportOptions:
    """Options of the results report."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RUNS ...]")] = ()
    """Folders of runs, folders that contain such folders, results files, or quoted patterns.
    Without any, the report shows the paper's tables alone."""
    out: Path = Path("runs/report")
    """The report is written to OUT.html and OUT.md."""
    ours_only: bool = False
    """Leave out tables and rows of the paper without a result of ours."""
    skip_damaged: bool = False
    """Warn about damaged results files instead of stopping."""
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="A B")] = None
    """Compare two predictions files (predictions/*.jsonl of a run) instead."""


@dataclass(frozen=True)
class StatusOptions:
    """Options of `report status`."""

    report: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="REPORT.json")]
    """gpu_report.json of `make gpu-check` on a GPU."""
    page: Path = ROOT / "docs" / "status.md"
    """Page whose marked region gets the rows; rows of the same GPU are replaced."""


def collect(arguments: Sequence[str], *, skip_damaged: bool = False) -> list[ReportedRun]:
    """Read the results below all arguments, each file once, newest first.

    Args:
        arguments: Paths and patterns, as on the command line.
        skip_damaged: Log damaged files instead of raising.

    Raises:
        InputError: Names all damaged files and all folders without results.
    """
    from allinone.finetune.evaluation.results import ResultError, read_results
    from allinone.tools.reporting.tables import ReportedRun

    faults: list[str] = []
    found: dict[Path, tuple[Path, EvaluationResult]] = {}
    for path in _expand(arguments):
        try:
            files = _results_files(path)
        except InputError as error:
            faults.append(str(error))
            continue
        for file in files:
            try:
                # resolved: a link and its target are one result
                found[file.resolve()] = read_results(file)[0]
            except ResultError as error:
                if skip_damaged:
                    log.warning("left out: %s", error)
                else:
                    faults.append(str(error))
    if faults:
        raise InputError(
            "\n       ".join(faults),
            hint="correct the path, evaluate again, or leave damaged files out: --skip-damaged",
        )
    newest = sorted(found.values(), key=lambda each: (each[1].date, str(each[0])), reverse=True)
    return [ReportedRun(number, file, result) for number, (file, result) in enumerate(newest, 1)]


def _expand(arguments: Sequence[str]) -> list[Path]:
    """Paths, with patterns replaced by what they match."""
    paths: list[Path] = []
    for argument in arguments:
        if Path(argument).exists() or not glob.has_magic(argument):
            paths.append(Path(argument))
            continue
        matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 - absolute patterns
        if not matches:
            raise InputError(f"nothing matches {argument!r}")
        found = [Path(match) for match in matches]
        # 'runs/*' also matches logs and other folders; what has results is meant
        with_results = [path for path in found if path.suffix == ".json" or _has_results(path)]
        paths += found if len(found) == 1 else with_results or found
    return paths


def _has_results(path: Path) -> bool:
    from allinone.finetune.evaluation.results import RESULTS

    return path.is_dir() and (path.name == RESULTS or bool(_files_below(path)))


def _files_below(folder: Path) -> list[Path]:
    from allinone.finetune.evaluation.results import RESULTS

    return sorted(
        # names that start with a dot are unfinished files (common/atomic_io.py)
        file
        for file in folder.rglob(f"{RESULTS}/*.json")
        if not file.name.startswith(".")
    )


def _results_files(path: Path) -> list[Path]:
    from allinone.finetune.evaluation.results import RESULTS

    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} is neither a file nor a folder")
    files = sorted(path.glob("*.json")) if path.name == RESULTS else _files_below(path)
    if not files:
        raise InputError(
            f"{path} holds no results: no {RESULTS}/*.json in it or below it. Give the folder of a"
            " run that was evaluated"
        )
    return files


def write_report(
    runs: Sequence[str], out: Path, *, ours_only: bool = False, skip_damaged: bool = False
) -> None:
    """Write OUT.html and OUT.md, and print the summary.

    Args:
        runs: Paths and patterns, as on the command line.
        out: Path of the two files without their suffixes.
        ours_only: Leave out tables and rows of the paper without a result of ours.
        skip_damaged: Log damaged files instead of raising.

    Raises:
        InputError: As for `collect`.
    """
    from allinone.common.atomic_io import write_atomic
    from allinone.tools.reporting.markdown import markdown
    from allinone.tools.reporting.page import html_page
    from allinone.tools.reporting.tables import fill_tables

    filled = fill_tables(collect(runs, skip_damaged=skip_damaged))
    page = out.with_name(f"{out.name}.html")
    text = out.with_name(f"{out.name}.md")
    write_atomic(page, html_page(filled, page.parent, ours_only=ours_only))
    write_atomic(text, markdown(filled, text.parent, ours_only=ours_only))
    print(f"{filled.summary()}\n  {page}\n  {text}")


def add_gpu_rows(arguments: Sequence[str]) -> int:
    """Add a report of `make gpu-check` to the status page; returns the exit code."""
    from allinone.tools.reporting import gpu_report

    options = parse(
        StatusOptions,
        arguments,
        prog="tools/report.py status",
        description="Add a report of `make gpu-check` to the GPU rows of docs/status.md.",
    )
    gpu_report.add_to_status(gpu_report.read(options.report), options.page)
    print(options.page)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code; of --compare 0 if the files agree in every item, else 1, like diff.
    """

    arguments = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        """Write the report, compare two files, or add to the status page."""
        setup_logging(stderr=True)
        if arguments[:1] == ["status"]:
            return add_gpu_rows(arguments[1:])
        options = parse(
            ReportOptions,
            arguments,
            prog="tools/report.py",
            description=__doc__,
        )
        if options.compare is None:
            write_report(
                options.runs,
                options.out,
                ours_only=options.ours_only,
                skip_damaged=options.skip_damaged,
            )
            return 0
        if options.runs:
            raise InputError("--compare takes two predictions files and no RUNS")
        from allinone.tools.reporting.compare import compare

        text, identical = compare(*options.compare)
        print(text)
        return 0 if identical else 1

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
