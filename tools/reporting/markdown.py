"""The results report as one Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from allinone.tools.reporting.tables import FilledTables
from allinone.tools.reporting.view import (
    RULES,
    TITLE,
    CellView,
    OurValue,
    RowView,
    RunView,
    TableView,
    UnmatchedScore,
    report_view,
)


def markdown(filled: FilledTables, folder: Path) -> str:
    """The tables of the HTML page for a file in `folder`.

    A cell is the paper's number, an arrow, and ours with the difference and the number of the run.
    """
    view = report_view(filled, folder)
    lines = [f"# {TITLE}", "", f"{view.summary}.", "", RULES, ""]
    for table in view.tables:
        lines += _table(table)
    if view.unmatched:
        lines += _unmatched(view.unmatched)
    if view.runs:
        lines += _runs(view.runs)
    lines += [f"{mark}: {meaning}  " for mark, meaning in view.marks]
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
    return [model, row.pretraining, row.frames + size, *map(_cell, row.cells)]


def _cell(cell: CellView) -> str:
    ours = _ours(cell.ours) if cell.ours else "not run" if cell.not_run else ""
    mark = f" {cell.mark}" if cell.mark else ""
    also = f" ({', '.join(cell.also)})" if cell.also else ""
    return " → ".join(filter(None, (f"{cell.paper}{mark}{also}", ours)))


def _ours(ours: OurValue) -> str:
    remarks = f" ({', '.join(ours.remarks)})" if ours.remarks else ""
    others = "".join(f", {other.run}: {other.value}" for other in ours.runs[1:])
    return f"**{ours.value}** {ours.change}{remarks} (run {ours.run}{others})"


def _unmatched(scores: Sequence[UnmatchedScore]) -> list[str]:
    rows = [["result", "score", "value", "95 % interval", "run"]]
    rows += [[one.result, one.name, one.value, one.interval, str(one.run)] for one in scores]
    return ["## Results without a table in the paper", "", *_lines(rows), ""]


def _runs(runs: Sequence[RunView]) -> list[str]:
    rows = [["run", "result", "checkpoint", "sha256", "items", "date", "file"]]
    for run in runs:
        missing = f", {run.missing} not shown" if run.missing else ""
        file = f"[{run.file}]({quote(run.file)})"
        items = f"{run.items}{missing}"
        rows.append([str(run.number), run.name, run.checkpoint, run.sha256, items, run.date, file])
    return ["## Runs", "", *_lines(rows), ""]


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table from texts that may hold its own characters."""
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in rows
    ]
    return [lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]
