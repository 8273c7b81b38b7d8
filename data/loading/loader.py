"""Prepared data → batches.

Reader processes read, choose, decode, tokenise and mask (`ClipSource`); threads of the training
process run the augmentation ahead of training (data/loading/prefetch.py).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from allinone.common.errors import LASTING, DataError, LostDataError, StorageError
from allinone.data.captions import sample_lengths
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec, TextPadding
from allinone.data.decoding.codecs import PixelLimitError, dali_reads, require_pixels
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.segment import VideoSegment, load_segment
from allinone.data.index import Index
from allinone.data.loading.augmentation import eval_augmentations, training_augmentations
from allinone.data.loading.batch import Batch
from allinone.data.loading.batch_maker import EvalBatchMaker
from allinone.data.loading.clip_input import ClipWindow, choose_frames
from allinone.data.loading.mixture import Order
from allinone.data.loading.open_files import OpenFile, retried
from allinone.data.loading.prefetch import prefetch, training_batches
from allinone.data.loading.remote_files import RemoteFile, open_shards
from allinone.data.loading.replacement import ReplacementSampler
from allinone.data.loading.samples import MicroBatch, Pixels, Sample, Visual
from allinone.data.loading.sampling import SampleChoices, generator
from allinone.data.loading.text_padding import pad_texts
from allinone.data.text import Tokenizer, mask_words


class ClipSource:
    """Reads and decodes the clips of one prepared split.

    Args:
        spec: Folder and split.
        clip: Frames per clip and text length.
        config: How clips are read, decoded, augmented and masked.
        number: Number of the data set in its mixture.
    """

    def __init__(
        self, spec: DatasetSpec, clip: ClipConfig, config: DataConfig, number: int = 0
    ) -> None:
        self.index = Index(spec.path, spec.split)
        self.name = spec.name
        self.codecs: frozenset[str] = frozenset()
        """Codecs that are handed over as a trimmed stream, for DALI to decode."""
        self._clip = clip
        self._config = config
        self._number = number
        self._shards = open_shards(spec.path, config)
        self._tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tokenizer": None}  # every reader process loads its own

    def __len__(self) -> int:
        return len(self.index)

    def key(self, row: int) -> str:
        """Return the clip's name."""
        return self.index[row]["key"]

    def train_sample(self, row: int, random: np.random.Generator) -> Sample:
        """Make a training sample; raises DecodeError for a bad clip."""
        return self._sample(row, random, random)

    def eval_sample(self, row: int) -> Sample:
        """Make an evaluation sample; raises DecodeError for a bad clip.

        Words are masked at random, but the same ones every time.
        """
        return self._sample(row, None, generator(0, self.name, 0, row))

    def choose(
        self, row: dict[str, Any], random: np.random.Generator | None, captions: int
    ) -> SampleChoices:
        """Choose caption, frames and augmentation of a clip.

        Args:
            row: A row of the index.
            random: The sample's generator in training; None in evaluation.
            captions: How many captions training chooses from.

        Returns:
            The choices; frame numbers are those of the stored file.
        """
        window = ClipWindow.of_row(row)
        (choices,) = choose_frames(
            window, self._config, self._clip.num_frames, random, captions=captions
        )
        return choices

    def segment(self, row: dict[str, Any], wanted: Sequence[int]) -> VideoSegment:
        """Read what some frames need: a clip's own file, or a segment of a long video.

        Args:
            row: A row of the index.
            wanted: Display-order frame numbers in the stored file.

        Returns:
            The frames' GOPs as a video of their own, or the complete file.

        Raises:
            DataError: The shard is gone or too short, or the storage fails.
        """
        shard = self.index.folder / row["shard"]
        try:
            return retried(lambda: self._segment(row, wanted), shard, self._shards.close)
        except OSError as error:
            raise StorageError(
                f"shard {shard} cannot be read: {error}. This is the storage's fault, not the"
                " file's: once it works again, the same command continues"
            ) from error

    def _segment(self, row: dict[str, Any], wanted: Sequence[int]) -> VideoSegment:
        timeline = Timeline.of(row)
        if row["first_frame"] is None:  # a short clip: one read
            return VideoSegment(self._read(row), 0, row["frames"], timeline)
        shard = self._open(row)
        video = shard.range(row["offset"], row["size"])
        return load_segment(video, wanted, row["frames"], timeline, lambda: self._read(row))

    def _open(self, row: dict[str, Any]) -> OpenFile | RemoteFile:
        try:
            return self._shards[row["shard"]]
        except OSError as error:
            if error.errno not in LASTING:
                raise  # the storage is in trouble: a restarted run may read the shard
            path = self.index.folder / row["shard"]
            remedy = "restore it, or rerun the `allinone prepare` command that wrote it"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                remedy = "raise the limit (ulimit -n)"
            raise LostDataError(f"shard {path} cannot be opened ({error}); {remedy}") from error

    def _read(self, row: dict[str, Any]) -> bytes:
        # the descriptor lives as long as this object, even if another thread's read evicts it
        content = self._open(row).member(row["offset"], row["size"], row["hash"])
        if len(content) != row["size"]:
            raise DataError(
                f"shard {self.index.folder / row['shard']} is shorter than its index says; delete"
                " it, and rerun the `allinone prepare` command that wrote it"
            )
        return content

    def _sample(
        self, number: int, random: np.random.Generator | None, mask_random: np.random.Generator
    ) -> Sample:
        """Make a sample.

        Args:
            number: Row of the index.
            random: Draws caption, frames and augmentation; None in evaluation.
            mask_random: Draws the masked words; in training the same generator, after `random`.

        Raises:
            DecodeError: The clip is bad.
        """
        self._tokenizer = self._tokenizer or Tokenizer()
        tokenizer, config, row = self._tokenizer, self._config, self.index[number]
        choices = self.choose(row, random, len(row["captions"]))
        try:
            require_pixels(row["width"], row["height"], config.max_pixels)
        except PixelLimitError as error:
            raise DecodeError(str(error)) from error
        segment = self.segment(row, choices.frames)
        media: Pixels
        if self.codecs and dali_reads(row, self.codecs):
            # DALI decodes from the first packet on: only the needed GOPs are handed over, 0.18 to
            # 0.5 of the bytes
            media = segment.trim(choices.frames)
        else:
            media = decode_frames(
                segment.content,
                segment.numbers(choices.frames),
                segment.timeline,
                timeout_s=config.clip_timeout_s,
                max_pixels=config.max_pixels,
            )
        caption = row["captions"][choices.caption]
        ids, mask, words = tokenizer.encode(caption, self._clip.max_text_len)
        mlm_ids, labels = mask_words(
            ids,
            words,
            config.mask_prob,
            mask_random,
            tokenizer.mask_id,
            tokenizer.first_word_id,
            tokenizer.size,
        )
        return Sample(
            row=number,
            name=row["key"],
            visuals=[Visual(media, choices, self._clip.image_size)],
            arrays={
                "text_ids": ids,
                "text_mask": mask,
                "mlm_ids": mlm_ids,
                "mlm_labels": labels,
                "dataset_ids": np.array(self._number),
            },
            digest=choices.digest(row["key"], mlm_ids, labels),
            caption=caption,
        )


_TEXTS = ("text_ids", "text_mask", "mlm_ids", "mlm_labels")
"""Fields of a batch with one element per token."""


def collate_clips(
    micro_batch: MicroBatch,
    pixels: torch.Tensor | None,
    *,
    names: tuple[str, ...],
    device: torch.device,
    text_padding: TextPadding = "full",
) -> Batch | None:
    """Build a batch on the device.

    Args:
        micro_batch: What reader processes have made.
        pixels: float32 [B, T, 3, S, S]; None if no clip is left.
        names: Data sets by `dataset_ids`.
        device: Where the tensors go.
        text_padding: As in DataConfig.

    Returns:
        The batch; None if no clip is left.
    """
    if pixels is None:
        return None
    # everything is computed on the CPU and copied at the end: `nonzero` on the device would
    # make the host wait
    tensors: dict[str, Any] = {
        name: torch.from_numpy(micro_batch.stack(name)) for name in (*_TEXTS, "dataset_ids")
    }
    padded, lengths = pad_texts(tensors, _TEXTS, text_padding)
    tensors.update(padded)
    return Batch(
        pixels=pixels,
        **tensors,
        mlm_positions=(tensors["mlm_labels"].flatten() >= 0).nonzero().flatten(),
        dataset_names=names,
        clips=tuple(sample.name for sample in micro_batch.samples),
        captions=tuple(sample.caption for sample in micro_batch.samples),
        first_position=micro_batch.first_position,
        digest=micro_batch.digest,
        bad=micro_batch.bad,
        text_lengths=lengths,
    ).to(device)


class TrainStream:
    """The endless, deterministic, elastic stream of training batches over a mixture.

    Args:
        datasets: Prepared data sets with their weights.
        clip: Frames per clip, image size and text length.
        config: How clips are read, decoded, augmented and masked.
        seed: Seed of the order and of all random choices.
        bad_clips: Folder of the bad-clip log; None writes none.
    """

    def __init__(
        self,
        datasets: Sequence[DatasetSpec],
        clip: ClipConfig,
        config: DataConfig,
        *,
        seed: int,
        bad_clips: Path | None = None,
    ) -> None:
        self.config = config
        self._sources = [
            ClipSource(spec, clip, config, number) for number, spec in enumerate(datasets)
        ]
        self._specs = list(datasets)
        self._clip = clip
        self._seed = seed
        self._bad_clips = bad_clips
        sizes = [len(source) for source in self._sources]
        self._order = Order(sizes, [spec.weight for spec in datasets], seed, config.shuffle_window)
        self.dataset_names = tuple(source.name for source in self._sources)
        self.samples_per_epoch = sum(sizes)

    def describe(self) -> str:
        """Return one line per data set with its size and share."""
        total = sum(spec.weight for spec in self._specs)
        rows = zip(self._sources, self._specs, strict=True)
        return "\n".join(
            f"data: {source.name} {len(source):,} clips, {100 * spec.weight / total:.1f} % of"
            " the samples"
            for source, spec in rows
        )

    def text_lengths(self) -> list[NDArray[np.int64]]:
        """Tokens of a sample of captions, [CLS] and [SEP] included, not cut: one array [n]."""
        indexes = [source.index for source in self._sources]
        return [sample_lengths(indexes, [spec.weight for spec in self._specs])]

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Batch]:
        """Yield batches without end.

        Args:
            first: Position of the first sample of all ranks.
            rank: This data-parallel rank; its k-th batch holds the positions from
                first + (k * world + rank) * micro_batch on.
            world: Number of data-parallel ranks.
            micro_batch: Samples per batch.
            device: Where the tensors go.

        Raises:
            BadClipShareError: Too many clips cannot be used.
            DataError: Prepared data is missing or damaged.
        """
        augmentations = training_augmentations(self._clip, self.config, device, micro_batch)
        # before the readers start, which get a pickled copy of the sources
        for source in self._sources:
            source.codecs = augmentations[0].codecs
        maker = ReplacementSampler(
            self._sources,
            self._order,
            seed=self._seed,
            first=first,
            rank=rank,
            world=world,
            micro_batch=micro_batch,
        )
        collate = partial(
            collate_clips,
            names=self.dataset_names,
            device=device,
            text_padding=self.config.text_padding,
        )
        yield from training_batches(maker, collate, self.config, augmentations, self._bad_clips)


class EvalSet:
    """A prepared split for evaluation: every clip exactly once, nothing random, nothing replaced.

    Args:
        dataset: Folder and split.
        clip: Frames per clip, image size and text length.
        config: How clips are read, decoded and normalised.
    """

    def __init__(self, dataset: DatasetSpec, clip: ClipConfig, config: DataConfig) -> None:
        self._source = ClipSource(dataset, clip, config)
        self._clip = clip
        self.config = config
        self.name = self._source.name

    def __len__(self) -> int:
        return len(self._source)

    def batches(
        self,
        *,
        rank: int,
        world: int,
        batch_size: int,
        device: torch.device,
        limit: int | None = None,
    ) -> Iterator[Batch]:
        """Yield the batches of one rank; clips that do not decode are left out and named in `bad`.

        Args:
            rank: Takes the clips rank, rank + world, …
            world: Number of ranks.
            batch_size: Clips per batch; the last one may be shorter.
            device: Where the tensors go.
            limit: Only the first clips of the split.

        Raises:
            DataError: No clip of a batch can be decoded.
        """
        augmentations = eval_augmentations(self._clip, self.config, device, batch_size)
        self._source.codecs = augmentations[0].codecs
        # interleaved: ranks differ by one clip at most, at any `limit` and world size
        rows = range(rank, min(len(self), limit or len(self)), world)
        maker = EvalBatchMaker(
            self._source,
            [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)],
        )
        collate = partial(
            collate_clips,
            names=(self.name,),
            device=device,
            text_padding=self.config.text_padding,
        )
        for raw, batch in prefetch(maker, collate, self.config, augmentations):
            if batch is None:
                raise DataError(
                    f"no clip of a batch of {self.name} can be decoded, first:"
                    f" {raw.bad[0].clip} ({raw.bad[0].reason})"
                )
            yield batch
