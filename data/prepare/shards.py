"""All shards of a source, or of a part of them: rows out, files decoded in processes, shards
written meanwhile."""

from __future__ import annotations

import itertools
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from allinone.common.errors import DataError
from allinone.common.formatting import duration
from allinone.data.prepare.existing import MediaRoots, begin_retry, standing_shards, to_retry
from allinone.data.prepare.listing import Listing
from allinone.data.prepare.merge import fragment_paths
from allinone.data.prepare.options import PrepareOptions, shard_names
from allinone.data.prepare.probe import Limits, ProbePool
from allinone.data.prepare.worker import ClipTask, worker
from allinone.data.prepare.writer import Shard, task_of, write_shard
from allinone.data.sources import SourceRow

WRITING = 2
"""Shards that wait to be written while the next ones are decoded."""


@dataclass
class Made:
    """What one run has done."""

    shards: int = 0
    files: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Files by reason."""


def make_shards(options: PrepareOptions, listing: Listing, progress: bool) -> Made:
    """All shards of this part that do not stand yet."""
    with closing(listing):
        listing.count_beside()
        with closing(_Making(options, listing, progress)) as making:
            return making.run()


class _Making:
    """Workers go on to the next shards while the last files of one are decoded, which may take them
    half an hour, and while it is written."""

    def __init__(self, options: PrepareOptions, listing: Listing, progress: bool) -> None:
        self._options, self._listing, self._made = options, listing, Made()
        self._standing, self._leftovers = standing_shards(options.out)
        begin_retry(options)
        self._media = MediaRoots(options, found=bool(self._standing))
        self._show = Progress(listing, (options.part or (1, 1))[1], progress)
        self._places: dict[int, tuple[Shard, int]] = {}
        """Number of a task → what it is of."""
        self._whole: deque[Shard] = deque()
        self._writing: deque[Future[None]] = deque()
        self._writer = ThreadPoolExecutor(1)
        limits = Limits(options.min_frames, options.max_duration_s or 0.0, options.timeout_s or 0.0)
        self._pool = ProbePool(options.workers, limits, worker)

    def run(self) -> Made:
        for task, reason, result in self._pool.map(self._tasks()):
            shard, number = self._places.pop(task)
            if reason is None:
                shard.found[number] = result
            else:
                shard.reasons[number] = (reason, str(result))
            self._show.add(1, int(reason is not None), 0 if reason else len(result.cuts) or 1)
            if shard.whole:
                self._whole.append(shard)
            if reason == "missing":
                self._media.lost(result)
                self._media.check()
            else:
                self._media.found = True
            self._write(WRITING)
        self._media.end()
        self._write(0)
        return self._made

    def close(self) -> None:
        self._pool.close()
        self._writer.shutdown(cancel_futures=True)
        self._show.end()

    def _tasks(self) -> Iterator[ClipTask]:
        numbers = itertools.count()
        for name, rows in _shards_of_part(self._options, self._listing):
            if name in self._standing and not to_retry(self._options, name, rows):
                self._show.skip(len(rows))
                continue
            # of a run that was killed; and no fragment stands beside a tar that it does not
            # describe
            for path in (*self._leftovers.get(name, ()), *fragment_paths(self._options.out, name)):
                path.unlink(missing_ok=True)
            shard = Shard(name, rows)
            self._show.add(len(shard.reasons), len(shard.reasons))
            for reason, detail in shard.reasons.values():
                if reason == "missing":
                    self._media.lost(detail)
            if shard.whole:
                self._whole.append(shard)
                self._write(WRITING)
            for number in [number for number in range(len(rows)) if number not in shard.reasons]:
                self._places[next(numbers)] = shard, number
                yield task_of(self._options, name, number, rows[number])

    def _write(self, waiting: int) -> None:
        """Begin to write what is whole, and wait until no more than `waiting` shards are not
        written yet. Raises what writing met."""
        while self._whole and self._media.found:
            shard = self._whole.popleft()
            self._made.shards += 1
            self._made.files += len(shard.rows)
            self._made.bad.update(str(reason) for reason, _ in shard.reasons.values())
            self._writing.append(self._writer.submit(write_shard, self._options, shard))
        while len(self._writing) > waiting:
            self._writing.popleft().result()


def _shards_of_part(
    options: PrepareOptions, listing: Listing
) -> Iterator[tuple[str, list[SourceRow]]]:
    turn, parts = options.part or (1, 1)
    names = None if listing.counts is None else set(shard_names(options, listing.counts))
    for ordinal, (name, rows) in enumerate(_shards(listing.rows(), options.shard_clips or 1)):
        listing.look()
        if (
            names is not None and name not in names
        ):  # the end of the list would tell as well, after all the work
            raise DataError(
                f"{options.source} lists more than {listing.counts}, as it did when {options.out}"
                " was begun; prepare it into another --out"
            )
        if ordinal % parts == turn - 1:
            yield name, rows


def _shards(rows: Iterator[SourceRow], clips: int) -> Iterator[tuple[str, list[SourceRow]]]:
    """Fixed chunks of each split, in source order: the same source gives the same shards."""
    waiting: dict[str, list[SourceRow]] = {}
    numbers: dict[str, int] = {}
    for row in rows:
        members = waiting.setdefault(row.split, [])
        members.append(row)
        if len(members) == clips:
            number = numbers[row.split] = numbers.get(row.split, -1) + 1
            yield f"{row.split}-{number:05d}", waiting.pop(row.split)
    for split, members in waiting.items():
        yield f"{split}-{numbers.get(split, -1) + 1:05d}", members


class Progress:
    """done/total, bad, clips/s, ETA: one line on a terminal, a line every 10 s elsewhere."""

    def __init__(self, listing: Listing, parts: int, on: bool) -> None:
        self._listing, self._parts, self._on = listing, parts, on
        self._done = self._bad = self._clips = self._skipped = 0
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def skip(self, done: int) -> None:
        """Files of an earlier run: they count as done, not for the rate."""
        self._skipped += done

    def add(self, done: int, bad: int, clips: int = 0) -> None:
        self._done += done
        self._bad += bad
        self._clips += clips
        now = time.monotonic()
        if self._on and now - self._shown >= (0.2 if self._terminal else 10):
            self._shown = now
            seconds, ready = max(now - self._start, 1e-9), self._done + self._skipped
            rate = self._done / seconds
            text = f"bad {self._bad:,}  {rate:.3g} files/s  {self._clips / seconds:.3g} clips/s"
            if (counts := self._listing.look()) is None:
                text = f"{ready:,} files  {text}  the list is still being counted"
            else:
                total = -(-sum(counts.values()) // self._parts)
                text = (
                    f"{ready:,}/{total:,} files  {text}  ETA"
                    f" {duration(max(total - ready, 0) / max(rate, 1e-9))}"
                )
            print(
                f"\r\033[K{text}" if self._terminal else text,
                end="" if self._terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    def end(self) -> None:
        if self._on and self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
