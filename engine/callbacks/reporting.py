"""What a run tells people and tools: history.jsonl, the progress line, the plan."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from allinone.common.formatting import duration, finite, size
from allinone.common.tables import plain_table
from allinone.common.write_guard import WriteGuard
from allinone.engine.callbacks.base import Callback, Interval
from allinone.engine.callbacks.evaluation import OF_AVERAGE
from allinone.engine.distributed.signals import RunInterrupted
from allinone.engine.monitoring.history import HISTORY, HistoryWriter, read_history

if TYPE_CHECKING:
    from allinone.engine.trainer import Trainer

log = logging.getLogger(__name__)

MAX_COLUMNS = 6
"""Evaluations in the table at the end of a run."""


class HistoryCallback(Callback):
    """Rank 0 writes OUT/history.jsonl."""

    def __init__(self) -> None:
        self._history: HistoryWriter | None = None
        self._guard = WriteGuard(HISTORY)

    def _write(self, trainer: Trainer, line: Mapping[str, Any]) -> None:
        if self._history is not None:
            with self._guard():
                self._history.write({"step": trainer.state.step, **line})

    def on_start(self, trainer: Trainer) -> None:
        if not trainer.is_rank0:
            return
        config, records = trainer.config, trainer.records
        # removes the records of steps after the checkpoint, which are about to be written again
        self._history = HistoryWriter(trainer.spec.out, trainer.state.step)
        self._guard = WriteGuard(self._history.path)
        line = {
            "event": "start",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "ranks": trainer.rank_info.world,
            "hosts": sorted(set(records.hosts)),
            "launcher": trainer.rank_info.launcher,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "mfu_convention": records.mfu_convention,
        }
        names = ("steps", "global_batch", "log_every", "hang_timeout_s")
        self._write(trainer, line | {name: getattr(config, name) for name in names})

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        self._write(trainer, interval.record)

    def on_checkpoint(self, trainer: Trainer, folder: Path, seconds: float) -> None:
        if self._history is None:
            return
        facts: dict[str, Any] = {"path": str(folder), "bytes": None, "seconds": seconds}
        with self._guard():
            files = (path for path in folder.rglob("*") if path.is_file())
            facts["bytes"] = sum(path.stat().st_size for path in files)
        self._write(trainer, {"event": "checkpoint", **facts})

    def on_evaluation(self, trainer: Trainer, results: Mapping[str, float], seconds: float) -> None:
        self._write(trainer, {"evaluation": dict(results), "seconds": seconds})

    def on_event(self, trainer: Trainer, event: str, facts: Mapping[str, Any]) -> None:
        self._write(trainer, {"event": event, **facts})

    def on_close(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._history is None:
            return
        kind = (
            "finish" if error is None else "stop" if isinstance(error, RunInterrupted) else "error"
        )
        reason = {} if error is None else {"reason": f"{type(error).__name__}: {error}"}
        self._write(trainer, {"event": kind, **reason})
        self._history.close()


class ProgressCallback(Callback):
    """Logs a line per logging interval and evaluation, and a table of the evaluations at the end;
    with --json, rank 0 prints JSON lines.

    Args:
        chance: Score of an evaluation → its expectation for a model that guesses.
    """

    def __init__(self, chance: Mapping[str, float]) -> None:
        self._chance = chance

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        record = interval.record
        for skipped in record["skipped"]:
            cause = "loss not finite; clips"
            if skipped["loss_finite"]:
                cause = "gradient not finite though the losses are; clips of the step"
            clips = ", ".join(skipped["clips"])
            log.warning("step %d skipped, its %s: %s", skipped["step"], cause, clips)
        # a line on every rank: only rank 0 has a terminal, each has its file in OUT/logs
        if trainer.config.json:
            self._print_json(trainer, record)
        else:
            log.info("%s", progress_line(record, trainer.config.steps))

    def on_evaluation(self, trainer: Trainer, results: Mapping[str, float], seconds: float) -> None:
        step = trainer.state.step
        if trainer.config.json:
            self._print_json(trainer, {"step": step, "evaluation": results})
        else:
            shown = evaluation_line(results, self._chance)
            log.info("evaluation at step %d (%s): %s", step, duration(seconds), shown)

    def on_end(self, trainer: Trainer) -> None:
        if trainer.is_rank0 and not trainer.config.json:
            # it also has the evaluations before a restart
            rows = read_history(trainer.spec.out / HISTORY)
            if table := evaluation_table(rows, self._chance):
                log.info("evaluations:\n%s", table)

    @staticmethod
    def _print_json(trainer: Trainer, value: Mapping[str, Any]) -> None:
        if trainer.is_rank0:  # the product of --json, not a message
            print(json.dumps(finite(value)), flush=True)


def evaluation_line(results: Mapping[str, float], chance: Mapping[str, float]) -> str:
    """The scores of an evaluation in one line, set by set, with chance in brackets.

    Args:
        results: Score → value; the part before the first "/" names the set. Nothing missing, and a
            recall among so few candidates that it is always 100 %, are left out.
        chance: Score → its expectation for a model that guesses.
    """
    sets: dict[str, list[str]] = {}
    for name, value in results.items():
        known = chance.get(name.removeprefix(OF_AVERAGE))
        if (name.endswith("/missing") and not value) or known == 100.0:
            continue
        group, _, score = name.rpartition("/") if name.count("/") < 2 else name.partition("/")
        guessed = "" if known is None else f" ({known:.1f})"
        sets.setdefault(group, []).append(f"{score} {value:.1f}{guessed}")
    scores = (f"{group}: {', '.join(found)}".removeprefix(": ") for group, found in sets.items())
    return "; ".join(scores) + (" (in brackets: chance)" if chance else "")


def evaluation_table(history: Sequence[Mapping[str, Any]], chance: Mapping[str, float]) -> str:
    """`evaluation_rows` for a terminal; empty without an evaluation."""
    rows = evaluation_rows(history, chance)
    return indent(plain_table(rows), "  ") if rows else ""


def evaluation_rows(
    history: Sequence[Mapping[str, Any]],
    chance: Mapping[str, float],
    columns: int = MAX_COLUMNS,
) -> list[tuple[str, ...]]:
    """The scores of a run's evaluations next to chance; empty without an evaluation.

    Args:
        history: Rows of history.jsonl.
        chance: Score → its expectation for a model that guesses.
        columns: Show at most this many evaluations, evenly spaced, the last one included.

    Returns:
        The titles, then one row per score.
    """
    found = {row["step"]: row["evaluation"] for row in history if row.get("evaluation")}
    if not found:
        return []
    steps = sorted(found)
    # evenly spaced, the last one included
    last = len(steps) - 1
    number = min(len(steps), columns)
    shown = sorted(
        {steps[round(k * last / max(1, number - 1))] for k in range(number)} | {steps[-1]}
    )
    names = [
        name
        for name in found[steps[-1]]
        if not name.endswith("/missing") or any(row.get(name) for row in found.values())
    ]

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.1f}"

    titles = ("score", *(f"step {step:,}" for step in shown), "chance")
    rows = [
        (
            name,
            *(cell(found[step].get(name)) for step in shown),
            cell(chance.get(name.removeprefix(OF_AVERAGE))),
        )
        for name in names
    ]
    return [titles, *rows]


def progress_line(record: Mapping[str, Any], steps: int) -> str:
    """A record of the history in one line.

    Args:
        record: See monitoring/history.py.
        steps: Total number of steps.
    """
    losses = "  ".join(
        f"{name.removesuffix('_loss')} {value:.3f}"
        for name, value in record["metrics"].items()
        if name.endswith("_loss")
    )
    parts = [
        f"step {record['step']}/{steps}",
        losses,
        f"lr {record['lr']:.1e}",
        f"norm > {record['clip_norm']:g}: {100 * record['clip_rate']:.0f} %",
        f"{record['samples_per_s']:.1f} clips/s",
        *([f"MFU {100 * record['mfu']:.0f} %"] if math.isfinite(record["mfu"]) else []),
        f"data wait {100 * record['data_wait']:.1f} %",
        size(record["memory_bytes"]),
        f"ETA {duration(record['eta_s'])}",
    ]
    if record["skipped_steps"]:
        parts.append(f"skipped {record['skipped_steps']}")
    if record["bad_clips"]:
        parts.append(f"bad clips {record['bad_clips']}")
    return "  ".join(parts)


class PlanCallback(Callback):
    """Compares the plan of the run with what was measured: OUT/plan.json and the log."""

    def __init__(self) -> None:
        self._guard = WriteGuard("plan.json")

    def on_start(self, trainer: Trainer) -> None:
        self._write(trainer)

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        metrics = interval.metrics
        trainer.engine.estimate.see(len(metrics.steps), interval.elapsed_s, metrics.memory_bytes)

    def on_end(self, trainer: Trainer) -> None:
        self._write(trainer)
        log.info("%s", trainer.engine.estimate.summary())

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_rank0:
            with self._guard():
                trainer.engine.estimate.write(trainer.spec.out)
