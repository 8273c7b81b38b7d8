"""The micro-batches of a step, with the numbers of items that its losses are averaged over."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from allinone.engine.distributed.topology import Layout
from allinone.engine.objective import CountingObjective, ObjectiveFn


class StepBatches:
    """Yields the micro-batches of one step after the other.

    A `CountingObjective` needs the numbers of items of a complete step before its first backward
    pass, so this rank's micro-batches of a step are held at the same time. To read and compute
    concurrently nevertheless, one of the next step is fetched after each that was computed. The
    numbers are on the host; their sum over ranks is queued on the device, without waiting for it.

    Args:
        batches: This rank's micro-batches, without end.
        objective: What is computed on them.
        accumulation: Micro-batches per rank and step.
        layout: This rank's position.
        device: Where the losses are computed.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        objective: ObjectiveFn,
        accumulation: int,
        layout: Layout,
        device: torch.device,
    ) -> None:
        self._batches = batches
        self._objective = objective
        self._accumulation = accumulation
        self._layout = layout
        self._device = device
        self._held: deque[Any] = deque()

    def step(self, *, last: bool) -> Iterator[tuple[Any, Tensor | None]]:
        """Yield (micro-batch, mean numbers of items or None) of the next step; collective.

        Args:
            last: No other step follows.
        """
        objective = self._objective
        if not (isinstance(objective, CountingObjective) and objective.counts_items):
            for _ in range(self._accumulation):
                yield next(self._batches), None
            return
        while len(self._held) < self._accumulation:
            self._held.append(next(self._batches))
        means = self._means([objective.count_items(batch) for batch in self._held])
        for _ in range(self._accumulation):
            yield objective.with_mean_items(self._held.popleft(), means), means
            if self._accumulation > 1 and not last:
                self._held.append(next(self._batches))

    def _means(self, counts: Sequence[Sequence[int]]) -> Tensor:
        """Mean numbers of items over micro-batches and ranks, float32 on the device."""
        totals = map(sum, zip(*counts, strict=True))
        # filled on the device: a copy from the host would wait for it
        filled = [torch.full((), float(total), device=self._device) for total in totals]
        means = torch.stack(filled)
        if self._layout.data_world > 1:
            dist.all_reduce(means, group=self._layout.data_group)
        # at least one item per step: a step without any gives 0, not NaN
        return means.clamp(min=1) / (self._accumulation * self._layout.data_world)
