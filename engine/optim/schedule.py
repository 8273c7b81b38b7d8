"""The learning-rate schedule."""

from __future__ import annotations

import math

from allinone.engine.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step 1, 2, ..., steps.

    Linear warm-up reaches the peak at its last step; then linear or cosine decay reaches 0 after
    the last step. The original code starts at rate 0, which wastes the first step; here step 1 has
    peak / warm-up steps.
    """
    warmup = config.warmup_steps()
    if step <= warmup:
        return config.lr * step / warmup
    left = (config.steps - step + 1) / max(config.steps - warmup, 1)
    if config.schedule == "linear":
        return config.lr * left
    return config.lr * 0.5 * (1 - math.cos(math.pi * left))
