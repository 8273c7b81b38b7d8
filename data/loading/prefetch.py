"""From micro-batches by number to tensors: worker processes make them, threads run the DALI graph
some micro-batches ahead of their use.

What a micro-batch is, is the business of whoever fills in `Batches`: prepared data sets
(data/loading/loader.py), benchmarks (finetune/inputs/loader.py).
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from allinone.common.errors import GraphError
from allinone.common.processes import forkserver_context, live_and_die_with_parent
from allinone.data.config import DataConfig
from allinone.data.loading.sampling import SampleChoices

if TYPE_CHECKING:
    from allinone.data.loading.dali_pipeline import DaliPipeline, Media


class Visual(Protocol):
    """One clip of a sample, chosen and read."""

    @property
    def media(self) -> Media: ...

    @property
    def choices(self) -> SampleChoices: ...


RawT = TypeVar("RawT")
"""A micro-batch before the DALI graph."""
BatchT = TypeVar("BatchT")


class Batches(Dataset[RawT], Generic[RawT, BatchT]):
    """Micro-batches by number. `__getitem__` runs in the worker processes, all else in the training
    process."""

    def visuals(self, raw: RawT) -> Sequence[Visual]:
        """The clips that the graph turns into pixels, in order."""
        raise NotImplementedError

    def without(self, raw: RawT, failed: dict[int, str]) -> RawT:
        """The micro-batch after the graph has refused some clips (number among `visuals` →
        reason)."""
        raise NotImplementedError

    def finish(self, raw: RawT, pixels: Tensor | None) -> BatchT:
        """The batch of a micro-batch and its pixels [clips, T, 3, S, S]; None where it has no
        clip."""
        raise NotImplementedError


def _pixels(
    raw: RawT, batches: Batches[RawT, BatchT], augment: DaliPipeline
) -> tuple[RawT, Tensor | None]:
    """Run the graph, without the clips that it refuses; None where none is left."""
    while visuals := batches.visuals(raw):
        try:
            return raw, augment(
                [visual.media for visual in visuals], [visual.choices for visual in visuals]
            )
        except GraphError as error:
            raw = batches.without(raw, error.bad)
    return raw, None


class Endless(Sampler[int]):
    """0, 1, 2, …"""

    def __iter__(self) -> Iterator[int]:
        k = 0
        while True:
            yield k
            k += 1


def ready(
    batches: Batches[RawT, BatchT],
    config: DataConfig,
    augments: Sequence[DaliPipeline],
    sampler: Sampler[int] | None = None,
) -> Iterator[tuple[RawT, BatchT]]:
    """Run the graphs in threads, in turn, and hand over in order, two micro-batches per graph
    ahead. Errors of workers and graphs come out here."""
    loader = _loader(batches, config, sampler)
    threads = [ThreadPoolExecutor(1, thread_name_prefix="augment") for _ in augments]
    done: queue.Queue[Any] = queue.Queue(maxsize=2 * len(augments))
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                done.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def make(raw: RawT, augment: DaliPipeline) -> tuple[RawT, BatchT]:
        raw, pixels = _pixels(raw, batches, augment)
        return raw, batches.finish(raw, pixels)

    def work() -> None:
        try:
            for k, raw in enumerate(loader):
                turn = k % len(augments)
                if not put(threads[turn].submit(make, raw, augments[turn])):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
            put(error)

    reader = threading.Thread(target=work, name="read", daemon=True)
    reader.start()

    # after an error somewhere else, nobody closes this generator before the modules that it needs
    # are gone
    @atexit.register
    def end() -> None:
        if not stop.is_set():
            stop.set()
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
    batches: Batches[RawT, BatchT], config: DataConfig, sampler: Sampler[int] | None
) -> DataLoader[RawT]:
    options: dict[str, Any] = {}
    if config.workers:
        options.update(
            multiprocessing_context=forkserver_context(),
            prefetch_factor=config.prefetch,
            worker_init_fn=live_and_die_with_parent,
        )
    return DataLoader(
        batches, batch_size=None, num_workers=config.workers, sampler=sampler, **options
    )
