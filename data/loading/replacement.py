"""Where a bad clip is replaced during training.

A position of the training order whose clip cannot be decoded gets another clip of the same data
set. Which one is a pure function of (seed, data set, epoch, row, attempt), so the replacement is
the same at any world size, number of readers, and after a restart. Two callers notice bad clips:

- a reader process, when decoding on the host fails (`ReplacementSampler.__getitem__`);
- the training process, when DALI fails on a trimmed stream (`ReplacementSampler.without`).

Every replaced clip is named in the batch's `bad`, and by data/loading/bad_clips.py on disk.
Evaluation replaces nothing: see data/loading/batch_maker.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch

from allinone.common.errors import DataError
from allinone.data.decoding.frames import DecodeError
from allinone.data.loading.batch import BadClip
from allinone.data.loading.batch_maker import BatchMaker
from allinone.data.loading.mixture import Order
from allinone.data.loading.readers import reading
from allinone.data.loading.samples import MicroBatch, Sample, SampleSource
from allinone.data.loading.sampling import generator

ATTEMPTS = 20
"""Rows tried for one position before the run gives up."""


@dataclass(frozen=True, eq=False)
class ReplacementSampler(BatchMaker):
    """The micro-batches of one rank in training.

    The k-th holds the positions from first + (k * world + rank) * micro_batch on.
    """

    sources: Sequence[SampleSource]
    """The data sets of the mixture."""
    order: Order
    """Position → data set, epoch and row."""
    _: KW_ONLY
    seed: int
    """Seed of all random choices."""
    first: int
    """Position of the first sample of all ranks."""
    rank: int
    """This data-parallel rank."""
    world: int
    """Number of data-parallel ranks."""
    micro_batch: int
    """Samples per micro-batch."""

    def __getitem__(self, k: int) -> MicroBatch:
        torch.set_num_threads(1)  # parallelism comes from the reader processes
        start = self.first + (k * self.world + self.rank) * self.micro_batch
        bad: list[BadClip] = []
        samples = [self._sample(p, bad) for p in range(start, start + self.micro_batch)]
        return MicroBatch(samples, tuple(bad), start)

    def clip_name(self, dataset: int, row: int) -> str:
        return f"{self.sources[dataset].key(row)} of {self.sources[dataset].name}"

    def without(self, micro_batch: MicroBatch, failed: Mapping[int, str]) -> MicroBatch:
        """Replace the samples that DALI could not decode (number → reason)."""
        samples, bad = list(micro_batch.samples), list(micro_batch.bad)
        for i, reason in failed.items():
            position = micro_batch.first_position + i
            place = self.order[position]
            name = self.sources[place.dataset].name
            bad.append(BadClip(name, samples[i].name, reason, place.epoch))
            # The reader has tried the attempts before this one.
            samples[i] = self._sample(position, bad, samples[i].attempt + 1)
        return replace(micro_batch, samples=samples, bad=tuple(bad))

    def _sample(self, position: int, bad: list[BadClip], first_attempt: int = 0) -> Sample:
        """Make the sample of a position.

        Args:
            position: Position in the training order.
            bad: Rows that fail are appended here.
            first_attempt: 0 is the position's own row, each later attempt another one.

        Raises:
            DataError: ATTEMPTS rows have failed.
        """
        place = self.order[position]
        source, row = self.sources[place.dataset], place.row
        for attempt in range(first_attempt, ATTEMPTS):
            # Keyed by the position's own row, not by the replacement's: no dependence on who failed
            # first.
            random = generator(self.seed, source.name, place.epoch, place.row, attempt)
            if attempt:
                row = int(random.integers(len(source)))
            try:
                with reading(place.dataset, row):
                    sample = source.train_sample(row, random)
            except DecodeError as error:
                bad.append(BadClip(source.name, source.key(row), str(error), place.epoch))
            else:
                sample.attempt = attempt
                return sample
        raise DataError(
            f"{ATTEMPTS} samples in a row of {source.name} cannot be used, the last: {bad[-1].clip}"
            f" ({bad[-1].reason}); repair its files (prepared data: prepare it again)"
        )
