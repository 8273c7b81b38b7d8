"""When Python collects garbage during training."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from allinone.engine.callbacks.base import Callback, Interval

if TYPE_CHECKING:
    from allinone.engine.trainer import Trainer


class GarbageCallback(Callback):
    """Collects on logging steps only.

    Automatic collections come at different steps on each rank, and all ranks wait for the one that
    collects. What exists when training starts (modules, model, optimizer) is not searched again.
    """

    def __init__(self) -> None:
        self._was_enabled = False

    def on_start(self, trainer: Trainer) -> None:
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        gc.collect()

    def on_close(self, trainer: Trainer, error: BaseException | None) -> None:
        # a run that ends before its start leaves everything as it was
        if self._was_enabled:
            gc.unfreeze()
            gc.enable()
