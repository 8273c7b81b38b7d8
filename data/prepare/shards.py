"""Makes all shards of a source, or of a part of it.

Rows are read, files decoded in processes, and complete shards written, all at the same time.
"""

from __future__ import annotations

import io
import itertools
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from tqdm import tqdm

from allinone.data.prepare.existing import (
    MissingMediaGuard,
    existing_shards,
    needs_retry,
)
from allinone.data.prepare.listing import SourceListing
from allinone.data.prepare.merge import fragment_paths
from allinone.data.prepare.options import PrepareOptions
from allinone.data.prepare.pool import ProbePool
from allinone.data.prepare.probe import Limits
from allinone.data.prepare.worker import ClipTask, worker
from allinone.data.prepare.writer import (
    MAX_EXAMINED,
    ChangedFilesError,
    PendingShard,
    task_of,
    write_shard,
)

log = logging.getLogger(__name__)

MAX_WAITING = 2
"""Shards that may wait to be written while the next ones are decoded."""


@dataclass
class ShardCounts:
    """What one run has made."""

    shards: int = 0
    files: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Files by reason."""


def make_shards(
    options: PrepareOptions,
    listing: SourceListing,
    progress: bool,
    written: Callable[[str], None] | None = None,
) -> ShardCounts:
    """Make all shards of this part that do not exist yet.

    Args:
        options: Resolved options.
        listing: The source's rows.
        progress: Whether to show the progress.
        written: Called with the name of each shard once it is complete, in the writing thread.

    Returns:
        What was made, without the shards that existed.

    Raises:
        DataError: The source cannot be used, or its media folder is empty or wrong.
        OSError: The storage failed.
    """
    with closing(_ShardMaker(options, listing, progress, written)) as maker:
        return maker.run()


class _ShardMaker:
    """Decodes files and writes shards.

    Workers begin the next shards while the last files of one are decoded, which may take half an
    hour, and while it is written.

    Args:
        options: Resolved options.
        listing: The source's rows.
        progress: Whether to show the progress.
        written: See `make_shards`.
    """

    def __init__(
        self,
        options: PrepareOptions,
        listing: SourceListing,
        progress: bool,
        written: Callable[[str], None] | None,
    ) -> None:
        self._options = options
        self._written = written
        self._listing = listing
        self._counts = ShardCounts()
        self._existing, self._leftovers = existing_shards(options.out)
        self._media = MissingMediaGuard(options, found=bool(self._existing))
        self._progress = Progress(
            sum(listing.counts.values()), (options.part or (1, 1))[1], progress
        )
        self._rows_of_tasks: dict[int, tuple[PendingShard, int]] = {}
        """Number of a task → its shard and row."""
        self._complete: deque[PendingShard] = deque()
        self._writing: deque[tuple[PendingShard, Future[None]]] = deque()
        self._changed: list[tuple[PendingShard, list[int]]] = []
        """Shards with rows whose files must be examined again."""
        # A thread, so that copying and fsyncing a shard does not delay the hand-out of tasks; one,
        # so that the storage writes one large file at a time.
        self._writer = ThreadPoolExecutor(1)
        limits = Limits(
            options.min_frames,
            options.max_duration_s or 0.0,
            options.timeout_s or 0.0,
            options.max_pixels,
        )
        self._pool = ProbePool(options.workers, limits, worker)

    def run(self) -> ShardCounts:
        tasks = self._tasks()
        while True:
            self._examine(tasks)
            self._media.finish()
            self._write(0)
            if not self._changed:
                return self._counts
            tasks = self._changed_tasks()

    def _examine(self, tasks: Iterator[ClipTask]) -> None:
        for task, reason, result in self._pool.map(tasks):
            shard, number = self._rows_of_tasks.pop(task)
            if reason is None:
                shard.good[number] = result
                self._progress.add(files=1, clips=len(result.windows) or 1)
            else:
                shard.reasons[number] = (reason, str(result))
                self._progress.add(files=1, bad=1)
            if shard.complete:
                self._complete.append(shard)
            if reason == "missing":
                self._media.add_missing(result)
                self._media.check_mounted()
            else:
                self._media.found = True
            self._write(MAX_WAITING)

    def close(self) -> None:
        self._pool.close()
        # the shard that is being written is completed, those behind it are left to the next run
        self._writer.shutdown(cancel_futures=True)
        self._progress.close()

    def _tasks(self) -> Iterator[ClipTask]:
        task_numbers = itertools.count()
        for name, rows in self._listing.shards(*(self._options.part or (1, 1))):
            if name in self._existing and not needs_retry(self._options, name, rows):
                self._progress.skip(len(rows))
                continue
            # Leftovers are from a run that was killed. The old fragment is removed before the new
            # tar is written: a fragment must never exist with a tar that it does not describe.
            for path in (*self._leftovers.get(name, ()), *fragment_paths(self._options.out, name)):
                path.unlink(missing_ok=True)
            shard = PendingShard(name, rows)
            self._progress.add(files=len(shard.reasons), bad=len(shard.reasons))
            for reason, detail in shard.reasons.values():
                if reason == "missing":
                    self._media.add_missing(detail)
            if shard.complete:
                self._complete.append(shard)
                self._write(MAX_WAITING)
            for number in [number for number in range(len(rows)) if number not in shard.reasons]:
                self._rows_of_tasks[next(task_numbers)] = shard, number
                yield task_of(self._options, name, number, rows[number])

    def _changed_tasks(self) -> Iterator[ClipTask]:
        """Examine the files again that changed between examining and storing."""
        task_numbers = itertools.count()
        changed, self._changed = self._changed, []
        for shard, numbers in changed:
            self._progress.add(files=-len(numbers))
            again = []
            for number in numbers:
                del shard.good[number]
                shard.examined[number] += 1
                if shard.examined[number] < MAX_EXAMINED:
                    again.append(number)
                    continue
                detail = "the file changed each time between examining and storing it"
                shard.reasons[number] = "changed", detail
                self._progress.add(files=1, bad=1)
            if shard.complete:
                self._complete.append(shard)
            for number in again:
                self._rows_of_tasks[next(task_numbers)] = shard, number
                yield task_of(self._options, shard.name, number, shard.rows[number])

    def _write_one(self, shard: PendingShard) -> None:
        write_shard(self._options, shard)
        if self._written is not None:
            self._written(shard.name)

    def _write(self, waiting: int) -> None:
        """Start writing complete shards, then wait until at most `waiting` are unwritten.

        Raises the errors of writing.
        """
        while self._complete and self._media.found:
            shard = self._complete.popleft()
            self._listing.require_unchanged(shard.rows)
            future = self._writer.submit(self._write_one, shard)
            self._writing.append((shard, future))
        while len(self._writing) > waiting:
            shard, future = self._writing.popleft()
            try:
                future.result()
            except ChangedFilesError as error:
                self._changed.append((shard, error.numbers))
                continue
            self._counts.shards += 1
            self._counts.files += len(shard.rows)
            self._counts.bad.update(str(reason) for reason, _ in shard.reasons.values())


class Progress:
    """Files done, bad ones, rates and remaining time.

    A progress bar on a terminal, a log message every 10 s elsewhere.

    Args:
        total: Files that the source lists.
        parts: Number of parts that share the total.
        enabled: Whether anything is shown.
    """

    def __init__(self, total: int, parts: int, enabled: bool) -> None:
        self._enabled = enabled
        self._terminal = sys.stderr.isatty()
        # without a terminal, only the bar's text is used
        target = sys.stderr if enabled and self._terminal else io.StringIO()
        self._bar = tqdm(
            # rounded up: an estimate, because parts differ by up to one shard
            total=-(-total // parts),
            file=target,
            unit=" files",
            leave=False,
            dynamic_ncols=self._terminal,
        )
        self._bad = self._clips = 0
        self._start = self._shown = time.monotonic()

    def skip(self, files: int) -> None:
        """Add files of an earlier run: they count as done, but not for the rate."""
        self._bar.n += files
        self._bar.initial += files

    def add(self, files: int, bad: int = 0, clips: int = 0) -> None:
        """Add files of this run.

        Args:
            files: Number of files examined.
            bad: How many of them are bad.
            clips: Clips of the good ones.
        """
        # not tqdm's update(), which would draw before the text is set
        self._bar.n += files
        self._bad += bad
        self._clips += clips
        now = time.monotonic()
        if self._enabled and now - self._shown >= (0.2 if self._terminal else 10):
            self._shown = now
            rate = self._clips / max(now - self._start, 1e-9)
            text = f"bad {self._bad:,}, {rate:.3g} clips/s"
            self._bar.set_postfix_str(text, refresh=self._terminal)
            if not self._terminal:
                log.info("%s", self._bar)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
