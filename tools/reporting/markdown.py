"""The results report as one Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from allinone.common.html import markdown_text as text
from allinone.tools.reporting.elements import (
    CellView,
    OurValue,
    RowView,
    RunView,
    ScoreView,
    TableView,
    UnofficialView,
)
from allinone.tools.reporting.tables import FilledTables
from allinone.tools.reporting.view import (
    RULES,
    SOURCES,
    TITLE,
    UNOFFICIAL,
    UNOFFICIAL_NOTE,
    report_view,
)


def markdown(filled: FilledTables, folder: Path, *, ours_only: bool = False) -> str:
    """The tables of the HTML page as Markdown.

    A cell is the paper's number, an arrow, and ours with the difference and the number of the run.

    Args:
        filled: Tables and results.
        folder: Links to results files are relative to it.
        ours_only: Leave out tables and rows of the paper without a result of ours.
    """
    view = report_view(filled, folder, ours_only=ours_only)
    lines = [f"# {TITLE}", "", f"{view.summary}.", "", RULES, ""]
    lines += [*(f"- {mark}: {meaning}" for mark, meaning in view.marks), "", SOURCES, ""]
    if view.runs:
        lines += _runs(view.runs)
    if view.unofficial:
        lines += _unofficial(view.unofficial)
    if view.unmatched:
        lines += _unmatched(view.unmatched)
    for table in view.tables:
        lines += _table(table)
    return "\n".join(lines) + "\n"


def _table(table: TableView) -> list[str]:
    rows = [["model", "pre-training", "frames", *table.names], *map(_row, table.rows)]
    if not table.rows:
        rows.append(["not run", *[""] * (len(table.names) + 2)])
    note = [table.note, ""] if table.note else []
    remarks = [f"{remark}  " for remark in table.remarks]
    return [f"## {table.title}", "", *note, *_lines(rows), "", *remarks, ""]


def _row(row: RowView) -> list[str]:
    model = f"{row.model} ({row.reason})" if row.own else row.model
    size = f", {row.image_size}" if row.image_size else ""
    return [text(model), text(row.pretraining), row.frames + size, *map(_cell, row.cells)]


def _cell(cell: CellView) -> str:
    ours = _ours(cell.ours) if cell.ours else "not run" if cell.not_run else ""
    mark = f" {cell.mark}" if cell.mark else ""
    also = f" ({', '.join(cell.also)})" if cell.also else ""
    return " → ".join(filter(None, (f"{cell.paper}{mark}{also}", ours)))


def _ours(ours: OurValue) -> str:
    remarks = f" ({', '.join(ours.remarks)})" if ours.remarks else ""
    others = "".join(f", {other.run}: {other.value}" for other in ours.runs[1:])
    return f"**{ours.value}** {ours.change}{remarks} (run {ours.run}{others})"


def _unofficial(results: Sequence[UnofficialView]) -> list[str]:
    rows = [["result", "items", "official", "scores", "reason", "run"]]
    for one in results:
        scores = ", ".join(
            f"{text(score.name)} {score.value}{score.unit} {score.interval}".rstrip()
            for score in one.scores
        )
        known = [text(one.result), one.items, one.official]
        rows.append([*known, scores, text(one.reason), str(one.run)])
    return [f"## {UNOFFICIAL}", "", UNOFFICIAL_NOTE, "", *_lines(rows), ""]


def _unmatched(scores: Sequence[ScoreView]) -> list[str]:
    rows = [["result", "score", "value", "95 % interval", "run"]]
    rows += [
        [text(one.result), text(one.name), one.value, one.interval, str(one.run)] for one in scores
    ]
    return ["## Results without a table in the paper", "", *_lines(rows), ""]


def _runs(runs: Sequence[RunView]) -> list[str]:
    rows = [["run", "result", "score", "checkpoint", "sha256", "items", "date", "file"]]
    for run in runs:
        missing = f", {run.missing} not shown" if run.missing else ""
        file = f"[{text(run.file)}]({quote(run.file)})"
        unofficial = ", not the official items" if run.unofficial else ""
        items = f"{run.items}{missing}{unofficial}"
        one = run.headline
        score = f"{text(one.name)} {one.value}{one.unit}" if one else ""
        origin = map(text, (run.checkpoint, run.sha256))
        rows.append([str(run.number), text(run.name), score, *origin, items, text(run.date), file])
    return ["## Our runs", "", *_lines(rows), ""]


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]
