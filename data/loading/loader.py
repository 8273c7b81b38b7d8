"""Prepared data → batches. Worker processes read, choose, decode, tokenise and mask; data.stream
runs the DALI graph ahead of training."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from allinone.common.errors import LASTING, DataError, LostDataError
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.codecs import dali_reads
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.gop_trim import Trimmed, trim
from allinone.data.decoding.segment import ByteRange, Piece, read_piece
from allinone.data.loading.bad_clips import Ledger
from allinone.data.loading.batch import BadClip, Batch
from allinone.data.loading.index import Index, window
from allinone.data.loading.mixture import Order
from allinone.data.loading.open_files import OpenFile, OpenFiles
from allinone.data.loading.prefetch import Batches, Endless, ready
from allinone.data.loading.replacement import MicroBatch, ReplacementSampler
from allinone.data.loading.sampling import SampleChoices, draw, fixed, generator, nearest_keyframes
from allinone.data.text import Tokenizer, mask_words


@dataclass
class Sample:
    """One sample as a worker hands it over."""

    name: str
    caption: str
    media: NDArray[np.uint8] | Trimmed
    choices: SampleChoices
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    mlm_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    dataset: int
    digest: int
    attempt: int = 0
    """How many clips before this one could not be used at this position."""


class Source:
    """Reads and decodes rows of one prepared split."""

    def __init__(
        self, spec: DatasetSpec, clip: ClipConfig, config: DataConfig, number: int = 0
    ) -> None:
        self.index = Index(spec.path, spec.split)
        self.name = spec.name
        self._clip, self._config, self._number = clip, config, number
        self.codecs: frozenset[str] = frozenset()
        """What is handed over as a trimmed stream, for DALI to decode."""
        self._shards = OpenFiles(spec.path)
        self._tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tokenizer": None}

    def _open(self, row: dict[str, Any]) -> OpenFile:
        """The row's shard; DataError where that is gone."""
        try:
            return self._shards[row["shard"]]
        except OSError as error:
            if error.errno not in LASTING:
                raise
            path = self.index.folder / row["shard"]
            remedy = "restore it, or run again what prepared it"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                remedy = "raise the limit (ulimit -n)"
            raise LostDataError(f"shard {path} cannot be opened ({error}); {remedy}") from error

    def read(self, row: dict[str, Any]) -> bytes:
        """The encoded bytes of a row; DataError where its shard is gone or short."""
        content = self._open(row).read(row["offset"], row["size"])
        if len(content) != row["size"]:
            raise DataError(
                f"shard {self.index.folder / row['shard']} is shorter than its index says; delete"
                " it, and run again what prepared it"
            )
        return content

    def piece(self, row: dict[str, Any], wanted: Sequence[int], timeline: Timeline) -> Piece:
        """What the frames `wanted` need: the whole of a clip's own file, or a part of a long
        video."""
        if row["first_frame"] is not None:
            shard = self._open(row)
            piece = read_piece(
                ByteRange(shard.descriptor, row["offset"], row["size"]),
                wanted,
                row["frames"],
                timeline,
            )
            if piece is not None:
                return piece
        return Piece(self.read(row), 0, row["frames"], timeline)

    def __len__(self) -> int:
        return len(self.index)

    def key(self, row: int) -> str:
        """The clip's name."""
        return self.index[row]["key"]

    def drawn(self, row: int, random: np.random.Generator) -> Sample:
        """A training sample; DecodeError for a bad clip."""
        return self.sample(row, random, train=True)

    def sample(self, item: int, random: np.random.Generator, train: bool) -> Sample:
        """One sample; DecodeError for a bad clip."""
        self._tokenizer = self._tokenizer or Tokenizer()
        tokenizer, clip, config, row = self._tokenizer, self._clip, self._config, self.index[item]
        first, available = window(row)
        shape = {
            "frames": available,
            "width": row["width"],
            "height": row["height"],
            "wanted": clip.num_frames,
        }
        choices = (
            draw(config, random, captions=len(row["captions"]), **shape)
            if train
            else fixed(config, **shape)
        )
        timeline = Timeline.of(row)
        if config.frames_from == "key":
            inside = [key - first for key in row["keyframes"] if first <= key < first + available]
            choices = replace(choices, frames=nearest_keyframes(choices.frames, inside, available))
        choices = choices.later(first)
        piece = self.piece(row, choices.frames, timeline)
        wanted = [number - piece.first for number in choices.frames]
        media: NDArray[np.uint8] | Trimmed
        if self.codecs and dali_reads(row, self.codecs):
            media = trim(piece.content, wanted, piece.frames, piece.timeline)
        else:
            media = decode_frames(
                piece.content, wanted, piece.timeline, timeout_s=config.clip_timeout_s
            )
        caption = row["captions"][choices.caption]
        ids, mask, words = tokenizer.encode(caption, clip.max_text_len)
        mlm_ids, labels = mask_words(
            ids,
            words,
            config.mask_prob,
            random,
            tokenizer.mask_id,
            tokenizer.first_word_id,
            tokenizer.size,
        )
        digest = choices.digest(row["key"], mlm_ids, labels)
        return Sample(
            row["key"], caption, media, choices, ids, mask, mlm_ids, labels, self._number, digest
        )


class _ClipBatches(Batches[MicroBatch[Sample], Batch | None]):
    """Micro-batches of clips with their captions; `names` are those of the data sets."""

    names: tuple[str, ...]
    device: torch.device

    def visuals(self, raw: MicroBatch[Sample]) -> Sequence[Sample]:
        return raw.samples

    def finish(self, raw: MicroBatch[Sample], pixels: torch.Tensor | None) -> Batch | None:
        """None where no clip is left."""
        if pixels is None:
            return None

        def stack(field: str) -> torch.Tensor:
            return torch.from_numpy(np.stack([getattr(sample, field) for sample in raw.samples]))

        labels = stack("labels")
        batch = Batch(
            pixels=pixels,
            text_ids=stack("ids"),
            text_mask=stack("mask"),
            mlm_ids=stack("mlm_ids"),
            mlm_labels=labels,
            mlm_positions=(labels.flatten() >= 0).nonzero().flatten(),
            dataset_ids=torch.tensor([sample.dataset for sample in raw.samples]),
            dataset_names=self.names,
            clips=tuple(sample.name for sample in raw.samples),
            captions=tuple(sample.caption for sample in raw.samples),
            first_position=raw.first_position,
            digest=sum(sample.digest for sample in raw.samples) % 2**63,
            bad=raw.bad,
        )
        return batch.to(self.device)


class _TrainBatches(_ClipBatches):
    def __init__(self, positions: ReplacementSampler[Sample]) -> None:
        self._positions = positions

    def __getitem__(self, k: int) -> MicroBatch[Sample]:
        return self._positions[k]

    def without(self, raw: MicroBatch[Sample], failed: dict[int, str]) -> MicroBatch[Sample]:
        """The micro-batch with the samples replaced that the graph could not decode."""
        return self._positions.without(raw, failed)


class _EvalBatches(_ClipBatches):
    def __init__(self, source: Source, items: list[int], batch_size: int) -> None:
        self._source, self._items, self._size = source, items, batch_size

    def __len__(self) -> int:
        return -(-len(self._items) // self._size)

    def __getitem__(self, k: int) -> MicroBatch[Sample]:
        torch.set_num_threads(1)
        samples, bad = [], []
        items = self._items[k * self._size : (k + 1) * self._size]
        for item in items:
            try:
                samples.append(
                    self._source.sample(item, generator(0, self._source.name, 0, item), train=False)
                )
            except DecodeError as error:
                bad.append(BadClip(self._source.name, self._source.key(item), str(error)))
        return MicroBatch(samples, tuple(bad), items[0])

    def without(self, raw: MicroBatch[Sample], failed: dict[int, str]) -> MicroBatch[Sample]:
        """In evaluation nothing is replaced: the samples are left out and named."""
        bad = [
            BadClip(self._source.name, raw.samples[i].name, reason) for i, reason in failed.items()
        ]
        samples = [sample for i, sample in enumerate(raw.samples) if i not in failed]
        return replace(raw, samples=samples, bad=(*raw.bad, *bad))


class TrainStream:
    """The endless, deterministic, elastic stream of training batches over a mixture of prepared
    data sets."""

    def __init__(
        self,
        datasets: Sequence[DatasetSpec],
        clip: ClipConfig,
        config: DataConfig,
        *,
        seed: int,
        ledger: Path | None = None,
    ) -> None:
        self._sources = [Source(spec, clip, config, number) for number, spec in enumerate(datasets)]
        self._specs, self._clip, self.config, self._seed, self._ledger = (
            list(datasets),
            clip,
            config,
            seed,
            ledger,
        )
        sizes = [len(source.index) for source in self._sources]
        self._order = Order(sizes, [spec.weight for spec in datasets], seed, config.shuffle_window)
        self.dataset_names = tuple(source.name for source in self._sources)
        self.samples_per_epoch = sum(sizes)

    def describe(self) -> str:
        """Data sets with sizes and shares."""
        total = sum(spec.weight for spec in self._specs)
        rows = zip(self._sources, self._specs, strict=True)
        return "\n".join(
            f"data: {source.name} {len(source.index):,} clips, {100 * spec.weight / total:.1f} % of"
            " the samples"
            for source, spec in rows
        )

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Batch]:
        """Endless; the k-th batch of a rank holds the positions from first + (k * world + rank) *
        micro_batch on."""
        from allinone.data.loading.dali_pipeline import (
            augments_for,
        )  # here, so that reader processes do not load DALI

        augments = augments_for(self._clip, self.config, device, micro_batch)
        for source in self._sources:
            source.codecs = augments[0].codecs
        place = {"first": first, "rank": rank, "world": world, "micro_batch": micro_batch}
        dataset = _TrainBatches(
            ReplacementSampler(self._sources, self._order, seed=self._seed, **place)
        )
        dataset.names, dataset.device = self.dataset_names, device
        ledger = Ledger(self._ledger, rank, self.config.max_bad_share)
        for raw, batch in ready(dataset, self.config, augments, Endless()):
            assert batch is not None  # every position is filled, or an error is raised
            ledger.add(micro_batch, raw.bad)
            yield batch


class EvalSet:
    """A prepared split for evaluation: every item exactly once, middle frames, central crop,
    nothing replaced."""

    def __init__(self, dataset: DatasetSpec, clip: ClipConfig, config: DataConfig) -> None:
        self._source = Source(dataset, clip, config)
        self._clip, self.config = clip, config
        self.name = self._source.name

    def __len__(self) -> int:
        return len(self._source.index)

    def batches(
        self,
        *,
        rank: int,
        world: int,
        batch_size: int,
        device: torch.device,
        limit: int | None = None,
    ) -> Iterator[Batch]:
        """Of the first `limit` items, if given, rank, rank + world, …; the last batch may be short.
        A clip that cannot be decoded is left out and named in `bad` of its batch; a batch of bad
        clips only is an error."""
        from allinone.data.loading.dali_pipeline import (
            augments_for,
        )  # here, so that reader processes do not load DALI

        augments = augments_for(self._clip, self.config, device, batch_size)
        self._source.codecs = augments[0].codecs
        items = list(range(rank, min(len(self), limit or len(self)), world))
        batches = _EvalBatches(self._source, items, batch_size)
        batches.names, batches.device = (self.name,), device
        for raw, batch in ready(batches, self.config, augments):
            if batch is None:
                raise DataError(
                    f"no clip of a whole batch of {self.name} can be decoded, first:"
                    f" {raw.bad[0].clip} ({raw.bad[0].reason})"
                )
            yield batch
