"""What adds up on a rank between two logging steps, and its sum over ranks. Device values stay
tensors until `collect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allinone.engine.distributed import topology
from allinone.engine.distributed.collectives import all_gather_object

DIGEST_BITS = 63
NAMED_CLIPS = 16
"""Clips that a rank names per skipped step; a micro-batch of hundreds would flood the log."""


@dataclass(frozen=True)
class SkippedStep:
    """One step whose gradient was not finite."""

    step: int
    clips: tuple[str, ...]
    """Clips of the micro-batches whose loss was not finite, over all ranks; of the whole step if
    every loss was finite."""
    loss_finite: bool
    """True: the losses were finite, the gradient overflowed in the backward pass."""


@dataclass(frozen=True)
class MicroBatchRecord:
    """One micro-batch of this rank. Tensors stay on the device."""

    position: int
    """Global position of its first clip: with the run's seed it makes the batch and its random
    numbers again."""
    clips: tuple[str, ...]
    loss: Tensor
    """Scalar, detached."""
    metrics: Mapping[str, Tensor]
    """Name → (sum, count)."""


@dataclass(frozen=True)
class IntervalMetrics:
    """Sums over micro-batches, steps and ranks."""

    steps: list[int]
    """Numbers of the steps."""
    metrics: dict[str, float]
    skips: list[bool]
    """One entry per step."""
    losses: list[float]
    """Mean over micro-batches and ranks, one entry per step; nan where one is not finite."""
    norms: list[float]
    """Norm of the whole gradient before clipping, one entry per step."""
    skipped: list[SkippedStep]
    digest: int
    bad_clips: int
    wait_s: list[float]
    """Time that each rank waited for data."""
    own_s: list[float]
    """Time that each rank needed until it had its losses: waiting for data and the forward pass
    (engine/monitoring/straggler.py says why)."""
    memory_bytes: int
    """Largest memory of a rank."""


@dataclass
class _Step:
    number: int
    micro: list[MicroBatchRecord]
    skipped: Tensor
    norm: Tensor

    def numbers(self) -> Tensor:
        """float32 [3]: skipped, gradient norm, mean loss."""
        loss = torch.stack([micro.loss.float() for micro in self.micro]).mean()
        return torch.stack([self.skipped.float(), self.norm.to(loss), loss])


class MetricAccumulator:
    """Sums of one rank. `digest` and `bad_clips` run over the whole training, the rest since the
    last `collect`."""

    def __init__(self) -> None:
        self.digest = 0
        self.bad_clips = 0
        self.waited_s = 0.0
        self.kept: dict[int, list[MicroBatchRecord]] = {}
        """Step → this rank's micro-batches, of the interval that was collected last."""
        self._sums: dict[str, Tensor] = {}
        self._micro: list[MicroBatchRecord] = []
        self._steps: list[_Step] = []

    def __len__(self) -> int:
        """Steps since the last `collect`."""
        return len(self._steps)

    def add(self, batch: Any, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """One micro-batch. Metrics that are not finite are left out: one bad clip must not blank
        the curve of a whole logging interval."""
        self.digest = (self.digest + batch.digest) % 2**DIGEST_BITS
        self.bad_clips += len(batch.bad)
        self._micro.append(
            MicroBatchRecord(batch.first_position, tuple(batch.clips), loss.detach(), metrics)
        )
        for name, value in metrics.items():
            usable = torch.where(torch.isfinite(value).all(), value, torch.zeros_like(value))
            self._sums[name] = self._sums[name] + usable if name in self._sums else usable

    def end_step(self, step: int, skipped: Tensor, norm: Tensor) -> None:
        """The optimizer step after the micro-batches added since the last one; device scalars: 1 if
        it changed nothing, and the gradient's norm."""
        self._steps.append(_Step(step, self._micro, skipped, norm))
        self._micro = []

    def collect(self, memory_bytes: int, forward_s: float) -> IntervalMetrics:
        """Wait for the device, add up over ranks (collective), and begin anew. `forward_s` is this
        rank's time in forward passes."""
        steps = self._steps
        numbers = torch.stack([step.numbers() for step in steps]).tolist() if steps else []
        skips = [bool(skipped) for skipped, _, _ in numbers]
        named = {
            step.number: _clips(step.micro) for step, skip in zip(steps, skips, strict=True) if skip
        }
        mine: dict[str, Any] = {
            "sums": {name: value.double().tolist() for name, value in self._sums.items()},
            "named": named,
            "losses": [loss for _, _, loss in numbers],
            "norms": [norm for _, norm, _ in numbers],
            "digest": self.digest,
            "bad": self.bad_clips,
            "wait": self.waited_s,
            "own": self.waited_s + forward_s,
            "memory": memory_bytes,
        }
        parts = all_gather_object(mine)
        wait_s, own_s, memory = (
            [part[name] for part in parts] for name in ("wait", "own", "memory")
        )
        parts = topology.current().one_per_data_rank(parts)
        totals = {
            name: [sum(part["sums"][name][i] for part in parts) for i in (0, 1)]
            for name in self._sums
        }
        report = IntervalMetrics(
            steps=[step.number for step in steps],
            metrics={
                name: total / count if count else float("nan")
                for name, (total, count) in totals.items()
            },
            skips=skips,
            losses=[
                sum(column) / len(parts)
                for column in zip(*(part["losses"] for part in parts), strict=True)
            ],
            norms=parts[0]["norms"],  # the same everywhere; one rank's, so that all judge alike
            skipped=[_merge(step, [part["named"][step] for part in parts]) for step in named],
            digest=sum(part["digest"] for part in parts) % 2**DIGEST_BITS,
            bad_clips=sum(part["bad"] for part in parts),
            wait_s=wait_s,
            own_s=own_s,
            memory_bytes=max(memory),
        )
        self.kept = {step.number: step.micro for step in steps}
        self._sums, self._steps, self.waited_s = {}, [], 0.0
        return report


def _clips(micro: Sequence[MicroBatchRecord]) -> tuple[list[str], list[str]]:
    """(clips of micro-batches with a non-finite loss, all clips) of one step, shortened."""
    guilty = [clip for one in micro if not bool(torch.isfinite(one.loss)) for clip in one.clips]
    return guilty[:NAMED_CLIPS], [clip for one in micro for clip in one.clips][:NAMED_CLIPS]


def _merge(step: int, parts: list[tuple[list[str], list[str]]]) -> SkippedStep:
    guilty = [clip for part in parts for clip in part[0]]
    return SkippedStep(
        step, tuple(guilty or [clip for part in parts for clip in part[1]]), loss_finite=not guilty
    )
