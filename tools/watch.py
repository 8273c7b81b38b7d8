#!/usr/bin/env python3
"""A running training as text, from the files of its folder: works over ssh, beside the job or long
after it.

    python tools/watch.py RUN [--interval S] [--once] [--json]

Ctrl-C leaves. Exit code of --once and --json: 0 while it runs or after it finished, 1 if it has
stopped, failed, died or stalled.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import run_command
from allinone.common.errors import InputError
from allinone.common.formatting import count, duration, size
from allinone.tools.cluster.run_state import History, state

BARS = "▁▂▃▄▅▆▇█"
COLOURS = {
    "running": "32",
    "finished": "32",
    "starting": "33",
    "stopped": "33",
    "stalled": "33",
    "failed": "31",
    "dead": "31",
}
LOSS_WIDTH, MIN_WIDTH, MAX_WIDTH = 22, 60, 120
_HOME, _CLEAR_BELOW, _CLEAR_LINE, _HIDE, _SHOW = (
    "\x1b[H",
    "\x1b[J",
    "\x1b[K",
    "\x1b[?25l",
    "\x1b[?25h",
)


def sparkline(values: Sequence[float | None], width: int) -> str:
    """One character per `width`-th of the values, their means between the smallest and the largest;
    a gap where none is known."""
    if not values or width < 1:
        return ""
    cells: list[float | None] = []
    width = min(width, len(values))
    for k in range(width):
        part = [
            v
            for v in values[k * len(values) // width : (k + 1) * len(values) // width]
            if v is not None and math.isfinite(v)
        ]
        cells.append(sum(part) / len(part) if part else None)
    known = [cell for cell in cells if cell is not None]
    if not known:
        return " " * width
    low, span = min(known), max(known) - min(known)
    return "".join(
        " " if c is None else BARS[round((c - low) / span * (len(BARS) - 1)) if span else 0]
        for c in cells
    )


def bar(share: float, width: int) -> str:
    """A bar of `width` characters, filled to `share`."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _cut(text: str, width: int) -> str:
    text = " ".join(text.splitlines())
    return text if len(text) <= width else text[: width - 1] + "…"


class Screen:
    """The dashboard as lines of at most `width` characters; colours are ANSI codes, which take no
    room."""

    def __init__(self, width: int, colour: bool) -> None:
        self.width, self._colour = min(max(width, MIN_WIDTH), MAX_WIDTH), colour
        self.lines: list[str] = []

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text else text

    def add(self, label: str, text: str, code: str = "") -> None:
        """A line with a label of 11 characters."""
        self.lines.append(
            f"{self.paint(f'{label:<11}', '2')}{self.paint(_cut(text, self.width - 11), code)}"
        )

    def draw(self, facts: dict[str, Any]) -> list[str]:
        """All lines."""
        self.lines = []
        self._head(facts)
        self._curves(facts)
        self._rates(facts)
        self._faults(facts)
        return self.lines

    def _head(self, facts: dict[str, Any]) -> None:
        kind = facts["status"]
        name = _cut(facts["run"], self.width - len(kind) - 2)
        gap = " " * (self.width - len(name) - len(kind))
        self.lines.append(
            self.paint(name, "1")
            + gap
            + self.paint(kind.upper() if kind in ("dead", "failed") else kind, f"1;{COLOURS[kind]}")
        )
        if facts["why"]:
            self.add("", facts["why"], COLOURS[kind])
        steps, step = facts["steps"], facts["step"]
        if steps:
            share = step / steps
            tail = f" {100 * share:5.1f} %"
            self.lines.append(self.paint(bar(share, self.width - len(tail)), COLOURS[kind]) + tail)
        place = f"step {step:,}" + (f" of {steps:,}" if steps else "")
        eta = f" · ETA {duration(facts['eta_s'])}" if facts["eta_s"] is not None else ""
        age = "" if facts["age_s"] is None else f" · last sign {duration(facts['age_s'])} ago"
        self.add("progress", place + eta + age)
        if facts["ranks"]:
            hosts = facts["hosts"] or []
            where = hosts[0] if len(hosts) == 1 else f"{len(hosts)} hosts"
            self.add("ranks", f"{facts['ranks']} on {where}, started by {facts['launcher']}")
        if facts["slurm"]:
            self.add("slurm", facts["slurm"])
        self.lines.append("")

    def _curves(self, facts: dict[str, Any]) -> None:
        shown = [name for name in facts["losses"] if "/" not in name] or list(facts["losses"])[:4]
        for name in shown:
            values = facts["losses"][name]
            known = [value for value in values if value is not None]
            head = f"{_number(known[-1] if known else None, '9.4f')}  "
            self.add(
                _cut(name.removesuffix("_loss") + " loss", 10),
                head + sparkline(values, self.width - LOSS_WIDTH - 11),
                "36",
            )
        evaluation = facts["evaluation"]
        if evaluation:
            self._evaluation(evaluation)
        if shown or evaluation:
            self.lines.append("")

    def _evaluation(self, evaluation: dict[str, Any]) -> None:
        """Metrics of one kind together: text_to_video R@1 21.5 R@5 65.9; as many kinds on a line as
        fit."""
        kinds: dict[str, list[str]] = {}
        sets = {name.rpartition("/")[0] for name in evaluation if name != "step"}
        for name, value in evaluation.items():
            kind, _, metric = (name if len(sets) > 1 else name.rpartition("/")[2]).rpartition("_")
            if kind:  # not the step, and not the count of missing items
                kinds.setdefault(kind, []).append(f"{metric} {value:.1f}")
        lines = [f"step {evaluation['step']}:"]
        for kind, metrics in kinds.items():
            text = f"{kind} {' '.join(metrics)}"
            longer = lines[-1] + (" " if lines[-1].endswith(":") else " · ") + text
            if len(longer) <= self.width - 11:
                lines[-1] = longer
            else:
                lines.append(text)
        for number, line in enumerate(lines):
            self.add("" if number else "evaluation", line)

    def _rates(self, facts: dict[str, Any]) -> None:
        planned = facts["planned"]

        def beside(name: str, form: str, scale: float = 1.0) -> str:
            return f" (planned {planned[name] * scale:{form}})" if name in planned else ""

        mfu = None if facts["mfu"] is None else 100 * facts["mfu"]
        wait = None if facts["data_wait"] is None else 100 * facts["data_wait"]
        speed = (
            f"{_number(facts['samples_per_s'], ',.1f')} clips/s{beside('samples_per_s', ',.0f')} · "
        )
        speed += (
            f"{_number(facts['step_s'], '.3g')} s/step · MFU"
            f" {_number(mfu, '.1f', ' %')}{beside('mfu', '.0f', 100)}"
        )
        self.add("speed", speed)
        memory = "–" if facts["memory_bytes"] is None else size(facts["memory_bytes"])
        expected = (
            f" (planned {size(planned['memory_bytes'])})" if "memory_bytes" in planned else ""
        )
        self.add(
            "waiting",
            f"{_number(wait, '.1f', ' %')} of the time for data · memory {memory}{expected}",
        )
        slow = facts["slowest"]
        if slow:
            text = (
                f"rank {slow['rank']} on {slow['host']}: {slow['own_s']:.3g} s own work,"
                f" {slow['ratio']:.2f} x the others' median"
            )
            self.add("slowest", text, "33" if slow["ratio"] > 1.5 else "")
        self.add(
            "optimizer",
            f"lr {_number(facts['lr'], '.2e')} · gradient norm"
            f" {_number(facts['grad_norm'], '.3g')}",
        )
        seen = "–" if facts["samples"] is None else count(facts["samples"])
        self.add(
            "clips",
            f"{seen} seen, {facts['bad_clips']} replaced · {facts['skipped_steps']} steps skipped",
            "33" if facts["skipped_steps"] else "",
        )
        self.lines.append("")

    def _faults(self, facts: dict[str, Any]) -> None:
        saved, faults = facts["checkpoints"], facts["faults"]
        texts = [f"{one['step']:,}{'' if one['whole'] else ' (unfinished)'}" for one in saved[:5]]
        newest = saved[0] if saved else None
        about = f" · newest {size(newest['bytes'])}" if newest and newest["bytes"] else ""
        about += (
            f", {duration(time.time() - newest['time'])} ago" if newest and newest["time"] else ""
        )
        self.add("saved", f"steps {', '.join(texts)}{about}" if texts else "no checkpoint yet")
        restarts = max(0, faults["starts"] - 1)
        end = faults["last_end"]
        self.add(
            "restarts",
            f"{restarts}"
            + (
                f" · last end at step {end['step']}: {str(end['reason']).partition(': saved')[0]}"
                if end
                else ""
            ),
            "33" if restarts else "",
        )
        for one in faults["dossiers"][-3:]:
            self.add("dossier", f"step {one['step']}: {one['reason']}; {one['verdict']}", "33")
        for text in faults["damaged"][-2:]:
            self.add("damaged", str(text), "31")
        for text in faults["stragglers"][-1:]:
            self.add("straggler", str(text), "33")


def _once(args: argparse.Namespace, history: History) -> int:
    facts = state(args.run, history, time.time())
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print(
            "\n".join(
                Screen(shutil.get_terminal_size((80, 24)).columns, sys.stdout.isatty()).draw(facts)
            )
        )
    return int(facts["status"] not in ("running", "finished", "starting"))


def _follow(args: argparse.Namespace, history: History) -> None:
    """Redraw in place until Ctrl-C. Lines beyond the terminal's height are cut: scrolling would
    break the redrawing."""
    sys.stdout.write(_HIDE + _HOME + _CLEAR_BELOW)
    try:
        while True:
            columns, rows = shutil.get_terminal_size((80, 24))
            lines = Screen(columns, True).draw(state(args.run, history, time.time()))
            if len(lines) >= rows:
                lines = [line for line in lines if line][: rows - 1]
            sys.stdout.write(
                _HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in lines) + _CLEAR_BELOW
            )
            sys.stdout.flush()
            time.sleep(args.interval)
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_SHOW)
        sys.stdout.flush()


def _run(args: argparse.Namespace) -> int:
    if not (args.run / "run.json").is_file():
        inside = (
            sorted(path.parent.name for path in args.run.glob("*/run.json"))
            if args.run.is_dir()
            else []
        )
        hint = f"; inside it are the runs {', '.join(inside)}" if inside else ""
        raise InputError(
            f"{args.run} holds no run (no run.json); give the folder that training got as"
            f" --out{hint}"
        )
    if not 0.1 <= args.interval < math.inf:
        raise InputError(f"--interval is in seconds and at least 0.1, got {args.interval:g}")
    history = History(args.run / "history.jsonl")
    if args.once or args.json or not sys.stdout.isatty():
        return _once(args, history)
    _follow(args, history)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of the run (the training's --out)")
    parser.add_argument(
        "--interval",
        type=float,
        default=5.0,
        help="seconds between two looks (default: %(default)s)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print once and leave; also where the output is no terminal",
    )
    parser.add_argument(
        "--json", action="store_true", help="print everything once as one JSON object"
    )
    args = parser.parse_args(argv)
    return run_command(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
