"""The contract between the loop and a task: an objective turns (model, batch) into one loss and its
metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Losses:
    """Result of one micro-batch."""

    total: Tensor
    """Scalar that is differentiated."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Name → float32 [2] = (sum, count), detached, on the device. The loop adds them over
    micro-batches, steps and ranks and shows sum / count; the set of names is the same on every rank
    and step."""


def mean_metric(values: Tensor) -> Tensor:
    """(sum, count) of per-item values, float32 [2], detached."""
    values = values.detach().float()
    return torch.stack([values.sum(), values.new_tensor(float(values.numel()))])


class Objective(Protocol):
    """Called once per micro-batch, inside the module that DeepSpeed wraps, so that ZeRO-3 sees
    every parameter's use.

    All randomness comes from torch's global generator, which the loop seeds per micro-batch with
    (seed, global position): results do not depend on the world size or on a restart.
    """

    def __call__(self, model: Any, batch: Any) -> Losses: ...


def seed_of(seed: int, position: int) -> int:
    """Seed of a micro-batch's random numbers (dropout, VTM pairs): a function of the run's seed and
    the position of its first clip, so that neither the number of ranks nor a restart changes them.
    splitmix64's finaliser spreads neighbouring positions.
    """
    z = (seed * 0x9E3779B97F4A7C15 + position + 1) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1


class StepModule(nn.Module):
    """Model and objective as the one module that DeepSpeed drives. Parameter names get the prefix
    ``model.``."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self._objective(self.model, batch)
        return losses.total, losses.metrics
