"""What adds up on a rank between two logging steps, and its sum over ranks. Device values stay tensors until `collect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

DIGEST_BITS = 63
NAMED_CLIPS = 16
"""Clips that a rank names per skipped step; a micro-batch of hundreds would flood the log."""


@dataclass(frozen=True)
class SkippedStep:
    """One step whose gradient was not finite."""

    step: int
    clips: tuple[str, ...]
    """Clips of the micro-batches whose loss was not finite, over all ranks; of the whole step if every loss was finite."""
    loss_finite: bool
    """True: the losses were finite, the gradient overflowed in the backward pass."""


@dataclass(frozen=True)
class Report:
    """Sums over micro-batches, steps and ranks."""

    steps: int
    metrics: dict[str, float]
    skips: list[bool]
    """One entry per step."""
    skipped: list[SkippedStep]
    digest: int
    bad_clips: int
    wait_s: float
    """Largest time that a rank waited for data."""
    memory_bytes: int
    """Largest memory of a rank."""


class Tally:
    """Sums of one rank. `digest` and `bad_clips` run over the whole training, the rest since the last `collect`."""

    def __init__(self) -> None:
        self.digest = 0
        self.bad_clips = 0
        self.waited_s = 0.0
        self._sums: dict[str, Tensor] = {}
        self._micro: list[tuple[tuple[str, ...], Tensor]] = []
        self._steps: list[tuple[int, list[tuple[tuple[str, ...], Tensor]], Tensor]] = []

    def __len__(self) -> int:
        """Steps since the last `collect`."""
        return len(self._steps)

    def add(self, batch: Any, loss: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """One micro-batch. Metrics that are not finite are left out: one bad clip must not blank the curve of a whole logging interval."""
        self.digest = (self.digest + batch.digest) % 2**DIGEST_BITS
        self.bad_clips += len(batch.bad)
        self._micro.append((tuple(batch.clips), torch.isfinite(loss.detach())))
        for name, value in metrics.items():
            usable = torch.where(torch.isfinite(value).all(), value, torch.zeros_like(value))
            self._sums[name] = self._sums[name] + usable if name in self._sums else usable

    def end_step(self, step: int, skipped: Tensor) -> None:
        """The optimizer step after the micro-batches added since the last one; `skipped` is a device scalar, 1 if it changed nothing."""
        self._steps.append((step, self._micro, skipped))
        self._micro = []

    def collect(self, memory_bytes: int) -> Report:
        """Wait for the device, add up over ranks (collective), and begin anew."""
        skips = [bool(value) for value in torch.stack([skipped for *_, skipped in self._steps]).tolist()] if self._steps else []
        named = {step: self._clips(micro) for (step, micro, _), skip in zip(self._steps, skips, strict=True) if skip}
        mine = {
            "sums": {name: value.double().tolist() for name, value in self._sums.items()},
            "named": named,
            "digest": self.digest,
            "bad": self.bad_clips,
            "wait": self.waited_s,
            "memory": memory_bytes,
        }
        parts: list[Any] = [mine]
        if dist.get_world_size() > 1:
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, mine)
        totals = {name: [sum(part["sums"][name][i] for part in parts) for i in (0, 1)] for name in self._sums}
        report = Report(
            steps=len(self._steps),
            metrics={name: total / count if count else float("nan") for name, (total, count) in totals.items()},
            skips=skips,
            skipped=[_merge(step, [part["named"][step] for part in parts]) for step in named],
            digest=sum(part["digest"] for part in parts) % 2**DIGEST_BITS,
            bad_clips=sum(part["bad"] for part in parts),
            wait_s=max(part["wait"] for part in parts),
            memory_bytes=max(part["memory"] for part in parts),
        )
        self._sums, self._steps, self.waited_s = {}, [], 0.0
        return report

    @staticmethod
    def _clips(micro: list[tuple[tuple[str, ...], Tensor]]) -> tuple[list[str], list[str]]:
        """(clips of micro-batches with a non-finite loss, all clips) of one step, shortened."""
        guilty = [clip for clips, finite in micro if not bool(finite) for clip in clips]
        return guilty[:NAMED_CLIPS], [clip for clips, _ in micro for clip in clips][:NAMED_CLIPS]


def _merge(step: int, parts: list[tuple[list[str], list[str]]]) -> SkippedStep:
    guilty = [clip for part in parts for clip in part[0]]
    return SkippedStep(step, tuple(guilty or [clip for part in parts for clip in part[1]]), loss_finite=not guilty)
