"""The content of the results report as text, in the order in which HTML and Markdown show it."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
from allinone.tools.reporting.elements import (
    CellView,
    OurValue,
    ReportView,
    RowView,
    RunValue,
    RunView,
    ScoreView,
    TableView,
    UnofficialView,
)
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
    "Illegible numbers are not compared. README, EVAL paper, EVAL log: README.md of the original"
    " repository, and what its EVAL.md gives as the paper's number and as that of its log. Views ×"
    " frames: 3×3 is three clips of three frames per video, averaged."
)
UNOFFICIAL = "Not scored on the official items"
UNOFFICIAL_NOTE = (
    "A cell of the paper's tables is filled only by a result on all items of the official split."
    " These results are on other items, or do not say on how many."
)
MARKS = {
    "gain": ("✓", "read off the slides and confirmed by the gain that they print"),
    "notes": ("R", "stated, or stated as well, in README or EVAL.md of the original repository"),
    "unsure": ("?", "reading, cell or source is doubtful"),
    "sure": ("", "read off the slides, no second source"),
}
"""`PaperCell.confirmation` → mark and meaning. illegible has no mark: the cell says so."""
USUAL_IMAGE_SIZE = 224
_SHOWN_MISSING = 20


def report_view(filled: FilledTables, folder: Path, *, ours_only: bool = False) -> ReportView:
    """The content of a report.

    Args:
        filled: Tables and results.
        folder: Folder of the report; paths of results files are relative to it.
        ours_only: Leave out tables and rows of the paper without a result of ours.
    """
    tables = [_table(table, ours_only=ours_only) for table in filled.tables]
    return ReportView(
        summary=filled.summary(),
        tiles=_tiles(filled),
        tables=[table for table in tables if table.rows or not ours_only],
        unofficial=[_unofficial(run) for run in filled.unofficial],
        unmatched=[score for run in filled.unmatched for score in _scores(run)],
        runs=[_run(run, folder, unofficial=run in filled.unofficial) for run in filled.runs],
        marks=[(mark or "no mark", meaning) for mark, meaning in MARKS.values()],
        budget=[
            (line["what"], line["value"], line["source"]) for line in budget() if not ours_only
        ],
    )


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
    if filled.unofficial:
        tiles.append((str(len(filled.unofficial)), "results not on the official items"))
    if missing := sum(len(run.result.missing) for run in filled.runs):
        tiles.append((str(missing), "items could not be shown, counted as wrong"))
    return tiles


def _table(filled: FilledTable, *, ours_only: bool) -> TableView:
    table = filled.table
    shown = [
        i
        for i in range(len(table.rows))
        if not ours_only or any((i, j) in filled.runs for j in range(len(table.columns)))
    ]
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
            *(_own_row(table, own) for own in filled.own),
            *(_paper_row(filled, i, table.rows[i]) for i in shown),
        ],
        remarks=_remarks(table, shown),
    )


def _column_name(column: Column) -> str:
    return f"{column.group} {column.head}".strip()


def _remarks(table: Table, shown: Sequence[int]) -> list[str]:
    """Footnotes of the rows of the paper with these indices, and of their numbers."""
    rows = [
        f"* {row.model}, {row.look} frames: {row.note}"
        for row in (table.rows[i] for i in shown)
        if row.note
    ]
    cells = [cell for (i, _), cell in table.cells.items() if cell.note and i in shown]
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
    mark, meaning = MARKS.get(cell.confirmation, ("", ""))
    known = (cell.source, meaning or certainties().get(cell.certainty, ""), cell.note)
    return CellView(
        paper=paper,
        mark=mark,
        meaning="; ".join(filter(None, known)),
        also=[
            f"{source} {number(value)}"
            for source, value in cell.also.items()
            if value != cell.value  # the mark says that it agrees
        ],
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
    these are. Next to every score: items that count as wrong because they could not be shown."""
    scores = run.result.scores
    remarks = []
    if name == "accuracy" and "coverage" in scores:
        if "accuracy_answerable" in scores:
            remarks.append(f"answerable {number(scores['accuracy_answerable'].value)}")
        remarks.append(f"coverage {number(scores['coverage'].value)} %")
    if missing := len(run.result.missing):
        remarks.append(f"{missing:,} not shown, counted as wrong")
    return remarks


def _unofficial(run: ReportedRun) -> UnofficialView:
    result = run.result
    known = result.official_items
    return UnofficialView(
        run=run.number,
        result=result.name,
        model=result.model_size or count(result.parameters),
        items=f"{result.items:,}",
        official="–" if known is None else f"{known:,}",
        reason=result.unofficial_reason,
        scores=_scores(run),
    )


def _scores(run: ReportedRun) -> list[ScoreView]:
    result = run.result
    return [
        ScoreView(
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


def _run(run: ReportedRun, folder: Path, *, unofficial: bool) -> RunView:
    result = run.result
    missing = result.missing[:_SHOWN_MISSING]
    headline = _scores(run)[:1]
    return RunView(
        number=run.number,
        name=result.name,
        headline=headline[0] if headline else None,
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
        unofficial=unofficial,
        missing=len(result.missing),
        missing_items="; ".join(f"{one.item} ({one.media}): {one.reason}" for one in missing),
        date=result.date,
        code=result.code[:12],
        file=os.path.relpath(run.path, folder),
    )
