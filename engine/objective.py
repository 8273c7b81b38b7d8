"""The interface between the trainer and a task.

An objective turns (model, batch) into one loss and its metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Losses:
    """Result of one micro-batch."""

    total: Tensor
    """Scalar to differentiate."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Name → float32 [2] = (sum, count), detached, on the device. The trainer sums them over
    micro-batches, steps and ranks and reports sum / count; the names are equal on every rank and
    step."""


def mean_metric(values: Tensor) -> Tensor:
    """(sum, count) of per-item values, float32 [2], detached."""
    values = values.detach().flatten()
    # filled on the device: a copy from the host would wait for it. Two operations per metric, of
    # which the second one also converts and writes its result in place
    metric = torch.full((2,), float(len(values)), dtype=torch.float32, device=values.device)
    torch.sum(values, 0, dtype=torch.float32, out=metric[0])
    return metric


class ObjectiveFn(Protocol):
    """Computes the loss of a micro-batch.

    It is called inside the module that DeepSpeed wraps, so that ZeRO 3 sees every use of a
    parameter. All randomness must come from torch's global generator, which the trainer seeds per
    micro-batch with (seed, global position): results then depend neither on the number of ranks nor
    on restarts.
    """

    def __call__(self, model: Any, batch: Any) -> Losses: ...


@runtime_checkable
class CountingObjective(Protocol):
    """An objective with losses that are means over a number of items that varies, such as masked
    words.

    The trainer averages losses over micro-batches and ranks. If each micro-batch divided by its own
    number of items, an item of a micro-batch with few of them would count more, and the result
    would depend on how a global batch is split. So each divides by the mean number of items of a
    micro-batch of the step, over all micro-batches and ranks.
    """

    counts_items: bool
    """False: there is no such loss at present."""

    def count_items(self, batch: Any) -> Sequence[int]:
        """Number of items of each such loss, known to the host; equally long for every batch."""
        ...

    def with_mean_items(self, batch: Any, means: Tensor) -> Any:
        """The batch with the numbers to divide by.

        Args:
            batch: A micro-batch.
            means: float32 on the device, one per number of `count_items`.
        """
        ...


def seed_of(seed: int, position: int) -> int:
    """Seed of a micro-batch's random numbers (dropout, VTM pairs).

    It depends on nothing else, so that neither the number of ranks nor a restart changes it. The
    finaliser of splitmix64 (Steele et al., OOPSLA 2014) decorrelates neighbouring positions.

    Args:
        seed: The run's seed.
        position: Global position of the micro-batch's first clip.
    """
    # + 1, because the finaliser maps 0 to 0
    z = (seed * 0x9E3779B97F4A7C15 + position + 1) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1


class StepModule(nn.Module):
    """Model and objective as one module for DeepSpeed; parameters get the prefix ``model.``."""

    def __init__(self, model: nn.Module, objective: ObjectiveFn) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.objective(self.model, batch)
        return losses.total, losses.metrics
