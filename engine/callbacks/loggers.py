"""Curves and pictures for TensorBoard, Weights & Biases and MLflow; none of them stops a run."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from allinone.common.write_guard import WriteGuard
from allinone.engine.callbacks.base import Callback, Due, Interval
from allinone.engine.distributed.signals import RunInterrupted
from allinone.engine.monitoring.loggers import LoggerState, MlflowLogger, RunLogger, WandbLogger
from allinone.engine.monitoring.scalars import evaluation_scalars, record_scalars
from allinone.engine.monitoring.tensorboard import TensorBoardWriter
from allinone.engine.run_spec import Pictures

if TYPE_CHECKING:
    from allinone.engine.config import LoggerName
    from allinone.engine.trainer import Trainer

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Calls in a row that may fail before a logger is given up until the next launch: a server that
does not answer holds up training for as long as each call waits for it."""


class LoggerCallback(Callback):
    """What all loggers get: records, evaluations and sample pictures, from rank 0.

    Args:
        pictures: Draws a training batch: the first one of this process, and one per evaluation.
        guard: Catches what the logger raises.
    """

    def __init__(self, pictures: Pictures | None, guard: WriteGuard) -> None:
        self._pictures = pictures
        self._guard = guard

    def _send(self, trainer: Trainer, kind: str, step: int, action: Callable[[Any], None]) -> None:
        """Let the logger write on rank 0, under the guard.

        Args:
            trainer: The run.
            kind: metrics, evaluation or pictures.
            step: To which it belongs.
            action: Gets the logger.
        """
        raise NotImplementedError

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        record = interval.record
        step, values = record["step"], record_scalars(record)
        self._send(trainer, "metrics", step, lambda logger: logger.scalars(step, values))

    def on_step_end(self, trainer: Trainer, due: Due) -> None:
        wanted = due.evaluation or (due.first and not due.stop)
        # the batch of this step: fetching another one would take it away from training
        if trainer.is_rank0 and self._pictures is not None and wanted:
            step, drawn = trainer.state.step, self._pictures(trainer.accumulator.last_batch)
            self._send(trainer, "pictures", step, lambda logger: logger.pictures(step, drawn))

    def on_evaluation(self, trainer: Trainer, results: Mapping[str, float], seconds: float) -> None:
        step, values = trainer.state.step, evaluation_scalars(results)
        self._send(trainer, "evaluation", step, lambda logger: logger.scalars(step, values))


class TensorBoardCallback(LoggerCallback):
    """Rank 0 writes OUT/tensorboard.

    Args:
        pictures: See LoggerCallback.
    """

    def __init__(self, pictures: Pictures | None) -> None:
        super().__init__(pictures, WriteGuard("TensorBoard's file"))
        self._writer: TensorBoardWriter | None = None

    def _send(self, trainer: Trainer, kind: str, step: int, action: Callable[[Any], None]) -> None:
        """See LoggerCallback. After a failure the next call begins a new file: TensorBoard's writer
        does not recover."""
        if not trainer.is_rank0:
            return
        failures = self._guard.failures
        with self._guard():
            if self._writer is None:
                # the step that is written now is not hidden, unless the run starts
                start = trainer.state.step - bool(failures)
                folder = trainer.spec.out / "tensorboard"
                self._writer = TensorBoardWriter(folder, start, trainer.records.mfu_convention)
            action(self._writer)
        if self._guard.failures > failures:
            self._writer = None

    def on_start(self, trainer: Trainer) -> None:
        spec, step = trainer.spec, trainer.state.step
        if trainer.is_rank0:
            facts = trainer.describe()
            self._send(
                trainer,
                "options",
                step,
                lambda writer: writer.describe(spec.run_config, facts, step),
            )

    def on_event(self, trainer: Trainer, event: str, facts: Mapping[str, Any]) -> None:
        if event == "anomaly_report":
            step = facts["of_step"]
            lines = [f"step {step}: {facts['reason']}", facts["verdict"]]
            self._send(
                trainer, "notes", step, lambda writer: writer.notes(step, "run/anomalies", lines)
            )

    def on_close(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._writer is not None:
            with self._guard():
                self._writer.close()


class TrackerCallback(LoggerCallback):
    """Rank 0 sends to a service that keeps runs by id: Weights & Biases or MLflow.

    Args:
        name: Of the logger.
        pictures: See LoggerCallback.
    """

    def __init__(self, name: LoggerName, pictures: Pictures | None) -> None:
        # their libraries raise errors of their own, of requests, of sqlalchemy, ...
        super().__init__(pictures, WriteGuard(f"the log to {name}", catches=Exception))
        self._name = name
        self._logger: RunLogger | None = None
        self._state: LoggerState | None = None
        self._in_a_row = 0

    def _open(self, trainer: Trainer) -> RunLogger:
        out, options = trainer.spec.out, trainer.spec.run_config
        if self._state is None:
            self._state = LoggerState(out, self._name)
        if self._name == "wandb":
            self._state.set_id(self._state.id or uuid.uuid4().hex[:12])
            assert self._state.id is not None
            return WandbLogger(out, self._state.id, options)
        logger = MlflowLogger(out, self._state.id, options)
        self._state.set_id(logger.id)
        return logger

    def _try(self, trainer: Trainer, action: Callable[[RunLogger], None]) -> None:
        if not trainer.is_rank0 or self._in_a_row >= MAX_FAILURES:
            return
        failures = self._guard.failures
        with self._guard():
            if self._logger is None:
                self._logger = self._open(trainer)
            action(self._logger)
        self._in_a_row = self._in_a_row + 1 if self._guard.failures > failures else 0
        if self._in_a_row == MAX_FAILURES:
            log.warning(
                "%s failed %d times in a row: nothing more is logged there until the next launch",
                self._name,
                MAX_FAILURES,
            )

    def on_start(self, trainer: Trainer) -> None:
        self._try(trainer, lambda logger: None)

    def _send(self, trainer: Trainer, kind: str, step: int, action: Callable[[Any], None]) -> None:
        def send(logger: RunLogger) -> None:
            if self._state is not None and self._state.claim(kind, step):
                action(logger)

        self._try(trainer, send)

    def on_close(self, trainer: Trainer, error: BaseException | None) -> None:
        # a run that a signal stopped is continued later
        failed = error is not None and not isinstance(error, RunInterrupted)
        if self._logger is not None:
            with self._guard():
                self._logger.close(failed)
