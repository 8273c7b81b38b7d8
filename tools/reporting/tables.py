"""Assigns our results to the cells of the paper's tables, and to rows of our own where no row of
the paper has the same setting. Results that were not scored on the official items get no cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from allinone.finetune.evaluation.official_counts import tested_as
from allinone.finetune.evaluation.paper_numbers import (
    Column,
    PaperCell,
    Table,
    paper_tables,
    setting,
)
from allinone.finetune.evaluation.results import EvaluationResult, Score

VERDICTS = {
    "within": "within our 95 % interval",
    "better": "better than the paper",
    "worse": "worse than the paper",
    "unknown": "without an interval",
}


@dataclass(frozen=True)
class ReportedRun:
    """One results file."""

    number: int
    path: Path
    result: EvaluationResult

    @property
    def frames_label(self) -> str:
        """Frames, with views if there are several: 3×3 (views × frames)."""
        result = self.result
        return str(result.frames) if result.views == 1 else f"{result.views}×{result.frames}"


@dataclass(frozen=True)
class Difference:
    """Ours minus the paper's, which is taken as exact."""

    value: float
    low: float | None
    high: float | None
    verdict: str
    """A key of VERDICTS. within: our interval contains the paper's number; better, worse: it does
    not; unknown: there is no interval."""


def difference(score: Score, target: float, column: Column) -> Difference:
    """Compare a score with the paper's number."""
    value = score.value - target
    if score.low is None or score.high is None:
        return Difference(value, None, None, "unknown")
    low, high = score.low - target, score.high - target
    if low <= 0 <= high:
        verdict = "within"
    else:
        verdict = "better" if (value < 0) == column.lower_is_better else "worse"
    return Difference(value, low, high, verdict)


@dataclass(frozen=True)
class OwnRow:
    """A setting of ours that no row of the paper has."""

    run: ReportedRun
    """One of its runs; the row's head is taken from it."""
    runs: dict[int, list[ReportedRun]]
    """Column index → runs, newest first."""
    reason: str
    """How the setting differs from the nearest row of the paper."""


@dataclass(frozen=True)
class FilledTable:
    """One table of the paper with our results."""

    table: Table
    runs: dict[tuple[int, int], list[ReportedRun]]
    """(row index, column index) → runs, newest first."""
    own: list[OwnRow]


@dataclass
class FilledTables:
    """All tables, and the results that belong to none of them."""

    runs: Sequence[ReportedRun]
    tables: list[FilledTable] = field(default_factory=list)
    unofficial: list[ReportedRun] = field(default_factory=list)
    """Runs of a benchmark in the tables that were not scored on its official items."""
    unmatched: list[ReportedRun] = field(default_factory=list)
    """Runs for which no table has a column."""

    def comparisons(self) -> list[tuple[PaperCell, ReportedRun, Difference]]:
        """Every number of the paper that has a result, with the newest one."""
        return [
            (
                cell,
                runs[0],
                difference(runs[0].result.scores[cell.column.metric], cell.target, cell.column),
            )
            for filled in self.tables
            for position, runs in filled.runs.items()
            if (cell := filled.table.cells[position]).target is not None and runs
        ]

    def counts(self) -> dict[str, int]:
        """How many numbers can be compared (targets), how many have a result (run), and how many
        of these have each verdict."""
        cells = [cell for filled in self.tables for cell in filled.table.cells.values()]
        found = self.comparisons()
        verdicts = {name: sum(each.verdict == name for *_, each in found) for name in VERDICTS}
        return {
            "targets": sum(cell.target is not None for cell in cells),
            "run": len(found),
            **verdicts,
        }

    def summary(self) -> str:
        """One line for people."""
        counts = self.counts()
        verdicts = ", ".join(
            f"{counts[name]} {text}" for name, text in VERDICTS.items() if counts[name]
        )
        read = f"{len(self.runs)} result{'' if len(self.runs) == 1 else 's'}"
        unofficial = f"; {len(self.unofficial)} not on the official items" * bool(self.unofficial)
        return (
            f"{read} for {counts['run']} of the paper's {counts['targets']} numbers"
            f"{f': {verdicts}' if verdicts else ''}{unofficial}"
        )


def fill_tables(runs: Sequence[ReportedRun]) -> FilledTables:
    """Assign every run on official items to all cells that have its setting; `runs` newest
    first."""
    filled = FilledTables(runs)
    columns = [column for table in paper_tables() for column in table.columns]
    # matched by name and metric alone: a subset of a split may have another split's name
    listed = [run for run in runs if any(_measures(run.result, column) for column in columns)]
    filled.unofficial = [run for run in listed if run.result.unofficial_reason]
    official = [run for run in runs if not run.result.unofficial_reason]
    assigned: set[int] = {run.number for run in filled.unofficial}
    for table in paper_tables():
        one = _fill(table, official)
        assigned |= {run.number for found in one.runs.values() for run in found}
        assigned |= {run.number for row in one.own for found in row.runs.values() for run in found}
        filled.tables.append(one)
    filled.unmatched = [run for run in runs if run.number not in assigned]
    return filled


def _fill(table: Table, runs: Sequence[ReportedRun]) -> FilledTable:
    cells: dict[tuple[int, int], list[ReportedRun]] = {}
    own: dict[tuple[object, ...], OwnRow] = {}
    for run in runs:
        result = run.result
        columns = [j for j, column in enumerate(table.columns) if _is_of_column(result, column)]
        if not columns:
            continue
        # the cells of a row differ from a result in the same points, so one of them decides
        matching = [
            i for i in range(len(table.rows)) if not table.cells[i, columns[0]].differences(result)
        ]
        for position in ((i, j) for i in matching for j in columns):
            cells.setdefault(position, []).append(run)
        if not matching:
            reason = _nearest(table, columns[0], result)
            row = own.setdefault(setting(result), OwnRow(run, {}, reason))
            for j in columns:
                row.runs.setdefault(j, []).append(run)
    return FilledTable(table, cells, list(own.values()))


def _measures(result: EvaluationResult, column: Column) -> bool:
    return column.benchmark == result.benchmark and column.metric in result.scores


def _is_of_column(result: EvaluationResult, column: Column) -> bool:
    names = (column.benchmark, column.split, column.variant)
    return (
        names == (result.benchmark, result.split, tested_as(result.variant))
        and column.metric in result.scores
    )


def _nearest(table: Table, j: int, result: EvaluationResult) -> str:
    """How the result's setting differs from the most similar row that prints a number in column
    j."""
    cells = [table.cells[i, j] for i in range(len(table.rows))]
    candidates = [(cell.differences(result), cell.row) for cell in cells if cell.certainty]
    if not candidates:
        return "the paper prints no number"
    differences, row = min(
        candidates, key=lambda each: (len(each[0]), abs(each[1].frames - result.frames))
    )
    return f"nearest row {row.model}, {row.look} frames: {'; '.join(differences)}"
