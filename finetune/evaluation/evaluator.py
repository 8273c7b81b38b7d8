"""Scores a split at any world size: fixed batches are distributed over the ranks, every item is
evaluated exactly once, and nothing is replaced.

The composition of a batch influences its items' scores through rounding. Batches are the same at
every world size, so results are equal byte for byte. Letters: N items of a split, n items of a
batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from allinone.common.errors import DataError
from allinone.data.config import ClipConfig, DataConfig
from allinone.engine.distributed import topology
from allinone.engine.distributed.signals import RunInterrupted, StopSignals
from allinone.engine.distributed.watchdog import keepalive
from allinone.finetune.annotations.common import place_in_order
from allinone.finetune.annotations.schema import ClipChoiceItem, Media, Split
from allinone.finetune.evaluation.cache import BatchResult, Cache
from allinone.finetune.inputs.batch import Example, ExampleFn, TaskBatch
from allinone.finetune.inputs.clip_reader import MediaReader
from allinone.finetune.inputs.loader import TaskSource, evaluation_batches
from allinone.finetune.inputs.media_library import MediaLibrary
from allinone.finetune.task_model.model import TaskModel

ScoreFn = Callable[[TaskModel, TaskBatch], Tensor]
"""Values of a batch, float32 [n, ...]."""


@dataclass(frozen=True)
class SplitScores:
    """Values of a complete split, the same on every rank."""

    values: NDArray[np.float32]
    """[N, ...]; NaN for missing items."""
    missing: dict[int, str]
    """Number of an item that could not be shown → reason."""
    lost: int
    """Texts whose deciding part was cut."""
    shortened: int
    """Texts of which any part was cut."""

    @property
    def cut(self) -> dict[str, int]:
        """Counts of cut texts, for the details of a result."""
        return {"texts_cut": self.lost, "texts_shortened": self.shortened}


@dataclass(frozen=True)
class EvaluationSettings:
    """How evaluation reads items."""

    clip: ClipConfig
    data: DataConfig
    views: int
    """Views per clip, whose scores are averaged."""
    batch: int
    """Items per batch."""
    quiet: bool = False
    """Show no progress bar."""


class Evaluator:
    """Runs a task's scoring over items.

    With `cache`, ranks work independently and finished batches are kept. Without it, every rank
    makes the same number of forward passes: under ZeRO 3 a forward pass is a collective.

    Args:
        model: Called by the score functions.
        library: The media files of the splits.
        settings: How items are read.
        device: Of the model and the batches.
        cache: Keeps finished batches.
    """

    def __init__(
        self,
        model: TaskModel,
        library: MediaLibrary,
        settings: EvaluationSettings,
        device: torch.device,
        cache: Cache | None = None,
    ) -> None:
        self._model = model
        self._library = library
        self._cache = cache
        self.settings = settings
        self.device = device
        layout = topology.current()
        self.rank = layout.data_rank
        self.world = layout.data_world
        self._group = layout.data_group
        self.seconds = 0.0
        """Time of this rank inside forward passes, without reading and decoding."""
        self._signals: StopSignals | None = None

    def watch(self, signals: StopSignals) -> None:
        """Stop between two batches after a signal; finished batches are kept."""
        self._signals = signals

    @property
    def collective(self) -> bool:
        """Whether every rank makes the same number of passes, as ZeRO 3 requires."""
        return self._cache is None

    def run(
        self, stage: str, name: str, ids: Sequence[str], make: ExampleFn, score: ScoreFn
    ) -> SplitScores:
        """Score all items of a split. Collective.

        Args:
            stage: What is computed; part of the cache key and of the progress bar's label.
            name: Name of the split.
            ids: Ids of the N items.
            make: Item number → example.
            score: Batch → values.

        Raises:
            DataError: None of the items can be shown.
            RunInterrupted: A signal arrived.
        """
        # None: evaluation makes no random choices
        examples = [make(number, None) for number in range(len(ids))]
        batches = _fixed_batches(examples, self.settings.batch)
        reader = MediaReader(self._library, self.settings.clip, self.settings.data)
        source = TaskSource(name, ids, make, reader, self.settings.clip)
        contents = (
            [f"{stage}|{[(n, self._content(examples[n])) for n in numbers]}" for numbers in batches]
            if self._cache
            else []
        )
        training = self._model.training  # validation interrupts training
        self._model.eval()
        try:
            with torch.no_grad():
                mine = dict(self._results(stage, source, batches, contents, examples, score))
        finally:
            self._model.train(training)
        parts: list[Any] = [mine]
        if self.world > 1:
            parts = [None] * self.world
            dist.all_gather_object(parts, mine, group=self._group)
        joined = {k: result for part in parts for k, result in part.items()}
        return _join(list(joined.values()), len(ids), name)

    def _content(self, example: Example) -> str:
        shown = [
            (self._library.content(look.media), look.media.start_s, look.media.end_s, look.painted)
            for look in example.looks
        ]
        return repr((shown, example.texts))

    def _results(
        self,
        stage: str,
        source: TaskSource,
        batches: Sequence[Sequence[int]],
        contents: Sequence[str],
        examples: Sequence[Example],
        score: ScoreFn,
    ) -> Iterator[tuple[int, BatchResult]]:
        """(number of the batch, result) of this rank's share."""
        todo: list[int] = []
        # Batches are dealt round-robin: their composition does not depend on the world size.
        for k in range(self.rank, len(batches), self.world):
            known = self._cache.get(contents[k]) if self._cache else None
            if known is None:
                todo.append(k)
            else:
                yield k, known
        # Without a cache, todo differs by at most one batch between ranks; all make equal rounds.
        rounds = len(todo) if self._cache else -(-len(batches) // self.world)
        computed = self._compute(source, batches, todo, score)
        quiet = self.settings.quiet or self.rank > 0
        for _ in tqdm(
            range(rounds), desc=f"{source.name} {stage}", unit="batch", disable=quiet or rounds < 2
        ):
            keepalive()
            if self._signals and self._signals.received:
                raise RunInterrupted(
                    f"{self._signals.received}: the same command continues the evaluation of"
                    f" {source.name}"
                )
            k, result = next(computed, (-1, None))
            if result is None:
                # This rank has no batches left, but other ranks' forward passes wait for it.
                self._pass_with_nothing(source, examples[0], score)
                continue
            if self._cache:
                self._cache.put(contents[k], result)
            yield k, result

    def _compute(
        self,
        source: TaskSource,
        batches: Sequence[Sequence[int]],
        todo: Sequence[int],
        score: ScoreFn,
    ) -> Iterator[tuple[int, BatchResult]]:
        settings = self.settings
        for k, batch, bad in evaluation_batches(
            source, batches, todo, settings.data, self.device, views=settings.views
        ):
            missing = {int(clip.clip): clip.reason for clip in bad}
            if batch is None:  # no item of the batch could be shown
                if not self._cache:  # other ranks wait for this rank's forward passes
                    self._pass_with_nothing(source, source.make(batches[k][0], None), score)
                yield k, BatchResult((), np.zeros((0,), np.float32), missing, 0, 0)
                continue
            start = time.perf_counter()
            values = score(self._model, batch).float().cpu().numpy()  # .cpu() waits for the device
            self.seconds += time.perf_counter() - start
            yield k, BatchResult(batch.items, values, missing, batch.lost, batch.shortened)

    def _pass_with_nothing(self, source: TaskSource, example: Example, score: ScoreFn) -> None:
        """Make the forward passes of a batch on a grey picture and an empty text."""
        clip, looks, texts = source.clip, len(example.looks), len(example.texts)
        pixels = torch.zeros(
            1, looks, self.settings.views, clip.num_frames, 3, clip.image_size, clip.image_size
        )
        ids = torch.zeros(1, texts, clip.max_text_len, dtype=torch.int64)
        number = torch.zeros(1, dtype=torch.int64)
        score(
            self._model,
            TaskBatch(pixels, ids, ids + 1, number, number, (0,), ("",), 0).to(self.device),
        )


def _fixed_batches(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Item numbers of each batch; items that show the same media are adjacent: decoded once."""

    def key(number: int) -> tuple[str, float, float, int]:
        looks = examples[number].looks
        if not looks:
            return "", 0.0, 0.0, number
        media = looks[0].media
        return media.path, media.start_s or 0.0, media.end_s or 0.0, number

    # not by the order of the file: in MSR-VTT-QA 24 questions share a video
    order = sorted(range(len(examples)), key=key)
    return [order[start : start + size] for start in range(0, len(order), size)]


def _join(results: Sequence[BatchResult], items: int, name: str) -> SplitScores:
    """The results of all batches in the order of the items."""
    missing = {number: reason for result in results for number, reason in result.missing.items()}
    scored = [result for result in results if result.items]
    if items and not scored:
        reason = next(iter(missing.values()), "")
        raise DataError(f"none of the {items:,} items of {name} can be shown, the first: {reason}")
    seen = np.zeros(items, np.int64)
    for result in results:
        np.add.at(seen, [*result.items, *result.missing], 1)
    assert (seen == 1).all(), "an item was evaluated twice or not at all"
    shape = scored[0].values.shape[1:] if scored else ()
    # missing items stay NaN: metrics count them as wrong
    values = np.full((items, *shape), np.nan, np.float32)
    for result in scored:
        values[list(result.items)] = result.values
    lost = sum(result.lost for result in results)
    return SplitScores(values, missing, lost, sum(result.shortened for result in results))


def subset(split: Split, limit: int) -> Split:
    """Choose at most `limit` items of a split (0: all) for validation during training.

    They are chosen by the hashes of their ids and keep the order of the split.
    """
    if not limit or len(split.items) <= limit:
        return split
    by_hash = sorted(split.items, key=lambda item: place_in_order(item.id))
    chosen = {item.id for item in by_hash[:limit]}
    return replace(split, items=[item for item in split.items if item.id in chosen])


def media_of(split: Split) -> list[Media]:
    """All media that a split's items show, with repetitions."""
    return [
        clip
        for item in split.items
        for clip in (item.clips if isinstance(item, ClipChoiceItem) else (item.media,))
    ]
