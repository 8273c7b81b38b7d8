"""The content of the results report as text, in the order in which HTML and Markdown show it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from allinone.common.formatting import count
from allinone.finetune.evaluation.paper_numbers import (
    Column,
    PaperCell,
    PaperRow,
    Table,
    budget,
    certainties,
)
from allinone.finetune.evaluation.results import Score
from allinone.tools.reporting.tables import (
    VERDICTS,
    Difference,
    FilledTable,
    FilledTables,
    OwnRow,
    ReportedRun,
    difference,
)

TITLE = "All-in-one: our results and the paper's"
RULES = (
    "A difference is ours minus the paper's. Its interval is the 95 % bootstrap interval of our"
    " number over the test items (over videos where several items share one). The paper's number"
    " is taken as exact, and the interval does not include the variation between training runs."
)
SOURCES = (
    "Illegible numbers are not compared. EVAL paper and EVAL log: what EVAL.md of the original"
    " repository gives as the paper's number and as the number in its log. Views × frames: 3×3 is"
    " three clips of three frames per video, averaged."
)
MARKS = {"verified": "✓", "readme": "R", "talk": "", "unsure": "?", "illegible": ""}
USUAL_IMAGE_SIZE = 224
_SHOWN_MISSING = 20


@dataclass(frozen=True)
class RunValue:
    """The score of one of several runs that share a cell."""

    run: int
    value: str
    date: str


@dataclass(frozen=True)
class OurValue:
    """Our newest score for a cell."""

    run: int
    value: str
    change: str
    """The difference to the paper with its interval; without a target our interval alone."""
    verdict: str
    """A key of VERDICTS."""
    remarks: Sequence[str]
    """Further scores that explain this one."""
    runs: Sequence[RunValue]
    """All runs of the cell, the shown one first."""


@dataclass(frozen=True)
class CellView:
    """One cell: the paper's number, ours, both, or nothing."""

    paper: str = ""
    """Empty in our own rows."""
    mark: str = ""
    meaning: str = ""
    """What is known about the paper's number."""
    also: Sequence[str] = ()
    """Other sources for the same number."""
    ours: OurValue | None = None
    not_run: bool = False
    """The paper has a number and we have none."""


@dataclass(frozen=True)
class RowView:
    """One row of a table."""

    model: str
    pretraining: str
    frames: str
    image_size: str
    """Empty for the usual size in rows of the paper."""
    cells: Sequence[CellView]
    note: str = ""
    """Footnote of a row of the paper."""
    reason: str = ""
    """How a row of ours differs from the nearest row of the paper."""

    @property
    def own(self) -> bool:
        """Whether the row is ours."""
        return bool(self.reason)


@dataclass(frozen=True)
class TableView:
    """One table of the paper."""

    id: str
    title: str
    note: str
    groups: Sequence[tuple[str, int]]
    """(heading, number of columns); empty if no column has such a heading."""
    heads: Sequence[str]
    """Column headings below the groups."""
    names: Sequence[str]
    """Column headings that include the group."""
    rows: Sequence[RowView]
    remarks: Sequence[str]

    def repeated(self) -> Iterator[tuple[str, Sequence[RunValue]]]:
        """(cell, runs) of every cell with several runs."""
        for row in self.rows:
            name = "ours" if row.own else f"{row.model}, {row.frames} frames"
            for column, cell in zip(self.names, row.cells, strict=True):
                if cell.ours and len(cell.ours.runs) > 1:
                    yield f"{name}, {column}", cell.ours.runs


@dataclass(frozen=True)
class UnmatchedScore:
    """One score of a result that no table of the paper has."""

    run: int
    result: str
    protocol: str
    name: str
    value: str
    unit: str
    interval: str


@dataclass(frozen=True)
class RunView:
    """One results file."""

    number: int
    name: str
    zero_shot: bool
    model_size: str
    parameters: str
    pretraining: str
    frames: str
    image_size: int
    max_text_len: int
    checkpoint: str
    sha256: str
    items: str
    missing: int
    missing_items: str
    """The first missing items with their reasons."""
    date: str
    code: str
    file: str
    """Path relative to the report."""


@dataclass(frozen=True)
class ReportView:
    """The report from top to bottom."""

    summary: str
    tiles: Sequence[tuple[str, str]]
    """(number, what it counts)"""
    tables: Sequence[TableView]
    unmatched: Sequence[UnmatchedScore]
    runs: Sequence[RunView]
    marks: Sequence[tuple[str, str]] = field(default_factory=lambda: mark_meanings())
    budget: Sequence[tuple[str, str]] = field(
        default_factory=lambda: [(line["what"], line["value"]) for line in budget()]
    )


def report_view(filled: FilledTables, folder: Path) -> ReportView:
    """The content of a report in `folder`; paths of results files are relative to it."""
    return ReportView(
        summary=filled.summary(),
        tiles=_tiles(filled),
        tables=[_table(table) for table in filled.tables],
        unmatched=[score for run in filled.unmatched for score in _unmatched(run)],
        runs=[_run(run, folder) for run in filled.runs],
    )


def mark_meanings() -> list[tuple[str, str]]:
    """(mark, meaning) of every kind of number that is compared."""
    return [
        (MARKS.get(name) or "no mark", meaning)
        for name, meaning in certainties().items()
        if name != "illegible"
    ]


def number(value: float, *, sign: bool = False) -> str:
    """One decimal, with a typographic minus sign."""
    return f"{value:{'+' if sign else ''}.1f}".replace("-", "−")


def difference_text(found: Difference) -> str:
    """Format as +0.4 [−1.5, +2.3]; without an interval as +0.4."""
    value = number(found.value, sign=True)
    if found.low is None or found.high is None:
        return value
    return f"{value} [{number(found.low, sign=True)}, {number(found.high, sign=True)}]"


def interval(score: Score) -> str:
    """Format as [42.4, 44.4]; empty without an interval."""
    if score.low is None or score.high is None:
        return ""
    return f"[{number(score.low)}, {number(score.high)}]"


def _tiles(filled: FilledTables) -> list[tuple[str, str]]:
    counts = filled.counts()
    tiles = [
        (str(len(filled.runs)), "results read"),
        (f"{counts['run']} of {counts['targets']}", "numbers of the paper with a result"),
    ]
    tiles += [(str(counts[name]), text) for name, text in VERDICTS.items() if counts[name]]
    if missing := sum(len(run.result.missing) for run in filled.runs):
        tiles.append((str(missing), "items could not be shown, counted as wrong"))
    return tiles


def _table(filled: FilledTable) -> TableView:
    table = filled.table
    grouped = any(column.group for column in table.columns)
    groups = groupby(table.columns, key=lambda column: column.group)
    return TableView(
        id=table.id,
        title=table.title,
        note=table.note,
        groups=[(name, len(list(members))) for name, members in groups] if grouped else [],
        heads=[column.head for column in table.columns],
        names=[_column_name(column) for column in table.columns],
        rows=[
            *(_paper_row(filled, i, row) for i, row in enumerate(table.rows)),
            *(_own_row(table, own) for own in filled.own),
        ],
        remarks=_remarks(table),
    )


def _column_name(column: Column) -> str:
    return f"{column.group} {column.head}".strip()


def _remarks(table: Table) -> list[str]:
    """Footnotes of rows and of numbers."""
    rows = [f"* {row.model}, {row.look} frames: {row.note}" for row in table.rows if row.note]
    cells = [cell for cell in table.cells.values() if cell.note and cell.certainty != "illegible"]
    return rows + [
        f"{cell.row.model}, {cell.row.look} frames, {_column_name(cell.column)}: {cell.note}"
        for cell in cells
    ]


def _paper_row(filled: FilledTable, i: int, row: PaperRow) -> RowView:
    return RowView(
        model=row.model,
        pretraining=row.data,
        frames=row.look,
        image_size="" if row.image_size == USUAL_IMAGE_SIZE else f"{row.image_size} px",
        cells=[
            _paper_cell(filled.table.cells[i, j], filled.runs.get((i, j), []))
            for j in range(len(filled.table.columns))
        ],
        note=row.note,
    )


def _own_row(table: Table, own: OwnRow) -> RowView:
    result = own.run.result
    size = result.model_size or count(result.parameters)
    return RowView(
        model=f"ours: {size}{', zero-shot' if result.zero_shot else ''}",
        pretraining=result.pretraining or "not stated",
        frames=own.run.frames_label,
        image_size=f"{result.image_size} px",
        cells=[
            CellView(ours=_ours(own.runs[j], column, None)) if j in own.runs else CellView()
            for j, column in enumerate(table.columns)
        ],
        reason=own.reason,
    )


def _paper_cell(cell: PaperCell, runs: Sequence[ReportedRun]) -> CellView:
    if cell.certainty == "illegible":
        paper = "illegible"
    else:
        paper = "–" if cell.value is None else number(cell.value)
    known = (certainties().get(cell.certainty, ""), cell.note)
    return CellView(
        paper=paper,
        mark=MARKS.get(cell.certainty, ""),
        meaning="; ".join(filter(None, known)),
        also=[f"{source} {number(value)}" for source, value in cell.also.items()],
        ours=_ours(runs, cell.column, cell.target) if runs else None,
        not_run=bool(cell.certainty) and not runs,
    )


def _ours(runs: Sequence[ReportedRun], column: Column, target: float | None) -> OurValue:
    score = runs[0].result.scores[column.metric]
    if target is None:
        change, verdict = interval(score), "unknown"
    else:
        found = difference(score, target, column)
        change, verdict = difference_text(found), found.verdict
    return OurValue(
        run=runs[0].number,
        value=number(score.value),
        change=change,
        verdict=verdict,
        remarks=_score_remarks(column.metric, runs[0]),
        runs=[
            RunValue(
                run.number, number(run.result.scores[column.metric].value), run.result.date[:10]
            )
            for run in runs
        ],
    )


def _score_remarks(name: str, run: ReportedRun) -> list[str]:
    """Next to an accuracy over all questions: the accuracy over the answerable ones, and how many
    these are."""
    scores = run.result.scores
    if name != "accuracy" or "coverage" not in scores:
        return []
    remarks = [f"coverage {number(scores['coverage'].value)} %"]
    if "accuracy_answerable" in scores:
        remarks.insert(0, f"answerable {number(scores['accuracy_answerable'].value)}")
    return remarks


def _unmatched(run: ReportedRun) -> list[UnmatchedScore]:
    result = run.result
    return [
        UnmatchedScore(
            run=run.number,
            result=result.name,
            protocol=result.protocol,
            name=name,
            value=number(score.value),
            unit=" %" if score.unit == "%" else "",
            interval=interval(score),
        )
        for name, score in result.scores.items()
    ]


def _run(run: ReportedRun, folder: Path) -> RunView:
    result = run.result
    missing = result.missing[:_SHOWN_MISSING]
    return RunView(
        number=run.number,
        name=result.name,
        zero_shot=result.zero_shot,
        model_size=result.model_size or "–",
        parameters=count(result.parameters),
        pretraining=result.pretraining or "not stated",
        frames=run.frames_label,
        image_size=result.image_size,
        max_text_len=result.max_text_len,
        checkpoint=result.checkpoint,
        sha256=result.checkpoint_sha256[:16],
        items=f"{result.items:,}",
        missing=len(result.missing),
        missing_items="; ".join(f"{one.item} ({one.media}): {one.reason}" for one in missing),
        date=result.date,
        code=result.code[:12],
        file=os.path.relpath(run.path, folder),
    )
