"""Makes batches ahead of their use: reader processes decode, threads run the augmentation.

What a micro-batch holds is decided by a BatchMaker, what a batch is by a `collate` function.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from allinone.common.errors import GraphError
from allinone.data.config import DataConfig
from allinone.data.loading.augmentation import Augmentation
from allinone.data.loading.bad_clips import BadClipLog
from allinone.data.loading.batch_maker import BatchMaker
from allinone.data.loading.readers import ReaderContext
from allinone.data.loading.replacement import ReplacementSampler
from allinone.data.loading.samples import MicroBatch

BatchT = TypeVar("BatchT")
Collate = Callable[[MicroBatch, Tensor | None], BatchT]
"""Micro-batch and pixels [visuals, T, 3, S, S] (None without any visual) → batch."""


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
        Exception: Any error of readers and augmentations is raised here.
    """
    readers = ReaderContext(config.readers) if config.readers else None
    loader = _loader(maker, config, sampler, readers)
    # one thread each, because a DALI pipeline runs one batch at a time
    threads = [ThreadPoolExecutor(1, thread_name_prefix="augment") for _ in augmentations]
    # two each: one in work and one waiting; more would only hold pixels on the device
    done = _Handover(2 * len(augmentations))

    def make(micro_batch: MicroBatch, augmentation: Augmentation) -> tuple[MicroBatch, BatchT]:
        micro_batch, pixels = augment(micro_batch, maker, augmentation)
        return micro_batch, collate(micro_batch, pixels)

    def read() -> None:
        try:
            made = iter(loader)
            if readers is not None:
                readers.watch(done.stopped, maker.clip_name, done.put)
            for k, micro_batch in enumerate(made):
                turn = k % len(augmentations)
                # The queue holds futures in the order of submission: threads may finish in any
                # order, batches come out in this one.
                if not done.put(threads[turn].submit(make, micro_batch, augmentations[turn])):
                    return
            done.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            # the DataLoader's own error for a dead reader names its number only
            done.put((readers and readers.death(maker.clip_name)) or error)

    reader = threading.Thread(target=read, name="read", daemon=True)
    reader.start()

    # After an error elsewhere nobody closes this generator before the modules it needs are gone.
    @atexit.register
    def end() -> None:
        if not done.stopped.is_set():
            done.stopped.set()
            atexit.unregister(end)
            reader.join(timeout=5)
            for thread in threads:
                thread.shutdown(wait=False, cancel_futures=True)

    try:
        while (item := done.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.result()
    finally:
        end()


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
    # batch_size=None: an item of `maker` is a micro-batch already
    return DataLoader(
        maker, batch_size=None, num_workers=config.readers, sampler=sampler, **options
    )
