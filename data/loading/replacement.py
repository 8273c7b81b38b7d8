"""Positions of the training order → the samples of a rank's micro-batches; what cannot be used is
replaced, as a function of the position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from allinone.common.errors import DataError
from allinone.data.decoding.frames import DecodeError
from allinone.data.loading.batch import BadClip
from allinone.data.loading.mixture import Order
from allinone.data.loading.sampling import generator

ATTEMPTS = 20
"""Rows tried for one position before the run gives up."""


class Replaceable(Protocol):
    """A sample; `attempt`: rows tried before this one at its position."""

    name: str
    attempt: int


SampleT = TypeVar("SampleT", bound=Replaceable)
SampleT_co = TypeVar("SampleT_co", bound=Replaceable, covariant=True)


class Drawn(Protocol[SampleT_co]):
    """Rows that samples are drawn from."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """The row's name in the ledger."""
        ...

    def drawn(self, row: int, random: np.random.Generator) -> SampleT_co:
        """One training sample of a row; DecodeError where it cannot be used."""
        ...


@dataclass
class MicroBatch(Generic[SampleT]):
    """A micro-batch before the DALI graph."""

    samples: list[SampleT]
    bad: tuple[BadClip, ...]
    first_position: int


class ReplacementSampler(Generic[SampleT]):
    """The k-th micro-batch of one rank, as a pure function of k: it holds the positions from first
    + (k * world + rank) * micro_batch on."""

    def __init__(
        self,
        sources: Sequence[Drawn[SampleT]],
        order: Order,
        *,
        seed: int,
        first: int,
        rank: int,
        world: int,
        micro_batch: int,
    ) -> None:
        self._sources, self._order, self._seed = sources, order, seed
        self._first, self._rank, self._world, self._micro_batch = first, rank, world, micro_batch

    def __getitem__(self, k: int) -> MicroBatch[SampleT]:
        torch.set_num_threads(1)  # readers are processes side by side
        position = self._first + (k * self._world + self._rank) * self._micro_batch
        bad: list[BadClip] = []
        samples = [self._sample(p, bad) for p in range(position, position + self._micro_batch)]
        return MicroBatch(samples, tuple(bad), position)

    def _sample(self, position: int, bad: list[BadClip], first_attempt: int = 0) -> SampleT:
        place = self._order[position]
        source, row = self._sources[place.dataset], place.row
        for attempt in range(first_attempt, ATTEMPTS):
            random = generator(self._seed, source.name, place.epoch, place.row, attempt)
            if (
                attempt
            ):  # a replacement from the same source, as a function of the position's own key
                row = int(random.integers(len(source)))
            try:
                sample = source.drawn(row, random)
            except DecodeError as error:
                bad.append(BadClip(source.name, source.key(row), str(error), place.epoch))
            else:
                sample.attempt = attempt
                return sample
        raise DataError(
            f"{ATTEMPTS} samples in a row of {source.name} cannot be used, the last: {bad[-1].clip}"
            f" ({bad[-1].reason}); mend its files (prepared data: prepare it again)"
        )

    def without(self, raw: MicroBatch[SampleT], failed: dict[int, str]) -> MicroBatch[SampleT]:
        """The micro-batch with the samples replaced (number → reason) that the graph could not
        decode."""
        samples, bad = list(raw.samples), list(raw.bad)
        for i, reason in failed.items():
            place = self._order[raw.first_position + i]
            bad.append(
                BadClip(self._sources[place.dataset].name, samples[i].name, reason, place.epoch)
            )
            samples[i] = self._sample(raw.first_position + i, bad, samples[i].attempt + 1)
        return replace(raw, samples=samples, bad=tuple(bad))
