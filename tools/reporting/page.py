"""The report as HTML and as Markdown."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from allinone.common.formatting import count
from allinone.common.html import BAD, GRID, LINK, MUTED, RIGHT, page, table_row
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
    OwnRow,
    Report,
    ReportedRun,
    difference,
)

TITLE = "All-in-one: our results beside the paper's"
MARKS = {"verified": "✓", "readme": "R", "talk": "", "unsure": "?", "illegible": ""}
RULES = (
    "A difference is ours minus the paper's. Its interval is the 95 % bootstrap interval of our"
    " number over the test items (whole videos where several items share one); the paper's number"
    " is taken as exact, and the spread between training runs is not in it."
)
STYLE = f"""
body {{ max-width: 1500px }} .wide {{ overflow-x: auto }} h2 {{ margin-bottom: .4rem }} .note {{ color: {MUTED}; font-size: .82rem; max-width: 70rem; margin: .3rem 0 }}
.results {{ font-size: .86rem; font-variant-numeric: tabular-nums; white-space: nowrap }} .results th {{ font-weight: 600; vertical-align: bottom; background: #f6f8fa }}
.results th.group {{ text-align: center; border-left: 1px solid {GRID} }} .results td {{ vertical-align: top; line-height: 1.35 }}
.results td:nth-child(-n+3), .results th.head {{ text-align: left }} .results td:nth-child(2) {{ white-space: normal; min-width: 8rem; max-width: 13rem }}
.results td:first-child {{ font-weight: 600 }} .results td:first-child .also {{ white-space: normal }} .results tr.own td {{ background: #fbfcfd }} .results tr.own td:first-child {{ font-weight: 500; white-space: normal; max-width: 14rem }}
.paper {{ color: {MUTED} }} .paper sup {{ font-size: .65em; margin-left: 1px }} .also {{ display: block; color: {MUTED}; font-size: .7rem; white-space: nowrap }}
.ours {{ display: block; font-weight: 650 }} .ours a {{ color: inherit; text-decoration: none; border-bottom: 1px dotted {MUTED} }} .ours sub {{ font-weight: 400; color: {MUTED} }}
.diff {{ display: block; font-size: .74rem }} .within {{ color: {RIGHT} }} .better {{ color: {LINK} }} .worse {{ color: {BAD} }} .unknown {{ color: {MUTED} }}
.missing {{ display: block; color: #afb8c1; font-size: .74rem }} .tiles {{ display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0 }}
.tile {{ border: 1px solid {GRID}; border-radius: 6px; padding: .45rem .9rem }} .tile b {{ display: block; font-size: 1.35rem; line-height: 1.25 }}
.tile span {{ color: {MUTED}; font-size: .78rem }} .runs {{ font-size: .8rem }} .runs td {{ text-align: left; vertical-align: top }} .runs th {{ text-align: left }}
.runs td.path {{ overflow-wrap: anywhere; max-width: 22rem }} .runs code {{ font-size: .9em }} .warn {{ color: {BAD} }} tr:target td {{ background: #fff8c5 }}
details {{ font-size: .8rem; color: {MUTED} }} a {{ color: {LINK} }}
@media print {{ body {{ max-width: none; font-size: 11px }} .wide {{ overflow: visible }} }}
"""


def number(value: float, *, sign: bool = False) -> str:
    """One decimal, with a real minus sign."""
    return f"{value:{'+' if sign else ''}.1f}".replace("-", "−")


def difference_text(found: Difference) -> str:
    """+0.4 [−1.5, +2.3]"""
    if found.low is None or found.high is None:
        return number(found.value, sign=True)
    return (
        f"{number(found.value, sign=True)} [{number(found.low, sign=True)},"
        f" {number(found.high, sign=True)}]"
    )


def extra(score_name: str, run: ReportedRun) -> str:
    """What belongs beside a headline accuracy: the accuracy over answerable questions and the
    coverage."""
    scores = run.result.scores
    if score_name != "accuracy" or "coverage" not in scores:
        return ""
    answerable = (
        f"answerable {number(scores['accuracy_answerable'].value)}, "
        if "accuracy_answerable" in scores
        else ""
    )
    return f"{answerable}coverage {number(scores['coverage'].value)} %"


def _paper_text(cell: PaperCell) -> str:
    if cell.certainty == "illegible":
        return "illegible"
    return "–" if cell.value is None else number(cell.value)


def _also(cell: PaperCell) -> str:
    return ", ".join(f"{source} {number(value)}" for source, value in cell.also.items())


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return ""
    return f"[{number(score.low)}, {number(score.high)}]"


# HTML


def html_page(report: Report, folder: Path) -> str:
    """The whole page, for a file in `folder`: links to results files are relative to it."""
    parts = [
        f"<h1>{html.escape(TITLE)}</h1>",
        f'<p class="note">{html.escape(RULES)}</p>',
        _tiles(report),
        *(_table(filled) for filled in report.tables),
        _rest(report),
        _runs(report, folder),
        _sources(),
    ]
    return page(TITLE, "\n".join(part for part in parts if part), STYLE)


def _tiles(report: Report) -> str:
    counts = report.counts()
    tiles = [
        (len(report.runs), "results read"),
        (f"{counts['run']} of {counts['targets']}", "numbers of the paper with a result"),
    ]
    tiles += [(counts[name], text) for name, text in VERDICTS.items() if counts[name]]
    if gone := sum(len(run.result.missing) for run in report.runs):
        tiles.append((gone, "items could not be shown, counted as wrong"))
    return (
        "<div"
        f' class="tiles">{"".join(f"<div class=tile><b>{value}</b><span>{text}</span></div>" for value, text in tiles)}</div>'
    )


def _table(filled: FilledTable) -> str:
    table = filled.table
    rows = [_paper_row(filled, i, row) for i, row in enumerate(table.rows)] + [
        _own_row(filled, own) for own in filled.own
    ]
    rows = rows or [f'<tr><td colspan="{len(table.columns) + 3}" class="missing">not run</td></tr>']
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    remarks = [f"{html.escape(text)}" for text in _remarks(table)]
    below = f'<p class="note">{"<br>".join(remarks)}</p>' if remarks else ""
    return (
        f'<h2 id="{table.id}">{html.escape(table.title)}</h2>{note}<div class="wide"><table'
        ' class="results">'
        f"{_head(table.columns)}{''.join(rows)}</table></div>{below}{_several(filled)}"
    )


def _remarks(table: Table) -> list[str]:
    """Notes of rows and of doubtful numbers, as footnotes."""
    rows = [f"* {row.model}, {row.look} frames: {row.note}" for row in table.rows if row.note]
    cells = [cell for cell in table.cells.values() if cell.note and cell.certainty != "illegible"]
    return rows + [
        f"{cell.row.model}, {cell.row.look} frames, {_name(cell.column)}: {cell.note}"
        for cell in cells
    ]


def _head(columns: Sequence[Column]) -> str:
    fixed = ("model", "pre-training", "frames")
    if not any(column.group for column in columns):
        heads = "".join(f'<th class="head">{name}</th>' for name in fixed)
        return f"<tr>{heads}{''.join(f'<th>{html.escape(column.head)}</th>' for column in columns)}</tr>"
    heads = "".join(f'<th class="head" rowspan="2">{name}</th>' for name in fixed)
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    above = "".join(
        f'<th class="group" colspan="{width}">{html.escape(name)}</th>' for name, width in groups
    )
    return f"<tr>{heads}{above}</tr>{table_row([html.escape(column.head) for column in columns], 'th')}"


def _paper_row(filled: FilledTable, i: int, row: PaperRow) -> str:
    title = f' title="{html.escape(row.note)}"' if row.note else ""
    mark = "<sup>*</sup>" if row.note else ""
    size = (
        f"{row.look}<span class=also>{row.image_size} px</span>"
        if row.image_size != 224
        else row.look
    )
    heads = [f"<span{title}>{html.escape(row.model)}{mark}</span>", html.escape(row.data), size]
    cells = [
        _cell(filled.table.cells[i, j], filled.runs.get((i, j), []))
        for j in range(len(filled.table.columns))
    ]
    return table_row([*heads, *cells])


def _cell(cell: PaperCell, runs: Sequence[ReportedRun]) -> str:
    title = html.escape(
        "; ".join(part for part in (certainties().get(cell.certainty, ""), cell.note) if part)
    )
    mark = f"<sup>{MARKS[cell.certainty]}</sup>" if MARKS.get(cell.certainty) else ""
    shown = f'<span class="paper" title="{title}">{_paper_text(cell)}{mark}</span>'
    if cell.also:
        shown += "".join(
            f'<span class="also">{html.escape(f"{source} {number(value)}")}</span>'
            for source, value in cell.also.items()
        )
    if not runs:
        return shown + ('<span class="missing">not run</span>' if cell.certainty else "")
    return shown + _ours(runs, cell.column, cell.target)


def _ours(runs: Sequence[ReportedRun], column: Column, target: float | None) -> str:
    newest = runs[0]
    score = newest.result.scores[column.metric]
    more = f"<sub>+{len(runs) - 1}</sub>" if len(runs) > 1 else ""
    shown = (
        f'<span class="ours"><a href="#run-{newest.number}" title="run'
        f' {newest.number}">{number(score.value)}</a>{more}</span>'
    )
    if target is None:
        shown += f'<span class="diff unknown">{_interval(score)}</span>'
    else:
        found = difference(score, target, column)
        shown += f'<span class="diff {found.verdict}">{difference_text(found)}</span>'
    if aside := extra(column.metric, newest):
        shown += "".join(
            f'<span class="also">{html.escape(part)}</span>' for part in aside.split(", ")
        )
    return shown


def _own_row(filled: FilledTable, own: OwnRow) -> str:
    result = own.run.result
    name = (
        "ours:"
        f" {result.model_size or count(result.parameters)}{', zero-shot' if result.zero_shot else ''}"
    )
    size = f"{own.run.look}<span class=also>{result.image_size} px</span>"
    heads = [
        f'{html.escape(name)}<span class="also">{html.escape(own.reason)}</span>',
        html.escape(result.pretraining or "not stated"),
        size,
    ]
    columns = filled.table.columns
    cells = [
        _ours(own.runs[j], column, None) if j in own.runs else ""
        for j, column in enumerate(columns)
    ]
    return table_row([*heads, *cells], css="own")


def _several(filled: FilledTable) -> str:
    lines = []
    for (i, j), runs in sorted(filled.runs.items()):
        if len(runs) > 1:
            row, column = filled.table.rows[i], filled.table.columns[j]
            lines.append(
                f"<li>{html.escape(f'{row.model}, {row.look} frames, {_name(column)}')}:"
                f" {_all(runs, column)}</li>"
            )
    for own in filled.own:
        for j, runs in sorted(own.runs.items()):
            if len(runs) > 1:
                column = filled.table.columns[j]
                lines.append(f"<li>ours, {html.escape(_name(column))}: {_all(runs, column)}</li>")
    if not lines:
        return ""
    return (
        "<details><summary>cells with several runs: the newest is shown, these are"
        f" all</summary><ul>{''.join(lines)}</ul></details>"
    )


def _all(runs: Sequence[ReportedRun], column: Column) -> str:
    return ", ".join(
        f'<a href="#run-{run.number}">{number(run.result.scores[column.metric].value)}</a>'
        f" ({html.escape(run.result.date[:10])})"
        for run in runs
    )


def _name(column: Column) -> str:
    return f"{column.group} {column.head}".strip()


def _rest(report: Report) -> str:
    if not report.rest:
        return ""
    blocks = [table_row(["result", "protocol", "score", "95 % interval"], "th")]
    for run in report.rest:
        result = run.result
        for place, (name, score) in enumerate(result.scores.items()):
            head = (
                f'<a href="#run-{run.number}">{html.escape(result.name)}</a>' if place == 0 else ""
            )
            unit = " %" if score.unit == "%" else ""
            value = f"{html.escape(name)} <b>{number(score.value)}{unit}</b>"
            blocks.append(
                table_row(
                    [
                        head,
                        html.escape(result.protocol) if place == 0 else "",
                        value,
                        _interval(score),
                    ]
                )
            )
    return (
        '<h2 id="other">Results without a table in the paper</h2><div class="wide"><table'
        f' class="runs">{"".join(blocks)}</table></div>'
    )


def _runs(report: Report, folder: Path) -> str:
    if not report.runs:
        return ""
    heads = (
        "run",
        "result",
        "model",
        "pre-training",
        "look",
        "checkpoint",
        "items",
        "date",
        "code",
        "file",
    )
    rows = [table_row(heads, "th")]
    for run in report.runs:
        result = run.result
        size = f"{result.model_size or '–'}<br>{count(result.parameters)}"
        look = f"{run.look} frames<br>{result.image_size} px, {result.max_text_len} tokens"
        path = os.path.relpath(run.path, folder)
        cells = [
            str(run.number),
            html.escape(result.name) + ("<br>zero-shot" if result.zero_shot else ""),
            size,
            html.escape(result.pretraining or "not stated"),
            look,
            f"{html.escape(result.checkpoint)}<br><code>{html.escape(result.checkpoint_sha256[:16])}</code>",
            _items(run),
            html.escape(result.date.replace("T", " ")[:16]),
            f"<code>{html.escape(result.code[:12])}</code>",
            f'<a href="{quote(path)}">{html.escape(path)}</a>',
        ]
        tds = "".join(
            f'<td class="path">{cell}</td>' if place in (5, 9) else f"<td>{cell}</td>"
            for place, cell in enumerate(cells)
        )
        rows.append(f'<tr id="run-{run.number}">{tds}</tr>')
    return (
        '<h2 id="runs">Runs</h2><div class="wide"><table'
        f' class="runs">{"".join(rows)}</table></div>'
    )


def _items(run: ReportedRun) -> str:
    result = run.result
    if not result.missing:
        return f"{result.items:,}"
    named = "; ".join(f"{gone.item} ({gone.media}): {gone.reason}" for gone in result.missing[:20])
    return (
        f'{result.items:,}<br><span class="warn"'
        f' title="{html.escape(named)}">{len(result.missing):,} not shown</span>'
    )


def _sources() -> str:
    marks = " · ".join(
        f"{MARKS.get(name) or 'no mark'}: {html.escape(meaning)}"
        for name, meaning in certainties().items()
        if name != "illegible"
    )
    spent = table_row(["training and evaluation, as the authors state them", ""], "th") + "".join(
        table_row([html.escape(line["what"]), html.escape(line["value"])]) for line in budget()
    )
    return (
        f'<h2 id="sources">The paper\'s numbers</h2><p class="note">{marks}. Illegible numbers are'
        " not compared with. EVAL paper and EVAL log: what the original repository's EVAL.md"
        " prints as the paper's number and as that of its log. Views × frames: 3×3 is three clips"
        f' of three frames per video, averaged.</p><table class="runs">{spent}</table>'
    )


# Markdown


def markdown(report: Report, folder: Path) -> str:
    """The same tables; a cell is the paper's number, an arrow, ours with the difference, and the
    number of the run."""
    lines = [f"# {TITLE}", "", report.summary() + ".", "", RULES, ""]
    for filled in report.tables:
        table = filled.table
        lines += [f"## {table.title}", "", *([table.note, ""] if table.note else [])]
        lines += _md_rows(
            ["model", "pre-training", "frames", *(_name(column) for column in table.columns)],
            head=True,
        )
        for i, row in enumerate(table.rows):
            cells = [
                _md_cell(table.cells[i, j], filled.runs.get((i, j), []))
                for j in range(len(table.columns))
            ]
            size = f", {row.image_size} px" if row.image_size != 224 else ""
            lines += _md_rows([row.model, row.data, row.look + size, *cells])
        for own in filled.own:
            result = own.run.result
            heads = [
                (
                    "ours:"
                    f" {result.model_size or count(result.parameters)}{', zero-shot' if result.zero_shot else ''}"
                    f" ({own.reason})"
                ),
                result.pretraining or "not stated",
                f"{own.run.look}, {result.image_size} px",
            ]
            cells = [
                _md_ours(own.runs[j], column, None) if j in own.runs else ""
                for j, column in enumerate(table.columns)
            ]
            lines += _md_rows([*heads, *cells])
        if not table.rows and not filled.own:
            lines += _md_rows(["not run", *[""] * (len(table.columns) + 2)])
        lines += ["", *(f"{remark}  " for remark in _remarks(table)), ""]
    if report.rest:
        lines += [
            "## Results without a table in the paper",
            "",
            *_md_rows(["result", "score", "value", "95 % interval", "run"], head=True),
        ]
        for run in report.rest:
            for name, score in run.result.scores.items():
                lines += _md_rows(
                    [run.result.name, name, number(score.value), _interval(score), str(run.number)]
                )
        lines.append("")
    if report.runs:
        lines += [
            "## Runs",
            "",
            *_md_rows(
                ["run", "result", "checkpoint", "sha256", "items", "date", "file"], head=True
            ),
        ]
        for run in report.runs:
            result = run.result
            gone = f", {len(result.missing)} not shown" if result.missing else ""
            path = os.path.relpath(run.path, folder)
            file = f"[{path}]({quote(path)})"
            facts = [
                result.checkpoint,
                result.checkpoint_sha256[:16],
                f"{result.items:,}{gone}",
                result.date,
                file,
            ]
            lines += _md_rows([str(run.number), result.name, *facts])
        lines.append("")
    lines += [
        f"{MARKS.get(name) or 'no mark'}: {meaning}  "
        for name, meaning in certainties().items()
        if name != "illegible"
    ]
    return "\n".join(lines) + "\n"


def _md_rows(cells: Sequence[str], head: bool = False) -> list[str]:
    line = "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    return [line, "|" + " --- |" * len(cells)] if head else [line]


def _md_cell(cell: PaperCell, runs: Sequence[ReportedRun]) -> str:
    mark = f" {MARKS[cell.certainty]}" if MARKS.get(cell.certainty) else ""
    also = f" ({_also(cell)})" if cell.also else ""
    shown = f"{_paper_text(cell)}{mark}{also}"
    if not runs:
        return f"{shown} → not run" if cell.certainty else shown
    return f"{shown} → {_md_ours(runs, cell.column, cell.target)}"


def _md_ours(runs: Sequence[ReportedRun], column: Column, target: float | None) -> str:
    score = runs[0].result.scores[column.metric]
    beside = (
        _interval(score) if target is None else difference_text(difference(score, target, column))
    )
    aside = extra(column.metric, runs[0])
    others = "".join(
        f", {run.number}: {number(run.result.scores[column.metric].value)}" for run in runs[1:]
    )
    return (
        f"**{number(score.value)}** {beside}{f' ({aside})' if aside else ''} (run"
        f" {runs[0].number}{others})"
    )
