"""Items of a benchmark → batches, for training (endless, elastic) and evaluation (fixed batches).

What is shared with pre-training is in data/loading/: the sample, the makers of micro-batches,
replacement of bad items, prefetching. Here is what is special: an item may show several clips (or
none), has several texts, and carries a target.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from allinone.data.config import ClipConfig, DataConfig, TextPadding
from allinone.data.loading.augmentation import eval_augmentations, training_augmentations
from allinone.data.loading.batch import BadClip
from allinone.data.loading.batch_maker import EvalBatchMaker
from allinone.data.loading.mixture import Order
from allinone.data.loading.prefetch import prefetch, training_batches
from allinone.data.loading.replacement import ReplacementSampler
from allinone.data.loading.samples import MicroBatch, Sample, Visual
from allinone.data.loading.sampling import generator
from allinone.data.loading.text_padding import computed_tokens, pad_texts
from allinone.data.text import Tokenizer
from allinone.finetune.inputs.batch import Example, ExampleFn, TaskBatch
from allinone.finetune.inputs.clip_reader import MediaReader
from allinone.finetune.inputs.prompts import encode


class TaskSource:
    """Makes samples of one split's items.

    Args:
        name: Name of the benchmark and split; keys the random choices.
        ids: Names of the items.
        make: Item → what the model is asked.
        reader: Reads the visuals.
        clip: Frames per clip, image size and text length.
    """

    def __init__(
        self, name: str, ids: Sequence[str], make: ExampleFn, reader: MediaReader, clip: ClipConfig
    ) -> None:
        self.name = name
        self.ids = ids
        self.make = make
        self.reader = reader
        self.clip = clip
        self._views = 1
        self._tokenizer: Tokenizer | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_tokenizer": None}  # every reader process loads its own

    def __len__(self) -> int:
        return len(self.ids)

    def key(self, row: int) -> str:
        """Return the item's name."""
        return self.ids[row]

    def with_views(self, views: int) -> TaskSource:
        """Return a copy whose evaluation takes this number of views of each clip."""
        source = copy.copy(self)
        source._views = views
        return source

    def train_sample(self, row: int, random: np.random.Generator) -> Sample:
        """Make a training sample; raises DecodeError if any of its media cannot be decoded."""
        return self._sample(row, random, views=1)

    def eval_sample(self, row: int) -> Sample:
        """Make an evaluation sample; raises DecodeError if any of its media cannot be decoded."""
        return self._sample(row, None, self._views)

    def _sample(self, row: int, random: np.random.Generator | None, views: int) -> Sample:
        self._tokenizer = self._tokenizer or Tokenizer()
        example = self.make(row, random)
        visuals = [visual for look in example.looks for visual in self.reader(look, random, views)]
        texts = [encode(self._tokenizer, text, self.clip.max_text_len) for text in example.texts]
        # an embedding pass of clips has no text: K = 0
        ids = mask = np.zeros((0, self.clip.max_text_len), np.int64)
        if texts:
            ids = np.stack([text.ids for text in texts])
            mask = np.stack([text.mask for text in texts])
        target = example.target
        if not isinstance(target, np.ndarray):
            # class numbers; soft scores of VQAv2 and pairs of VCR are float32 arrays already
            target = np.asarray(target, np.int64)
        return Sample(
            row=row,
            name=self.ids[row],
            visuals=visuals,
            arrays={
                "text_ids": ids,
                "text_mask": mask,
                "target": target,
                "groups": np.asarray(example.group, np.int64),
            },
            digest=_digest(self.ids[row], example, visuals, ids, target),
            counts={
                "lost": sum(text.lost for text in texts),
                "shortened": sum(text.shortened for text in texts),
            },
        )


def _digest(
    name: str,
    example: Example,
    visuals: Sequence[Visual],
    ids: NDArray[np.int64],
    target: NDArray[np.generic],
) -> int:
    """Return a 63-bit hash of everything that was chosen."""
    shown = [(look.media, look.painted) for look in example.looks]
    content = hashlib.blake2b(
        repr((name, shown, [visual.choices for visual in visuals])).encode(), digest_size=8
    )
    content.update(ids.tobytes())
    content.update(target.tobytes())
    # 63 bits fit into a signed 64-bit integer
    return int.from_bytes(content.digest(), "little") >> 1


def collate_items(
    micro_batch: MicroBatch,
    pixels: Tensor | None,
    *,
    clip: ClipConfig,
    views: int,
    device: torch.device,
    text_padding: TextPadding = "full",
) -> TaskBatch | None:
    """Build a batch on the device.

    Args:
        micro_batch: Samples of the items that could be shown.
        pixels: float32 [B * C * V, T, 3, S, S] in the order of the samples' visuals; None if there
            are no visuals.
        clip: Frames per clip and image size.
        views: V, views of each clip.
        device: Where the tensors go.
        text_padding: As in DataConfig.

    Returns:
        The batch; None if no item is left.
    """
    samples = micro_batch.samples
    if not samples:
        return None
    # visuals are ordered by clip, then by view, so a reshape separates the two
    clips, side = len(samples[0].visuals) // views, clip.image_size
    shape = (len(samples), clips, views, clip.num_frames, 3, side, side)
    tensors = {
        name: torch.from_numpy(micro_batch.stack(name))
        for name in ("text_ids", "text_mask", "target", "groups")
    }
    tensors, lengths = pad_texts(tensors, ("text_ids", "text_mask"), text_padding)
    return TaskBatch(
        # Items that are texts alone have C = 0, so this tensor is empty.
        pixels=torch.zeros(shape) if pixels is None else pixels.reshape(shape),
        **tensors,
        items=tuple(sample.row for sample in samples),
        clips=tuple(sample.name for sample in samples),
        first_position=micro_batch.first_position,
        digest=micro_batch.digest,
        lost=micro_batch.total("lost"),
        shortened=micro_batch.total("shortened"),
        bad=micro_batch.bad,
        text_lengths=lengths,
    ).to(device)


LENGTH_SAMPLE = 128
"""Items from which the mean length of texts is estimated."""


class TaskStream:
    """The training split as the trainer wants it: endless, the same at any world size.

    The order is a function of the seed, the state one number.

    Args:
        source: Makes the samples.
        config: How media are read, decoded and augmented.
        seed: Seed of the order and of all random choices.
        bad_clips: Folder of the bad-clip log; None writes none.
    """

    def __init__(
        self, source: TaskSource, config: DataConfig, *, seed: int, bad_clips: Path | None
    ) -> None:
        self._source = source
        self._config = config
        self._seed = seed
        self._bad_clips = bad_clips
        # a mixture of one set, so that order and resuming work as in pre-training
        self._order = Order([len(source.ids)], [1.0], seed)

    def describe(self) -> str:
        """Return split and size in one line."""
        return f"data: {self._source.name} {len(self._source.ids):,} items"

    def text_tokens(self, micro_batch: int) -> float | None:
        """Tokens per text that the model computes, on average over a sample of items; None without
        texts.

        Args:
            micro_batch: Items per batch.
        """
        source, tokenizer, random = self._source, Tokenizer(), generator(0, "text lengths", 0, 0)
        limit, texts = source.clip.max_text_len, 0
        lengths: list[int] = []
        for row in random.integers(len(source), size=LENGTH_SAMPLE):
            made = source.make(int(row), random).texts
            texts = max(texts, len(made))
            lengths += [int(encode(tokenizer, text, limit).mask.sum()) for text in made]
        if not lengths:
            return None
        padding = self._config.text_padding
        return computed_tokens(np.array(lengths), padding, micro_batch * texts, limit)

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[TaskBatch]:
        """Yield batches without end.

        Args:
            first: Position of the first item of all ranks.
            rank: This data-parallel rank; its k-th batch holds the positions from
                first + (k * world + rank) * micro_batch on.
            world: Number of data-parallel ranks.
            micro_batch: Items per batch.
            device: Where the tensors go.

        Raises:
            BadClipShareError: Too many items cannot be used.
        """
        source, config = self._source, self._config
        # EgoMCQ shows five clips per item, VCR two pictures, a text alone none
        visuals = max(1, len(source.make(0, generator(0, "", 0, 0)).looks))
        augmentations = training_augmentations(source.clip, config, device, micro_batch * visuals)
        # before workers start: they hand streams of these codecs to DALI and decode the others
        source.reader.codecs = augmentations[0].codecs
        maker = ReplacementSampler(
            [source],
            self._order,
            seed=self._seed,
            first=first,
            rank=rank,
            world=world,
            micro_batch=micro_batch,
        )
        collate = partial(
            collate_items,
            clip=source.clip,
            views=1,
            device=device,
            text_padding=config.text_padding,
        )
        yield from training_batches(maker, collate, config, augmentations, self._bad_clips)


class _Numbers(Sampler[int]):
    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def evaluation_batches(
    source: TaskSource,
    numbers: Sequence[Sequence[int]],
    wanted: Sequence[int],
    config: DataConfig,
    device: torch.device,
    *,
    views: int,
) -> Iterator[tuple[int, TaskBatch | None, tuple[BadClip, ...]]]:
    """Yield some of the fixed batches of an evaluation, in order.

    Args:
        source: Makes the samples.
        numbers: Item numbers of every batch of the split.
        wanted: Which batches to make.
        config: How media are read and decoded.
        device: Where the tensors go.
        views: V, views of each clip.

    Yields:
        (k, batch, missing): the number of the batch, the batch without the items that cannot be
        shown (None if there are no others), and those items. `missing[i].clip` is an item's number.
    """
    if not wanted:
        return
    visuals = max(1, len(source.make(numbers[wanted[0]][0], None).looks)) * views
    augmentations = eval_augmentations(
        source.clip, config, device, max(map(len, numbers)) * visuals
    )
    source.reader.codecs = augmentations[0].codecs
    maker = EvalBatchMaker(source.with_views(views), numbers, name=str)
    collate = partial(
        collate_items,
        clip=source.clip,
        views=views,
        device=device,
        text_padding=config.text_padding,
    )
    made = prefetch(maker, collate, config, augmentations, _Numbers(wanted))
    for k, (raw, batch) in zip(wanted, made, strict=True):
        yield k, batch, raw.bad
