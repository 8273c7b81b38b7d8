"""Metrics that a rank accumulates between two logging steps, and their sums over ranks.

Values on the device stay tensors until `MetricAccumulator.collect`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from allinone.engine.distributed import topology
from allinone.engine.distributed.collectives import all_gather_object

DIGEST_BITS = 63
"""A digest fits a signed 64-bit integer."""
NAMED_CLIPS = 16
"""Clips that a rank names per skipped step; a micro-batch of hundreds would flood the log."""


@dataclass(frozen=True)
class SkippedStep:
    """One step whose gradient was not finite."""

    step: int
    clips: tuple[str, ...]
    """Clips of the micro-batches whose loss was not finite, over all ranks; clips of the complete
    step if every loss was finite."""
    loss_finite: bool
    """True: the losses were finite, and the gradient overflowed in the backward pass."""


@dataclass(frozen=True)
class MicroBatchRecord:
    """One micro-batch of this rank. Tensors stay on the device."""

    position: int
    """Global position of its first clip. Together with the run's seed it determines the batch and
    its random numbers."""
    clips: tuple[str, ...]
    loss: Tensor
    """Scalar, detached."""
    metrics: Mapping[str, Tensor]
    """Name → (sum, count)."""
    mean_items: Tensor | None = None
    """What its losses were divided by, see engine.objective.CountingObjective."""


@dataclass(frozen=True)
class IntervalMetrics:
    """One logging interval: sums over micro-batches, steps and ranks; equal on all ranks."""

    steps: list[int]
    """Step numbers."""
    metrics: dict[str, float]
    """Name → mean; nan where the count is 0."""
    skips: list[bool]
    """Whether each step was skipped."""
    losses: list[float]
    """Mean loss of each step over micro-batches and ranks; nan if one is not finite."""
    norms: list[float]
    """Norm of the complete gradient of each step before clipping."""
    skipped: list[SkippedStep]
    digest: int
    """Hash of all clips and random choices since step 0."""
    bad_clips: int
    """Replaced clips since step 0."""
    wait_s: list[float]
    """Time that each rank waited for data, seconds."""
    own_s: list[float]
    """Own work of each rank, waiting for data and the forward pass, seconds (straggler.py)."""
    memory_bytes: int
    """Memory of the largest rank."""


@dataclass
class _Step:
    number: int
    micro_batches: list[MicroBatchRecord]
    skipped: Tensor
    norm: Tensor

    def numbers(self) -> Tensor:
        """float32 [3]: skipped, gradient norm, mean loss."""
        loss = torch.stack([micro.loss.float() for micro in self.micro_batches]).mean()
        return torch.stack([self.skipped.float(), self.norm.to(loss), loss])


class MetricAccumulator:
    """Sums of one rank since the last `collect`; `digest` and `bad_clips` are never reset."""

    def __init__(self) -> None:
        self.digest = 0
        self.bad_clips = 0
        self.waited_s = 0.0
        self.last_batch: Any = None
        """The newest micro-batch of this rank."""
        self.records: dict[int, list[MicroBatchRecord]] = {}
        """Step → this rank's micro-batches, for the interval that was collected last."""
        self._metrics: dict[tuple[str, ...], list[Tensor]] = {}
        """Names of metrics → (sum, count) of each, float32 [n, 2], of every micro-batch. Those of
        videos and of images have different names."""
        self._micro_batches: list[MicroBatchRecord] = []
        self._steps: list[_Step] = []

    def __len__(self) -> int:
        """Number of steps since the last `collect`."""
        return len(self._steps)

    def add(
        self,
        batch: Any,
        loss: Tensor,
        metrics: Mapping[str, Tensor],
        mean_items: Tensor | None = None,
    ) -> None:
        """Add one micro-batch.

        Args:
            batch: Its positions, clips and digest are recorded.
            loss: Scalar on the device.
            metrics: Name → (sum, count) on the device. Non-finite ones are left out, so that one
                bad clip does not blank the curve of a complete logging interval.
            mean_items: See `MicroBatchRecord`.
        """
        self.last_batch = batch
        self.digest = (self.digest + batch.digest) % 2**DIGEST_BITS
        self.bad_clips += len(batch.bad)
        self._micro_batches.append(
            MicroBatchRecord(
                batch.first_position, tuple(batch.clips), loss.detach(), metrics, mean_items
            )
        )
        if metrics:
            # one operation; they are added on the host, at the end of the interval
            values = torch.stack(list(metrics.values()))
            self._metrics.setdefault(tuple(metrics), []).append(values)

    def end_step(self, step: int, skipped: Tensor, norm: Tensor) -> None:
        """End an optimizer step, which used all micro-batches since the previous one.

        Args:
            step: Its number.
            skipped: Scalar on the device, 1 if the step changed nothing.
            norm: Scalar on the device, norm of the gradient before clipping.
        """
        self._steps.append(_Step(step, self._micro_batches, skipped, norm))
        self._micro_batches = []

    def skips(self) -> list[bool]:
        """Whether each step since the last `collect` was skipped; waits for the device."""
        flags = [step.skipped.float() for step in self._steps]
        return [bool(flag) for flag in torch.stack(flags).tolist()] if flags else []

    def set_totals(self, digest: int, bad_clips: int) -> None:
        """Continue the totals of a checkpoint, which are sums over ranks: on one rank only."""
        self.digest, self.bad_clips = digest, bad_clips

    def collect(self, memory_bytes: int, forward_s: float) -> IntervalMetrics:
        """Wait for the device, sum over ranks, and start the next interval; collective.

        Args:
            memory_bytes: Memory of this rank.
            forward_s: Time of this rank's forward passes, seconds.
        """
        steps = self._steps
        # one transfer for all steps of the interval, not one per step
        numbers = torch.stack([step.numbers() for step in steps]).tolist() if steps else []
        skips = [bool(skipped) for skipped, _, _ in numbers]
        named = {
            step.number: _clips(step.micro_batches)
            for step, skip in zip(steps, skips, strict=True)
            if skip
        }
        sums = self._sums()
        mine: dict[str, Any] = {
            "sums": sums,
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
        # the ranks of a tensor-parallel group have the same clips, but each its own times
        data_parts = topology.current().one_per_data_rank(parts)
        interval = IntervalMetrics(
            steps=[step.number for step in steps],
            metrics=_means(sums, data_parts),
            skips=skips,
            losses=[
                sum(column) / len(data_parts)
                for column in zip(*(part["losses"] for part in data_parts), strict=True)
            ],
            # one rank's values, so that decisions that follow from them are equal on all ranks
            norms=data_parts[0]["norms"],
            skipped=[_merge(step, [part["named"][step] for part in data_parts]) for step in named],
            digest=sum(part["digest"] for part in data_parts) % 2**DIGEST_BITS,
            bad_clips=sum(part["bad"] for part in data_parts),
            wait_s=[part["wait"] for part in parts],
            own_s=[part["own"] for part in parts],
            memory_bytes=max(part["memory"] for part in parts),
        )
        # tensors of a single interval are kept, for the replay of its steps; older ones are freed
        self.records = {step.number: step.micro_batches for step in steps}
        self._metrics, self._steps, self.waited_s = {}, [], 0.0
        return interval

    def _sums(self) -> dict[str, list[float]]:
        """Name → (sum, count) of the interval; waits for the device."""
        sums: dict[str, list[float]] = {}
        for names, values in self._metrics.items():
            for row in torch.stack(values).tolist():
                for name, value in zip(names, row, strict=True):
                    total = sums.setdefault(name, [0.0, 0.0])
                    if all(map(math.isfinite, value)):
                        total[0] += value[0]
                        total[1] += value[1]
        return sums


def _means(names: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    means = {}
    for name in names:
        total, count = (sum(part["sums"][name][i] for part in parts) for i in (0, 1))
        means[name] = total / count if count else float("nan")
    return means


def _clips(micro_batches: Sequence[MicroBatchRecord]) -> tuple[list[str], list[str]]:
    """(clips of micro-batches with a non-finite loss, all clips) of one step, shortened."""
    # each `bool` waits for the device, but only skipped steps come here
    offending = [
        clip
        for micro in micro_batches
        if not bool(torch.isfinite(micro.loss))
        for clip in micro.clips
    ]
    everything = [clip for micro in micro_batches for clip in micro.clips]
    return offending[:NAMED_CLIPS], everything[:NAMED_CLIPS]


def _merge(step: int, parts: list[tuple[list[str], list[str]]]) -> SkippedStep:
    offending = [clip for part in parts for clip in part[0]]
    clips = offending or [clip for part in parts for clip in part[1]]
    return SkippedStep(step, tuple(clips), loss_finite=not offending)
