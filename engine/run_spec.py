"""What a task gives to the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from allinone.engine.objective import ObjectiveFn
from allinone.engine.optim.adamw import LrScale
from allinone.engine.planning.memory import Activations
from allinone.engine.planning.step_time import CountedSteps


class Data(Protocol):
    """A stream of batches (data.TrainStream)."""

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Any]:
        """Micro-batches of one data rank.

        Args:
            first: Global position of the first clip.
            rank: Data rank.
            world: Number of data ranks.
            micro_batch: Clips per micro-batch.
            device: Where the tensors go.
        """
        ...

    def describe(self) -> str:
        """The data in a few lines, for the log."""
        ...


Evaluate = Callable[[nn.Module, torch.device], Mapping[str, float]]
"""(model, device) → name → value."""
Pictures = Callable[[Any], Mapping[str, NDArray[np.uint8]]]
"""Batch → name → uint8 [H, W, 3]."""


@dataclass(frozen=True)
class RunSpec:
    """A run without its training options: model, data, objective, and facts about them."""

    model: nn.Module
    objective: ObjectiveFn
    data: Data
    run_config: Mapping[str, Any]
    """All options that the run depends on, as JSON values."""
    out: Path
    flops_per_sample: float
    """Training FLOPs per clip: all passes, forward and backward, FMA = 2."""
    activations: Activations
    head_patterns: tuple[str, ...]
    """Parameters whose name contains one of these are heads."""
    head_lr_mult: float
    """Multiplier of the learning rate of heads."""
    lr_scale: LrScale | None = None
    """Further multiplier by parameter name; None: 1."""
    counted: CountedSteps | None = None
    """Operations of the steps, for the plan."""
