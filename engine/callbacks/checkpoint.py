"""Writes checkpoints."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from allinone.engine.callbacks.base import Callback, Due
from allinone.engine.checkpoint import manager

if TYPE_CHECKING:
    from allinone.engine.trainer import Trainer


class CheckpointCallback(Callback):
    """Saves a checkpoint when one is due, which it always is at the last step."""

    def on_step_end(self, trainer: Trainer, due: Due) -> None:
        if due.checkpoint:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        state, config = trainer.state, trainer.config
        trainer.begin_activity(f"the checkpoint of step {state.step}")
        # a process that was suspended may have lost the folder to another one
        trainer.require_lock()
        # the totals in a checkpoint must include every step before it
        trainer.log_interval()
        with trainer.stopwatch.paused():
            start = time.perf_counter()
            facts = trainer.checkpoint_facts() | state.totals()
            folder = trainer.engine.save(trainer.spec.out, facts)
            # from here on rank 0 alone continues the totals, as it does in a resumed run
            trainer.continue_totals()
            # after the new one was published, so that there is a complete checkpoint at any moment;
            # on one rank, because a second rename of the same folder would fail
            if trainer.is_rank0:
                manager.prune(trainer.spec.out, config.keep_last, config.keep_every)
            seconds = time.perf_counter() - start
            trainer.result = replace(trainer.result, checkpoint=folder)
            for callback in trainer.callbacks:
                callback.on_checkpoint(trainer, folder, seconds)
