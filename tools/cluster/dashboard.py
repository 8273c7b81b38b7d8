"""Draws the state of a run (allinone.tools.cluster.run_state) with rich."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from allinone.common.formatting import count, duration, printable_values, size

BARS = "▁▂▃▄▅▆▇█"
STYLES = {
    "running": "green",
    "finished": "green",
    "starting": "yellow",
    "stopped": "yellow",
    "stalled": "yellow",
    "failed": "red",
    "dead": "red",
}
MIN_WIDTH, MAX_WIDTH = 60, 120
"""Columns of the dashboard. A narrower terminal shows its left part."""
_LABEL = 11
"""Columns of the labels."""
_VALUE = 11
"""Columns of a loss in front of its sparkline."""
Row = tuple[str, Text]
"""Label, content."""


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Draw values as block characters.

    Args:
        values: None and non-finite values become gaps.
        width: Number of characters; each shows the mean of its part of the values.

    Returns:
        At most `width` characters, scaled from the smallest to the largest mean.
    """
    if not values or width < 1:
        return ""
    cells: list[float | None] = []
    width = min(width, len(values))
    for k in range(width):
        part = values[k * len(values) // width : (k + 1) * len(values) // width]
        known = [value for value in part if value is not None and math.isfinite(value)]
        cells.append(sum(known) / len(known) if known else None)
    known = [cell for cell in cells if cell is not None]
    if not known:
        return " " * width
    low = min(known)
    span = max(known) - low
    scale = (len(BARS) - 1) / span if span else 0.0
    return "".join(" " if cell is None else BARS[round((cell - low) * scale)] for cell in cells)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share, ".1f", " %")


class Dashboard:
    """A rich renderable of one state."""

    def __init__(self, facts: dict[str, Any], width: int) -> None:
        # rich passes control characters on
        self._facts = printable_values(facts)
        self.width = min(max(width, MIN_WIDTH), MAX_WIDTH)
        self._style = STYLES[facts["status"]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """All sections below one another, with blank lines between them if the height allows it."""
        sections = [
            list(part) for part in (self._progress(), self._losses(), self._rates(), self._faults())
        ]
        head = [self._title(), *self._bar()]
        lines = len(head) + sum(len(rows) + 1 for rows in sections if rows) - 1
        # Live crops at the bottom, where the faults are
        gap = 0 if options.height is not None and lines > options.height else 1
        yield from head
        for number, rows in enumerate(sections):
            if rows:
                yield Padding(_table(rows, self.width), (gap if number else 0, 0, 0, 0))

    def _title(self) -> Table:
        """The run on the left, its status on the right."""
        kind = self._facts["status"]
        shown = kind.upper() if kind in ("dead", "failed") else kind
        title = Table.grid(expand=True)
        title.width = self.width
        title.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        title.add_column(justify="right", no_wrap=True)
        title.add_row(Text(self._facts["run"], "bold"), Text(shown, f"bold {self._style}"))
        return title

    def _bar(self) -> Iterator[RenderableType]:
        """A progress bar, once the number of steps is known."""
        steps, step = self._facts["steps"], self._facts["step"]
        if steps:
            bar = Table.grid(expand=True, padding=(0, 1))
            bar.width = self.width
            bar.add_column(ratio=1)
            bar.add_column(justify="right", no_wrap=True)
            style = self._style
            progress = ProgressBar(
                total=steps, completed=step, complete_style=style, finished_style=style
            )
            bar.add_row(progress, f"{100 * step / steps:5.1f} %")
            yield bar

    def _progress(self) -> Iterator[Row]:
        facts = self._facts
        if facts["why"]:
            yield "", Text(facts["why"], self._style)
        step = f"step {facts['step']:,}" + (f" of {facts['steps']:,}" if facts["steps"] else "")
        eta = f" · ETA {duration(facts['eta_s'])}" if facts["eta_s"] is not None else ""
        age = "" if facts["age_s"] is None else f" · last record {duration(facts['age_s'])} ago"
        yield "progress", Text(step + eta + age)
        if facts["ranks"]:
            hosts = facts["hosts"] or []
            where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts"
            yield "ranks", Text(f"{facts['ranks']} on {where}, started by {facts['launcher']}")
        if facts["slurm"]:
            yield "slurm", Text(facts["slurm"])

    def _losses(self) -> Iterator[Row]:
        losses = self._facts["losses"]
        # names with a slash are losses of one data source
        shown = [name for name in losses if "/" not in name] or list(losses)[:4]
        for name in shown:
            known = [value for value in losses[name] if value is not None]
            last = _number(known[-1] if known else None, "9.4f")
            line = sparkline(losses[name], self.width - 2 * _LABEL - _VALUE)
            yield f"{name.removesuffix('_loss')} loss", Text(f"{last}  {line}", "cyan")
        if self._facts["evaluation"]:
            for number, line in enumerate(self._evaluation(self._facts["evaluation"])):
                yield "" if number else "evaluation", Text(line)

    def _evaluation(self, evaluation: dict[str, Any]) -> list[str]:
        """Metrics grouped by their prefix (text_to_video R@1 21.5 R@5 65.9), several per line."""
        groups: dict[str, list[str]] = {}
        sets = {name.rpartition("/")[0] for name in evaluation if name != "step"}
        for name, value in evaluation.items():
            shown = name if len(sets) > 1 else name.rpartition("/")[2]
            group, _, metric = shown.rpartition("_")
            if group:  # neither the step nor the number of missing items
                groups.setdefault(group, []).append(f"{metric} {value:.1f}")
        lines = [f"step {evaluation['step']}:"]
        for group, metrics in groups.items():
            text = f"{group} {' '.join(metrics)}"
            separator = " " if lines[-1].endswith(":") else " · "
            if len(lines[-1] + separator + text) <= self.width - _LABEL:
                lines[-1] += separator + text
            else:
                lines.append(text)
        return lines

    def _planned(self, name: str, form: str, scale: float = 1.0) -> str:
        planned = self._facts["planned"]
        return f" (planned {planned[name] * scale:{form}})" if name in planned else ""

    def _rates(self) -> Iterator[Row]:
        facts = self._facts
        yield (
            "speed",
            Text(
                f"{_number(facts['samples_per_s'], ',.1f')} clips/s"
                f"{self._planned('samples_per_s', ',.0f')} · "
                f"{_number(facts['step_s'], '.3g')} s/step · "
                f"MFU {_percent(facts['mfu'])}{self._planned('mfu', '.0f', 100)}"
            ),
        )
        memory = "–" if facts["memory_bytes"] is None else size(facts["memory_bytes"])
        if "memory_bytes" in facts["planned"]:
            memory += f" (planned {size(facts['planned']['memory_bytes'])})"
        wait = _percent(facts["data_wait"])
        yield "waiting", Text(f"{wait} of the time for data · memory {memory}")
        slow = facts["slowest"]
        if slow:
            text = (
                f"rank {slow['rank']} on {slow['host']}: {slow['own_s']:.3g} s of its own work,"
                f" {slow['ratio']:.2f} x the median rank"
            )
            yield "slowest", Text(text, "yellow" if slow["ratio"] > 1.5 else "")
        norm = _number(facts["grad_norm"], ".3g")
        yield "optimizer", Text(f"lr {_number(facts['lr'], '.2e')} · gradient norm {norm}")
        seen = "–" if facts["samples"] is None else count(facts["samples"])
        skipped = facts["skipped_steps"]
        text = f"{seen} seen, {facts['bad_clips']} replaced · {skipped} steps skipped"
        yield "clips", Text(text, "yellow" if skipped else "")

    def _faults(self) -> Iterator[Row]:
        saved, faults = self._facts["checkpoints"], self._facts["faults"]
        steps = [f"{one['step']:,}{'' if one['whole'] else ' (unfinished)'}" for one in saved[:5]]
        newest = saved[0] if saved else {}
        text = f"steps {', '.join(steps)}" if steps else "no checkpoint yet"
        if newest.get("bytes"):
            text += f" · newest {size(newest['bytes'])}"
        if newest.get("time"):
            text += f", {duration(time.time() - newest['time'])} ago"
        yield "saved", Text(text)
        restarts = max(0, faults["starts"] - 1)
        text, end = str(restarts), faults["last_end"]
        if end:
            reason = str(end["reason"]).partition(": saved")[0]
            text += f" · last end at step {end['step']}: {reason}"
        yield "restarts", Text(text, "yellow" if restarts else "")
        for one in faults["anomalies"][-3:]:
            text = f"step {one['step']}: {one['reason']}; {one['verdict']}"
            yield "anomaly", Text(text, "yellow")
        for problem in faults["damaged"][-2:]:
            yield "damaged", Text(str(problem), "red")
        for problem in faults["stragglers"][-1:]:
            yield "straggler", Text(str(problem), "yellow")


def _table(rows: Iterator[Row] | Sequence[Row], width: int) -> Table:
    """Labels and contents; long contents end in an ellipsis."""
    table = Table.grid(expand=True)
    table.width = width
    table.add_column(width=_LABEL, no_wrap=True, style="dim")
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for label, content in rows:
        content.plain = " ".join(content.plain.splitlines())  # a reason can have several lines
        table.add_row(label[: _LABEL - 1], content)
    return table


def render(facts: dict[str, Any], width: int, colour: bool) -> str:
    """Draw a state as text.

    Args:
        facts: The state.
        width: Columns of the terminal; at least MIN_WIDTH and at most MAX_WIDTH are used.
        colour: Include ANSI colour codes.

    Returns:
        Lines without trailing spaces.
    """
    dashboard = Dashboard(facts, width)
    console = Console(
        width=dashboard.width,
        color_system="standard" if colour else None,
        force_terminal=colour,
    )
    # rich pads table rows with spaces to the full width
    with console.capture() as capture:
        console.print(dashboard)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
