"""Stragglers, anomalies, and too many skipped steps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from allinone.common.errors import AllInOneError
from allinone.common.exit_codes import ExitCode
from allinone.engine.anomaly.report import AnomalyReporter, report_folder
from allinone.engine.callbacks.base import Callback, Due, Interval
from allinone.engine.monitoring.straggler import Slowest, StragglerAlarm

if TYPE_CHECKING:
    from allinone.engine.trainer import Trainer

log = logging.getLogger(__name__)

LOOK_EVERY = 50
"""Steps after which skipped steps are counted however large --log-every is. Reading the flags waits
for the device once."""


class TooManySkippedError(AllInOneError, RuntimeError):
    """More steps in a row than --max-skipped had a non-finite gradient."""

    exit_code = ExitCode.NON_FINITE


class StragglerCallback(Callback):
    """Rank 0 warns of a slow rank."""

    def __init__(self, ratio: float) -> None:
        self._alarm = StragglerAlarm(ratio)

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        record = interval.record
        found = None if record["slowest"] is None else Slowest(**record["slowest"])
        # only rank 0, because step times differ slightly between ranks
        if trainer.is_rank0 and (text := self._alarm.check(found, record["step_s"])):
            trainer.emit("straggler", text=text)
            log.warning("%s", text)


class AnomalyCallback(Callback):
    """Reports and replays steps whose loss or gradient is not finite or unusually large."""

    def __init__(self) -> None:
        self._reporter: AnomalyReporter | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._reporter = AnomalyReporter(
            trainer.spec.out,
            trainer.config,
            module=trainer.engine.module,
            ds=trainer.ds_config,
            batches_from=trainer.batches_from,
            # recreating the batches opens the data again
            begin_activity=lambda activity: trainer.begin_activity(activity, starting=True),
        )

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        assert self._reporter is not None
        for report in self._reporter.check(interval.metrics, trainer.accumulator.records):
            step, reason, verdict = report["step"], report["reason"], report["replay"]["verdict"]
            path = report_folder(trainer.spec.out, step)
            trainer.emit(
                "anomaly_report", of_step=step, path=str(path), reason=reason, verdict=verdict
            )
            log.warning("step %d: %s; %s (report: %s)", step, reason, verdict, path)


class SkippedStepsCallback(Callback):
    """Ends a run in which too many steps in a row were skipped."""

    def __init__(self) -> None:
        self._next_look = 0
        """Step after which the flags are read, if no logging step comes before."""

    def on_start(self, trainer: Trainer) -> None:
        self._plan(trainer.state.step, trainer.state.skipped_in_a_row, trainer.config.max_skipped)

    def on_step_end(self, trainer: Trainer, due: Due) -> None:
        step, limit = trainer.state.step, trainer.config.max_skipped
        if step < self._next_look or not len(trainer.accumulator):
            return
        in_a_row = trainer.state.skipped_in_a_row
        for skip in trainer.accumulator.skips():
            in_a_row = in_a_row + 1 if skip else 0
        self._plan(step, in_a_row, limit)
        if in_a_row > limit:
            trainer.log_interval()  # records the steps, then ends the run in `on_interval`

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        skipped, limit = trainer.state.skipped_in_a_row, trainer.config.max_skipped
        self._plan(trainer.state.step, skipped, limit)
        # equal on all ranks, so that all raise here and none waits for another. The flags stay on
        # the device until a logging step or LOOK_EVERY steps after it
        if skipped > limit:
            raise TooManySkippedError(
                f"{skipped} steps in a row had a non-finite gradient, more than --max-skipped"
                f" {limit}; lower --lr, or check the clips listed above"
            )

    def _plan(self, step: int, in_a_row: int, limit: int) -> None:
        """Look again where the cap may be exceeded, at most LOOK_EVERY steps later."""
        left = limit + 1 - in_a_row if in_a_row else LOOK_EVERY
        self._next_look = step + max(1, min(LOOK_EVERY, left))
