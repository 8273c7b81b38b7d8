"""Evaluates, and selects the best weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from allinone.engine import resume
from allinone.engine.callbacks.base import Callback, Due
from allinone.engine.checkpoint.best import BestCheckpoint, Selection
from allinone.engine.config import TrainConfig, every
from allinone.engine.run_spec import Evaluate
from allinone.engine.state import TrainState

if TYPE_CHECKING:
    from allinone.engine.trainer import Trainer

log = logging.getLogger(__name__)

OF_AVERAGE = "ema/"
"""Prefix of the scores of the averaged weights."""


class EvaluationCallback(Callback):
    """Runs the evaluations of a run and keeps the weights of the best one in OUT/best.

    Args:
        evaluate: The evaluation; None for a run without one.
        select: How the best weights are chosen; None keeps none.
        out: The run's folder.
    """

    def __init__(self, evaluate: Evaluate | None, select: Selection | None, out: Path) -> None:
        self._evaluate = evaluate
        self._best = BestCheckpoint(select, out)

    @property
    def stop_early(self) -> bool:
        """Whether the last evaluations were no better than an earlier one."""
        return self._best.exhausted

    def is_scheduled(self, config: TrainConfig, step: int) -> bool:
        """Whether there is an evaluation at this step."""
        return self._evaluate is not None and every(step, config.eval_every, config.steps)

    def is_missing(self, config: TrainConfig, step: int) -> bool:
        """Whether the evaluation at this step was interrupted, or has not started."""
        return resume.evaluation_due(config, step, self._best, self._evaluate is not None)

    def is_done(self, config: TrainConfig, step: int) -> bool:
        """Whether a run whose last finished step this is has nothing left to do."""
        return resume.is_done(config, step, self._best, self._evaluate is not None)

    def initialize(self, state: TrainState) -> None:
        """Put the initial state of the selection into the state of a new run."""
        state.best = self._best.state()

    def resume(self, state: TrainState) -> None:
        """Restore the selection from the state of a checkpoint; collective."""
        self._best.restore(state.best, state.step)
        state.best = self._best.state()

    def before_first_step(self, trainer: Trainer) -> None:
        """Evaluate a new run if --eval-at-start asks for it, and a run that was killed between a
        checkpoint and the evaluation of its step."""
        if trainer.state.step == 0:
            if trainer.config.eval_at_start and self._evaluate is not None:
                self._measure(trainer, starting=True)
        elif self.is_missing(trainer.config, trainer.state.step):
            self._run(trainer, starting=True)

    def on_step_end(self, trainer: Trainer, due: Due) -> None:
        if due.evaluation:
            self._run(trainer)

    def _measure(self, trainer: Trainer, starting: bool) -> Mapping[str, float]:
        """Evaluate and report; the selection is left as it is."""
        trainer.begin_activity(f"the evaluation at step {trainer.state.step}", starting)
        with trainer.stopwatch.paused():
            start = time.perf_counter()
            results = self._compute_all(trainer)
            seconds = time.perf_counter() - start
            # JSON has no NaN; the selection gets it too, because to it a missing metric is an error
            # and a NaN only an evaluation that is not better
            finite = {name: value for name, value in results.items() if math.isfinite(value)}
            for callback in trainer.callbacks:
                callback.on_evaluation(trainer, finite, seconds)
        return results

    def _run(self, trainer: Trainer, starting: bool = False) -> None:
        state, out = trainer.state, trainer.spec.out
        results = self._measure(trainer, starting)
        with trainer.stopwatch.paused():
            improved = self._best.update(state.step, results)
            state.best = self._best.state()
            # collective: every rank gets the same results and therefore enters it
            if improved:
                trainer.engine.save_best(out, trainer.checkpoint_facts())
                log.info("%s", self._best)
            if trainer.is_rank0:
                # last: a run that is killed before this line repeats the evaluation
                self._best.save()
            if self.stop_early:
                log.info("%s", self._best.stop_reason())
        trainer.result = replace(trainer.result, evaluation=results)

    def _compute_all(self, trainer: Trainer) -> Mapping[str, float]:
        """The scores of the weights and, with --ema, those of their average."""
        model, device, average = trainer.spec.model, trainer.device, trainer.engine.average
        results = self._compute(model, device)
        if average is None:
            return results
        with average.applied():
            averaged = self._compute(model, device)
        return {**results, **{f"{OF_AVERAGE}{name}": value for name, value in averaged.items()}}

    def _compute(self, model: torch.nn.Module, device: torch.device) -> Mapping[str, float]:
        assert self._evaluate is not None
        model.eval()
        # training continues with the random numbers that it would have without the evaluation
        with torch.random.fork_rng([] if device.type == "cpu" else [device]), torch.no_grad():
            results = self._evaluate(model, device)
        model.train()
        return results
