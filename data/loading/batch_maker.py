"""Makes micro-batches by number: the base of training and evaluation, and evaluation's maker.

Training's maker, which replaces bad clips, is data/loading/replacement.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from allinone.data.decoding.frames import DecodeError
from allinone.data.loading.batch import BadClip
from allinone.data.loading.readers import reading
from allinone.data.loading.samples import MicroBatch, SampleSource


class BatchMaker(Dataset[MicroBatch]):
    """Micro-batches by number, each a pure function of its number.

    `__getitem__` runs in the reader processes, `without` in the training process.
    """

    def __getitem__(self, k: int) -> MicroBatch:
        raise NotImplementedError

    def clip_name(self, dataset: int, row: int) -> str:
        """Return the name of the clip that `readers.reading` has noted, for messages."""
        raise NotImplementedError

    def without(self, micro_batch: MicroBatch, failed: Mapping[int, str]) -> MicroBatch:
        """Return the micro-batch without the samples that DALI could not decode.

        Args:
            micro_batch: What `__getitem__` returned.
            failed: Number of a sample in the micro-batch → reason.

        Returns:
            A micro-batch with other samples in their places (training) or none (evaluation).
        """
        raise NotImplementedError


class EvalBatchMaker(BatchMaker):
    """Micro-batches of evaluation: bad clips are not replaced but left out and named.

    Args:
        source: Makes the samples.
        batches: Rows of each micro-batch.
        name: Row → its name among the bad clips; default: the source's key.
    """

    def __init__(
        self,
        source: SampleSource,
        batches: Sequence[Sequence[int]],
        name: Callable[[int], str] | None = None,
    ) -> None:
        self._source = source
        self._batches = batches
        self._name = name or source.key

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, k: int) -> MicroBatch:
        torch.set_num_threads(1)  # parallelism comes from the reader processes
        samples, bad = [], []
        for row in self._batches[k]:
            try:
                with reading(0, row):
                    samples.append(self._source.eval_sample(row))
            except DecodeError as error:
                bad.append(self._bad(row, str(error)))
        return MicroBatch(samples, tuple(bad), self._batches[k][0])

    def clip_name(self, dataset: int, row: int) -> str:
        return f"{self._source.key(row)} of {self._source.name}"

    def without(self, micro_batch: MicroBatch, failed: Mapping[int, str]) -> MicroBatch:
        bad = [self._bad(micro_batch.samples[i].row, reason) for i, reason in failed.items()]
        samples = [sample for i, sample in enumerate(micro_batch.samples) if i not in failed]
        return replace(micro_batch, samples=samples, bad=(*micro_batch.bad, *bad))

    def _bad(self, row: int, reason: str) -> BadClip:
        return BadClip(self._source.name, self._name(row), reason)
