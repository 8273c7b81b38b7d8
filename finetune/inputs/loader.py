"""Items → batches, for training (endless, deterministic, elastic) and for evaluation (fixed
batches, nothing replaced)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.frames import DecodeError
from allinone.data.loading.bad_clips import Ledger
from allinone.data.loading.batch import BadClip
from allinone.data.loading.mixture import Order
from allinone.data.loading.prefetch import Batches, Endless, ready
from allinone.data.loading.replacement import MicroBatch, ReplacementSampler
from allinone.data.loading.sampling import generator
from allinone.data.text import Tokenizer
from allinone.finetune.inputs.batch import Example, Maker, TaskBatch
from allinone.finetune.inputs.clip_reader import Reader, Visual
from allinone.finetune.inputs.prompts import encode


@dataclass
class Sample:
    """One item as a reader process hands it over."""

    number: int
    name: str
    visuals: list[Visual]
    """C * V of them, clip by clip."""
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    target: NDArray[np.int64] | NDArray[np.float32]
    group: int
    lost: int
    shortened: int
    digest: int
    attempt: int = 0


class Source:
    """Makes samples of one split's items."""

    def __init__(
        self, name: str, ids: Sequence[str], make: Maker, reader: Reader, clip: ClipConfig
    ) -> None:
        self.name, self.ids, self.make, self.reader, self.clip = name, ids, make, reader, clip
        self._tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_tokenizer": None}

    def __len__(self) -> int:
        return len(self.ids)

    def key(self, row: int) -> str:
        """The item's name."""
        return self.ids[row]

    def drawn(self, row: int, random: np.random.Generator) -> Sample:
        """A training sample; DecodeError where something of it cannot be shown."""
        return self.sample(row, random, views=1)

    def sample(self, number: int, random: np.random.Generator | None, views: int) -> Sample:
        """One sample; raises DecodeError where something of it cannot be shown."""
        self._tokenizer = self._tokenizer or Tokenizer()
        example = self.make(number, random)
        visuals = [visual for look in example.looks for visual in self.reader(look, random, views)]
        texts = [encode(self._tokenizer, text, self.clip.max_text_len) for text in example.texts]
        ids = (
            np.stack([text.ids for text in texts])
            if texts
            else np.zeros((0, self.clip.max_text_len), np.int64)
        )
        mask = np.stack([text.mask for text in texts]) if texts else np.zeros_like(ids)
        target = (
            example.target
            if isinstance(example.target, np.ndarray)
            else np.asarray(example.target, np.int64)
        )
        name, lost, shortened = (
            self.ids[number],
            sum(text.lost for text in texts),
            sum(text.shortened for text in texts),
        )
        digest = _digest(name, example, visuals, ids, target)
        return Sample(
            number, name, visuals, ids, mask, target, example.group, lost, shortened, digest
        )


def _digest(
    name: str,
    example: Example,
    visuals: Sequence[Visual],
    ids: NDArray[np.int64],
    target: NDArray[np.generic],
) -> int:
    """63-bit hash of everything that was chosen."""
    shown = [(look.media, look.painted) for look in example.looks]
    content = hashlib.blake2b(
        repr((name, shown, [visual.choices for visual in visuals])).encode(), digest_size=8
    )
    content.update(ids.tobytes())
    content.update(target.tobytes())
    return int.from_bytes(content.digest(), "little") >> 1


class _TaskBatches(Batches[MicroBatch[Sample], TaskBatch | None]):
    source: Source
    views: int = 1
    device: torch.device

    def visuals(self, raw: MicroBatch[Sample]) -> Sequence[Visual]:
        return [visual for sample in raw.samples for visual in sample.visuals]

    def owners(self, raw: MicroBatch[Sample], failed: dict[int, str]) -> dict[int, str]:
        """Number of the sample → reason, from the numbers of visuals that the graph refused."""
        owner = [i for i, sample in enumerate(raw.samples) for _ in sample.visuals]
        return {owner[i]: reason for i, reason in failed.items()}

    def finish(self, raw: MicroBatch[Sample], pixels: Tensor | None) -> TaskBatch | None:
        """None where no item is left."""
        samples = raw.samples
        if not samples:
            return None
        side, frames = self.source.clip.image_size, self.source.clip.num_frames
        shape = (
            len(samples),
            len(samples[0].visuals) // self.views,
            self.views,
            frames,
            3,
            side,
            side,
        )
        return TaskBatch(
            pixels=torch.zeros(shape) if pixels is None else pixels.reshape(shape),
            text_ids=torch.from_numpy(np.stack([sample.ids for sample in samples])),
            text_mask=torch.from_numpy(np.stack([sample.mask for sample in samples])),
            target=torch.from_numpy(np.stack([sample.target for sample in samples])),
            groups=torch.tensor([sample.group for sample in samples]),
            items=tuple(sample.number for sample in samples),
            clips=tuple(sample.name for sample in samples),
            first_position=raw.first_position,
            digest=sum(sample.digest for sample in samples) % 2**63,
            lost=sum(sample.lost for sample in samples),
            shortened=sum(sample.shortened for sample in samples),
            bad=raw.bad,
        ).to(self.device)


class _TrainBatches(_TaskBatches):
    def __init__(self, source: Source, positions: ReplacementSampler[Sample]) -> None:
        self.source, self._positions = source, positions

    def __getitem__(self, k: int) -> MicroBatch[Sample]:
        return self._positions[k]

    def without(self, raw: MicroBatch[Sample], failed: dict[int, str]) -> MicroBatch[Sample]:
        """The micro-batch with the samples replaced that the graph could not decode."""
        return self._positions.without(raw, self.owners(raw, failed))


class TaskStream:
    """The training split as the loop wants it: the order is a function of the seed, the state one
    number, the same at any world size."""

    def __init__(
        self, source: Source, config: DataConfig, *, seed: int, ledger: Path | None
    ) -> None:
        self._source, self._config, self._seed, self._ledger = source, config, seed, ledger
        self._order = Order([len(source.ids)], [1.0], seed)

    def describe(self) -> str:
        """Split and size."""
        return f"data: {self._source.name} {len(self._source.ids):,} items"

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[TaskBatch]:
        """Endless; the k-th batch of a rank holds the positions from first + (k * world + rank) *
        micro_batch on."""
        from allinone.data.loading.dali_pipeline import (
            augments_for,
        )  # here, so that reader processes do not load DALI

        looks = max(1, len(self._source.make(0, generator(0, "", 0, 0)).looks))
        augments = augments_for(self._source.clip, self._config, device, micro_batch * looks)
        self._source.reader.codecs = augments[0].codecs
        place = {"first": first, "rank": rank, "world": world, "micro_batch": micro_batch}
        dataset = _TrainBatches(
            self._source, ReplacementSampler([self._source], self._order, seed=self._seed, **place)
        )
        dataset.device = device
        ledger = Ledger(self._ledger, rank, self._config.max_bad_share)
        for raw, batch in ready(dataset, self._config, augments, Endless()):
            assert batch is not None  # every position is filled, or an error is raised
            ledger.add(micro_batch, raw.bad)
            yield batch


class _EvalBatches(_TaskBatches):
    def __init__(self, source: Source, numbers: Sequence[Sequence[int]], views: int) -> None:
        self.source, self._numbers, self.views = source, numbers, views

    def __getitem__(self, k: int) -> MicroBatch[Sample]:
        torch.set_num_threads(1)
        samples, bad = [], []
        for number in self._numbers[k]:
            try:
                samples.append(self.source.sample(number, None, self.views))
            except DecodeError as error:
                bad.append(self._bad(number, str(error)))
        return MicroBatch(samples, tuple(bad), k)

    def _bad(self, number: int, reason: str) -> BadClip:
        return BadClip(self.source.name, str(number), reason)

    def without(self, raw: MicroBatch[Sample], failed: dict[int, str]) -> MicroBatch[Sample]:
        """In evaluation nothing is replaced: the samples are left out and named."""
        gone = self.owners(raw, failed)
        bad = [self._bad(raw.samples[i].number, reason) for i, reason in gone.items()]
        return replace(
            raw,
            samples=[s for i, s in enumerate(raw.samples) if i not in gone],
            bad=(*raw.bad, *bad),
        )


class _Numbers(Sampler[int]):
    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def evaluation_batches(
    source: Source,
    numbers: Sequence[Sequence[int]],
    wanted: Sequence[int],
    config: DataConfig,
    device: torch.device,
    *,
    views: int,
) -> Iterator[tuple[int, TaskBatch | None, tuple[BadClip, ...]]]:
    """(k, batch, what is missing of it) for each k in `wanted`, in order; the k-th batch holds the
    items numbers[k]. `clip` of what is missing is the item's number."""
    from allinone.data.loading.dali_pipeline import augments_for

    if not wanted:
        return
    looks = max(1, len(source.make(numbers[wanted[0]][0], None).looks)) * views
    augments = augments_for(source.clip, config, device, max(map(len, numbers)) * looks)
    source.reader.codecs = augments[0].codecs
    batches = _EvalBatches(source, numbers, views)
    batches.device = device
    for raw, batch in ready(batches, config, augments, _Numbers(wanted)):
        yield raw.first_position, batch, raw.bad
