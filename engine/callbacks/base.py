"""Hooks for everything in a run except the training step itself.

The trainer calls its callbacks in the order of `Trainer.callbacks`. Order of the hooks:

    on_start                    after the checkpoint was loaded, before the first step
    repeat for every step:
        on_interval             on logging steps, and before every checkpoint
        on_step_end             after every step; `due` says what must be done
            on_checkpoint       after a checkpoint was published
            on_evaluation       after an evaluation
        on_event                whenever a callback emits an event
    on_end                      after the last step; not after a signal or an error
    on_close                    always, even if on_start was never called

All hooks but on_close are called on every rank at the same point and may contain collectives, with
one rule: a collective must not depend on anything that differs between ranks. on_close is called
while other ranks may already be gone. The stopwatch is paused during on_interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allinone.engine.monitoring.accumulator import IntervalMetrics

if TYPE_CHECKING:
    from allinone.engine.trainer import Trainer


@dataclass(frozen=True)
class Due:
    """What must be done after a step; equal on all ranks."""

    checkpoint: bool
    evaluation: bool
    """Never together with `stop`: an evaluation may take longer than the time before the kill."""
    first: bool
    """The first step of this process."""
    stop: str | None
    """Name of the signal after which the run ends."""


@dataclass(frozen=True)
class Interval:
    """One logging interval."""

    metrics: IntervalMetrics
    """Sums over ranks, equal on all ranks."""
    record: Mapping[str, Any]
    """The record for history.jsonl; times are those of this rank."""
    elapsed_s: float
    """Training time of the interval on this rank, seconds."""


class Callback:
    """Base of all callbacks; every hook does nothing."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        """After metrics were summed over ranks."""

    def on_step_end(self, trainer: Trainer, due: Due) -> None:
        """After an optimizer step."""

    def on_checkpoint(self, trainer: Trainer, folder: Path, seconds: float) -> None:
        """After a checkpoint was published.

        Args:
            trainer: The run.
            folder: The checkpoint.
            seconds: How long writing took.
        """

    def on_evaluation(self, trainer: Trainer, results: Mapping[str, float], seconds: float) -> None:
        """After an evaluation.

        Args:
            trainer: The run.
            results: Name → value, finite values only.
            seconds: How long it took.
        """

    def on_event(self, trainer: Trainer, event: str, facts: Mapping[str, Any]) -> None:
        """After something noteworthy.

        Args:
            trainer: The run.
            event: damaged, straggler or anomaly_report.
            facts: Its keys in history.jsonl, see engine/monitoring/history.py.
        """

    def on_end(self, trainer: Trainer) -> None:
        """After the last step."""

    def on_close(self, trainer: Trainer, error: BaseException | None) -> None:
        """At the end of the run, with the exception that ended it; not collective."""
