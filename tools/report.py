#!/usr/bin/env python3
"""Report our results next to the paper's numbers: one HTML page and one Markdown file.

    tools/report.py runs/msrvtt_qa runs/vcr      two runs
    tools/report.py 'runs/*' --out report        all runs below a folder
    tools/report.py runs/mine                    a pre-training run: the demo's page, in the run
    tools/report.py 'runs/*' --ours-only         leave out what no run has a result for
    tools/report.py --compare A.jsonl B.jsonl    two predictions files of one test set, item by item
    tools/report.py status gpu_report.json       add a report of `make gpu-check` to docs/status.md

A result is compared with a number of the paper only if it was scored on all items of the official
split, and if model size, pre-training, frames, views, image size and variant are the same. A result
on other items is listed with their number, a result of another setting gets a row that states the
differences. A result on annotations of your own also gets a page of right and wrong items, next to
its file. --compare exits with 1 if the files differ.
"""

from __future__ import annotations

import glob
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    items: Literal["own", "all", "none"] = "own"
    """Results that get a page of right and wrong items: those on annotations of your own (`allinone
    finetune own`), all, or none. Annotations and media of the run are read again."""
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
    runs: Sequence[str],
    out: Path,
    *,
    ours_only: bool = False,
    skip_damaged: bool = False,
    items: str = "none",
) -> None:
    """Write OUT.html and OUT.md, and print the summary.

    Args:
        runs: Paths and patterns, as on the command line.
        out: Path of the two files without their suffixes.
        ours_only: Leave out tables and rows of the paper without a result of ours.
        skip_damaged: Log damaged files instead of raising.
        items: Results that get a page of items: own, all or none.

    Raises:
        InputError: As for `collect`.
    """
    from allinone.common.atomic_io import write_atomic
    from allinone.tools.reporting.markdown import markdown
    from allinone.tools.reporting.page import html_page
    from allinone.tools.reporting.tables import fill_tables

    collected = collect(runs, skip_damaged=skip_damaged)
    filled = fill_tables(collected)
    page = out.with_name(f"{out.name}.html")
    text = out.with_name(f"{out.name}.md")
    write_atomic(page, html_page(filled, page.parent, ours_only=ours_only))
    write_atomic(text, markdown(filled, text.parent, ours_only=ours_only))
    print(f"{filled.summary()}\n  {page}\n  {text}")
    _write_items_pages(collected, items)


def _write_items_pages(runs: Sequence[ReportedRun], items: str) -> None:
    """Write the pages of right and wrong items; a run whose media are gone gets a warning."""
    for run in runs:
        if items == "none" or (items == "own" and run.result.benchmark != "own"):
            continue
        from allinone.tools.reporting.items_page import write_items_page  # imports torch

        try:
            print(f"  {write_items_page(run.path, run.result)}")
        except (InputError, ValueError) as error:
            log.warning("%s", error)


def _report_pretraining(runs: Sequence[str]) -> list[str]:
    """Write the pages of the pre-training runs among the arguments; returns the other arguments.

    A pattern stands for results: evaluating every run that it matches could take hours.
    """
    others = []
    for run in runs:
        path = Path(run)
        if not (path / "run.json").is_file() or (path / "results").is_dir():
            others.append(run)
            continue
        from allinone.tools.inspection.checkpoints import load_checkpoint
        from allinone.tools.reporting.run_report import is_pretraining_run, report_run

        if is_pretraining_run(path):
            loaded = load_checkpoint(path, "cpu")  # the best weights, else the newest
            files = report_run(path, loaded.model, loaded.weights)
            print(*(f"  {file}" for file in files), sep="\n")
        else:
            others.append(run)
    return others


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
            others = _report_pretraining(options.runs)
            if options.runs and not others:
                return 0
            write_report(
                others,
                options.out,
                ours_only=options.ours_only,
                skip_damaged=options.skip_damaged,
                items=options.items,
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
