"""Makes batches ahead of their use: reader processes decode, threads run the augmentation.

What a micro-batch holds is decided by a BatchMaker, what a batch is by a `collate` function.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, SequentialSampler

from allinone.common.errors import GraphError
from allinone.data.config import DataConfig
from allinone.data.loading.augmentation import Augmentation
from allinone.data.loading.bad_clips import BadClipLog
from allinone.data.loading.batch_maker import BatchMaker
from allinone.data.loading.readers import ReaderContext, ReaderDiedError
from allinone.data.loading.replacement import ReplacementSampler
from allinone.data.loading.samples import MicroBatch

BatchT = TypeVar("BatchT")
Collate = Callable[[MicroBatch, Tensor | None], BatchT]
"""Micro-batch and pixels [visuals, T, 3, S, S] (None without any visual) → batch."""


log = logging.getLogger(__name__)

REPLACEMENTS = 8
"""How often dead readers are replaced before the run ends."""


class Rest(Sampler[int]):
    """The numbers of a sampler without the first ones.

    Args:
        numbers: A sampler.
        skipped: How many are left out.
    """

    def __init__(self, numbers: Iterable[int], skipped: int) -> None:
        self._numbers, self._skipped = numbers, skipped

    def __iter__(self) -> Iterator[int]:
        return islice(iter(self._numbers), self._skipped, None)


class Endless(Sampler[int]):
    """0, 1, 2, …"""

    def __iter__(self) -> Iterator[int]:
        k = 0
        while True:
            yield k
            k += 1


def augment(
    micro_batch: MicroBatch, maker: BatchMaker, augmentation: Augmentation
) -> tuple[MicroBatch, Tensor | None]:
    """Turn the visuals of a micro-batch into pixels.

    Args:
        micro_batch: What `maker` made.
        maker: Replaces or leaves out the samples that DALI cannot decode.
        augmentation: DALI's pipeline or its torch twin.

    Returns:
        The micro-batch that was finally used, and pixels float32 [visuals, T, 3, S, S]; None if no
        visual is left.
    """
    while visuals := micro_batch.visuals:
        try:
            return micro_batch, augmentation(
                [visual.media for visual in visuals], [visual.choices for visual in visuals]
            )
        except GraphError as error:
            owners = micro_batch.owners
            failed = {owners[i]: reason for i, reason in error.bad.items()}
            micro_batch = maker.without(micro_batch, failed)
    return micro_batch, None


def training_batches(
    maker: ReplacementSampler,
    collate: Collate[BatchT | None],
    config: DataConfig,
    augmentations: Sequence[Augmentation],
    bad_clips: Path | None,
) -> Iterator[BatchT]:
    """Yield complete batches without end, and log the clips that were replaced in each.

    Args:
        maker: Makes micro-batches in which bad clips are replaced.
        collate: As for `prefetch`.
        config: As for `prefetch`.
        augmentations: As for `prefetch`.
        bad_clips: Folder of the bad-clip log; None writes none.

    Raises:
        BadClipShareError: Too many clips cannot be used.
    """
    log = BadClipLog(bad_clips, maker.rank, config.max_bad_share)
    for raw, batch in prefetch(maker, collate, config, augmentations, Endless()):
        assert batch is not None  # every position is filled, or an error is raised
        log.add(maker.micro_batch, raw.bad)
        yield batch


class _Handover:
    """A bounded queue between two threads; its consumer may stop taking at any time."""

    def __init__(self, size: int) -> None:
        self._items: queue.Queue[Any] = queue.Queue(maxsize=size)
        self.stopped = threading.Event()
        """Set by the consumer."""
        self.get = self._items.get

    def put(self, item: Any) -> bool:
        """Wait for room and add an item; False once the consumer has stopped."""
        # Never block for good: after `stopped` nobody takes from the queue any more.
        while not self.stopped.is_set():
            try:
                self._items.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def prefetch(
    maker: BatchMaker,
    collate: Collate[BatchT],
    config: DataConfig,
    augmentations: Sequence[Augmentation],
    sampler: Sampler[int] | None = None,
) -> Iterator[tuple[MicroBatch, BatchT]]:
    """Yield batches in order, made up to two micro-batches per augmentation ahead.

    Args:
        maker: Makes micro-batches in reader processes.
        collate: Builds a batch, in a thread of this process.
        config: Reader processes and their prefetching.
        augmentations: Each runs in a thread of its own; micro-batches are dealt in turn.
        sampler: Numbers of the micro-batches; default: all of `maker`, once.

    Yields:
        (the micro-batch that was finally used, its batch).

    Raises:
        ReaderDiedError: Reader processes died twice at one clip, or too often.
        Exception: Any other error of readers and augmentations is raised here.
    """
    # one thread each, because a DALI pipeline runs one batch at a time
    threads = [ThreadPoolExecutor(1, thread_name_prefix="augment") for _ in augmentations]
    # two each: one in work and one waiting; more would only hold pixels on the device
    done = _Handover(2 * len(augmentations))

    def make(micro_batch: MicroBatch, augmentation: Augmentation) -> tuple[MicroBatch, BatchT]:
        micro_batch, pixels = augment(micro_batch, maker, augmentation)
        return micro_batch, collate(micro_batch, pixels)

    def deliver(k: int, micro_batch: MicroBatch) -> bool:
        turn = k % len(augmentations)
        # The queue holds futures in the order of submission: threads may finish in any order,
        # batches come out in this one.
        return done.put(threads[turn].submit(make, micro_batch, augmentations[turn]))

    readers = _Readers(maker, config, sampler, done, deliver)
    readers.start()

    # After an error elsewhere nobody closes this generator before the modules it needs are gone.
    @atexit.register
    def end() -> None:
        if not done.stopped.is_set():
            done.stopped.set()
            atexit.unregister(end)
            readers.join(timeout_s=5)
            for thread in threads:
                thread.shutdown(wait=False, cancel_futures=True)

    try:
        while (item := done.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.result()
    finally:
        end()


class _Readers:
    """Delivers the micro-batches in order, and replaces reader processes that die.

    All readers are replaced together, because the dead one may have held a lock that the others
    wait for. Each set of readers has a thread of its own, which is left behind: it may wait for
    good for a batch of which the dead reader sent a half. Micro-batches are pure functions of their
    numbers, so the next set continues with the same data.

    Args:
        maker: Makes micro-batches in reader processes.
        config: Reader processes and their prefetching.
        sampler: Numbers of the micro-batches; default: all of `maker`, once.
        done: Gets an error that ends the batches, or None at their end.
        deliver: Takes the k-th micro-batch; returns False once nobody wants more.
    """

    def __init__(
        self,
        maker: BatchMaker,
        config: DataConfig,
        sampler: Sampler[int] | None,
        done: _Handover,
        deliver: Callable[[int, MicroBatch], bool],
    ) -> None:
        self._maker, self._config = maker, config
        self._sampler = SequentialSampler(maker) if sampler is None else sampler  # type: ignore[arg-type]
        self._done, self._deliver = done, deliver
        self._lock = threading.Lock()
        self._set = 0
        """Number of the current set of readers."""
        self._delivered = 0
        self._deaths: list[str] = []
        """Clips that readers died at."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start a set of readers and its thread."""
        self._thread = threading.Thread(
            target=self._read, args=(self._set,), name="read", daemon=True
        )
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the current thread."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _read(self, number: int) -> None:
        workers = self._config.readers
        context = ReaderContext(workers) if workers else None
        try:
            sampler = Rest(self._sampler, self._delivered)
            made = iter(_loader(self._maker, self._config, sampler, context))
            if context is not None:
                replace = partial(self._replace, number)
                context.watch(self._done.stopped, self._maker.clip_name, replace)
            for micro_batch in made:
                if not self._hand_over(number, micro_batch):
                    return
            self._end(number, None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            # the DataLoader's own error for a dead reader names its number only
            death = None if context is None else context.death(self._maker.clip_name)
            if death is not None:
                self._replace(number, death)
            else:
                self._end(number, error)

    def _hand_over(self, number: int, micro_batch: MicroBatch) -> bool:
        """Deliver a micro-batch, unless its readers have been replaced."""
        with self._lock:
            if number != self._set or not self._deliver(self._delivered, micro_batch):
                return False
            self._delivered += 1
            return True

    def _end(self, number: int, error: BaseException | None) -> None:
        with self._lock:
            if number == self._set:
                self._set = -1  # a reader that dies now is not replaced
                self._done.put(error)

    def _replace(self, number: int, death: ReaderDiedError) -> None:
        """Start another set of readers; after too many, or two at the same clip, give up."""
        with self._lock:
            if number != self._set or self._done.stopped.is_set():
                return
            again = bool(death.clip) and death.clip in self._deaths
            self._deaths.append(death.clip)
            if again or len(self._deaths) > REPLACEMENTS:
                self._set = -1
                self._done.put(death)
                return
            self._set += 1
            log.warning(
                "%s. The readers are replaced (%d of at most %d times); the data stays the same",
                death,
                len(self._deaths),
                REPLACEMENTS,
            )
            self.start()


def _loader(
    maker: BatchMaker,
    config: DataConfig,
    sampler: Sampler[int] | None,
    readers: ReaderContext | None,
) -> DataLoader[MicroBatch]:
    """Describe the reader processes; arguments as for `prefetch`.

    Args:
        maker: Makes micro-batches.
        config: Number of processes, and their prefetching.
        sampler: Numbers of the micro-batches.
        readers: Starts the processes; None without any.
    """
    options: dict[str, Any] = {}
    if readers is not None:  # without workers, DataLoader refuses these options
        options.update(
            multiprocessing_context=readers,
            prefetch_factor=config.prefetch,
            worker_init_fn=readers.worker_init_fn,
        )
    # batch_size=None: an item of `maker` is a micro-batch already. A generator of its own, because
    # the DataLoader would draw from torch's global one in the middle of a training step
    return DataLoader(
        maker,
        batch_size=None,
        num_workers=config.readers,
        sampler=sampler,
        generator=torch.Generator(),
        **options,
    )
