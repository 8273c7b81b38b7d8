"""Which result stands where in the paper's tables, and in which rows of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from allinone.finetune.evaluation.paper_numbers import (
    Column,
    PaperCell,
    Table,
    paper_tables,
    setting,
    tested_as,
)
from allinone.finetune.evaluation.results import EvaluationResult, Score


@dataclass(frozen=True)
class ReportedRun:
    """One results file."""

    number: int
    path: Path
    result: EvaluationResult

    @property
    def look(self) -> str:
        """Frames, with views where there are several: 3×3 (views × frames)."""
        result = self.result
        return str(result.frames) if result.views == 1 else f"{result.views}×{result.frames}"


@dataclass(frozen=True)
class Difference:
    """Ours minus the paper's, which is taken as exact."""

    value: float
    low: float | None
    high: float | None
    verdict: str
    """within: the paper's number lies in our interval; better or worse: outside of it; unknown:
    there is no interval."""


def difference(score: Score, target: float, column: Column) -> Difference:
    """Of a score to the paper's number."""
    value = score.value - target
    if score.low is None or score.high is None:
        return Difference(value, None, None, "unknown")
    low, high = score.low - target, score.high - target
    verdict = (
        "within"
        if low <= 0 <= high
        else "better"
        if (value < 0) == column.lower_is_better
        else "worse"
    )
    return Difference(value, low, high, verdict)


@dataclass(frozen=True)
class OwnRow:
    """A setting of ours that no row of the paper has."""

    run: ReportedRun
    """One of them, for the row's head."""
    runs: dict[int, list[ReportedRun]]
    """By number of column, newest first."""
    reason: str
    """In what it differs from the nearest row."""


@dataclass(frozen=True)
class FilledTable:
    """One table of the paper with what was run."""

    table: Table
    runs: dict[tuple[int, int], list[ReportedRun]]
    """By number of row and column, newest first."""
    own: list[OwnRow]


@dataclass
class Report:
    """All tables, and the results that have no place in them."""

    runs: Sequence[ReportedRun]
    tables: list[FilledTable] = field(default_factory=list)
    rest: list[ReportedRun] = field(default_factory=list)

    def comparisons(self) -> list[tuple[PaperCell, ReportedRun, Difference]]:
        """Every number of the paper that a result stands beside: the newest one."""
        return [
            (
                cell,
                runs[0],
                difference(runs[0].result.scores[cell.column.metric], cell.target, cell.column),
            )
            for filled in self.tables
            for place, runs in filled.runs.items()
            if (cell := filled.table.cells[place]).target is not None and runs
        ]

    def counts(self) -> dict[str, int]:
        """targets: numbers that may be compared with; run: those with a result; then the results by
        verdict."""
        cells = [cell for filled in self.tables for cell in filled.table.cells.values()]
        found = self.comparisons()
        verdicts = {
            name: sum(each.verdict == name for *_, each in found)
            for name in ("within", "better", "worse", "unknown")
        }
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
        tail = f": {verdicts}" if verdicts else ""
        return (
            f"{len(self.runs)} results; {counts['run']} of the paper's {counts['targets']} numbers"
            f" have one beside them{tail}"
        )


VERDICTS = {
    "within": "within our 95 % interval",
    "better": "better than the paper",
    "worse": "worse than the paper",
    "unknown": "without an interval",
}


def arrange(runs: Sequence[ReportedRun]) -> Report:
    """Put every run into the cells that it may stand in; `runs` newest first."""
    report = Report(runs)
    placed: set[int] = set()
    for table in paper_tables():
        filled = _fill(table, runs)
        placed |= {run.number for found in filled.runs.values() for run in found}
        placed |= {run.number for row in filled.own for found in row.runs.values() for run in found}
        report.tables.append(filled)
    report.rest = [run for run in runs if run.number not in placed]
    return report


def _fill(table: Table, runs: Sequence[ReportedRun]) -> FilledTable:
    cells: dict[tuple[int, int], list[ReportedRun]] = {}
    own: dict[tuple[object, ...], OwnRow] = {}
    for run in runs:
        result = run.result
        columns = [j for j, column in enumerate(table.columns) if _belongs(column, result)]
        fits = [
            i
            for i in range(len(table.rows))
            if columns and not table.cells[i, columns[0]].differences(result)
        ]
        for place in ((i, j) for i in fits for j in columns):
            cells.setdefault(place, []).append(run)
        if columns and not fits:
            row = own.setdefault(
                setting(result), OwnRow(run, {}, _nearest(table, columns[0], result))
            )
            for j in columns:
                row.runs.setdefault(j, []).append(run)
    return FilledTable(table, cells, list(own.values()))


def _belongs(column: Column, result: EvaluationResult) -> bool:
    names = (column.benchmark, column.split, column.variant)
    return (
        names == (result.benchmark, result.split, tested_as(result.variant))
        and column.metric in result.scores
    )


def _nearest(table: Table, j: int, result: EvaluationResult) -> str:
    """What parts the result from the row of the paper that is most like it, of those that print a
    number in the column."""
    cells = [table.cells[i, j] for i in range(len(table.rows))]
    apart = [(cell.differences(result), cell.row) for cell in cells if cell.certainty]
    if not apart:
        return "the paper prints no number"
    differences, row = min(apart, key=lambda each: len(each[0]))
    return f"nearest row {row.model}, {row.look} frames: {'; '.join(differences)}"
