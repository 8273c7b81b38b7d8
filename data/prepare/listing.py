"""The rows of a source, listed once.

Reading the largest lists takes minutes to half an hour, and 10 million keys take 80 MB. One part of
a preparation writes OUT/listing.arrow, a record batch per shard; every part then reads the batches
of its own shards. The file is removed once the index exists.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allinone.common.atomic_io import atomic_path, write_atomic
from allinone.common.errors import ConfigError, DataError, LocalConfigError
from allinone.common.run_lock import claim
from allinone.data.prepare.existing import RETRY
from allinone.data.prepare.options import PrepareOptions, blocks_of
from allinone.data.sources import FORMATS, NARRATIONS, Narration, SourceRow
from allinone.data.sources.media import media_folder
from allinone.data.sources.plain_rows import PlainRows

log = logging.getLogger(__name__)

LISTING, PLAN = "listing.arrow", "plan.json"
MANY_FILES = 10_000
"""If a source has more files, their folder is looked at instead: HowTo100M has 1.2 million CSVs."""
LOG_EVERY_S = 10.0
Counts = dict[str, int]
"""Rows per split, in order of first appearance."""
SCHEMA = pa.schema(
    {
        "shard": pa.string(),
        "split": pa.string(),
        "id": pa.string(),
        "captions": pa.list_(pa.string()),
        "path": pa.binary(),  # file names need not be Unicode
        "source": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "extension": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "narration": pa.string(),
        "narration_path": pa.binary(),
        "narration_text": pa.large_binary(),
        "alternatives": pa.list_(pa.binary()),
    }
)
CONTENT = ("shard", "id", "captions")
"""Columns that may not change while a preparation is continued."""


class SourceListing:
    """An open listing.

    Args:
        path: The file.
        counts: Rows per split.
    """

    def __init__(self, path: Path, counts: Counts) -> None:
        self.counts = counts
        # not mapped: the pages of a mapped file count as this process's memory
        self._reader = pa.ipc.open_file(pa.OSFile(str(path)))
        _, stats = json.loads(self._reader.schema.metadata[b"state"])
        self._identities = {name: tuple(identity) for name, *identity in stats}

    def shards(self, turn: int = 1, parts: int = 1) -> Iterator[tuple[str, list[SourceRow]]]:
        """Yield the shards of part `turn` of `parts`: (name, rows)."""
        for number in range(turn - 1, self._reader.num_record_batches, parts):
            batch = self._reader.get_batch(number)
            yield batch["shard"][0].as_py(), _rows(batch)

    def require_unchanged(self, rows: list[SourceRow]) -> None:
        """Raise DataError if a tar that holds some of these rows changed since it was listed.

        The listed places then lead to other samples. A changed list of files does not matter: it
        was read once, and the files are checked by themselves.
        """
        for path in {row.path for row in rows if row.size is not None}:
            if self._identities.get(str(path), ()) != _identity(path):
                raise DataError(
                    f"{path} has changed since it was listed; once it is complete, the same command"
                    " continues"
                )


def open_listing(options: PrepareOptions) -> SourceListing:
    """Open the listing of a preparation, and write it first if it is missing or out of date.

    Of several parts, one writes it and the others wait.

    Args:
        options: Resolved options; the folder exists.

    Raises:
        DataError: The source cannot be read, lists nothing, or something else than when the
            preparation began.
        OSError: The storage failed.
    """
    path, announced = options.out / LISTING, False
    while True:
        counts = _fresh(options)
        if counts is not None:
            return SourceListing(path, counts)
        try:
            lock = claim(options.out / "locks" / "listing")
        except LocalConfigError:
            raise
        except ConfigError as error:
            if not announced:
                log.info("waiting for another part that lists %s: %s", options.source, error)
                announced = True
            time.sleep(1.0)
            continue
        with lock:
            if _fresh(options) is None:
                write_listing(path, options, lambda: blocks_of(options))


def _fresh(options: PrepareOptions) -> Counts | None:
    """Counts of the listing if it exists and its sources did not change since."""
    path, plan = options.out / LISTING, options.out / PLAN
    if not path.exists() or not plan.exists():
        return None
    retry = options.out / RETRY
    # rows of narrated sources that were missing are looked for again; both times are of one file
    # system
    again = options.retry and FORMATS[options.format].narrated and retry.exists()
    if again and path.stat().st_mtime_ns < retry.stat().st_mtime_ns:
        return None
    try:
        with pa.OSFile(str(path)) as file:
            state = pa.ipc.open_file(file).schema.metadata[b"state"]
    except (pa.ArrowException, KeyError, TypeError):
        return None
    return read_plan(plan) if state == _state(options) else None


def read_plan(plan: Path) -> Counts:
    """Rows per split when the preparation began.

    Raises:
        DataError: The file is damaged.
    """
    try:
        counts = json.loads(plan.read_bytes())
        if any(type(number) is not int or number < 1 for number in counts.values()):
            raise ValueError("its counts are not numbers")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{plan} is damaged ({error}). Delete it if the source has not changed since the"
            " preparation began; otherwise prepare into another --out"
        ) from error
    return dict(counts)


def _state(options: PrepareOptions) -> bytes:
    """What the rows depend on: the times and sizes of the lists, and where the media are."""
    known = FORMATS[options.format]
    watched = known.files(options.source)
    if len(watched) > MANY_FILES:
        watched = [options.source]
    if options.exclude is not None:
        watched = [*watched, options.exclude]
    if known.narrated:  # videos are looked for while listing
        root = media_folder(options.source, options.videos, "videos")
        watched = [*watched, root, *sorted(_folders(root))]
    stats = [[str(path), *_identity(path)] for path in watched]
    return json.dumps([str(options.videos), stats]).encode()


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def write_listing(
    path: Path, options: PrepareOptions, read: Callable[[], Iterator[SourceRow | PlainRows]]
) -> None:
    """Read all rows of a source and write its listing and its counts.

    Args:
        path: The listing.
        options: Resolved options.
        read: Yields all rows.

    Raises:
        DataError: There are no rows, or others than when the preparation began.
    """
    counts: Counts = {}
    state = _state(options)  # before reading: a list that changes meanwhile is read again
    before = _earlier(path, options)
    compressed = pa.ipc.IpcWriteOptions(compression="zstd")
    schema = SCHEMA.with_metadata({"state": state})
    total, shown = 0, time.monotonic()
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema, options=compressed) as writer,
    ):
        for number, (split, batch) in enumerate(_shards(read(), options.shard_clips or 1)):
            if before is not None and number < before.num_record_batches:
                _require_equal(before.get_batch(number), batch, options)
            writer.write_batch(batch)
            counts[split] = counts.get(split, 0) + batch.num_rows
            total += batch.num_rows
            if time.monotonic() - shown > LOG_EVERY_S:
                shown = time.monotonic()
                log.info("listing %s: %s rows", options.source, f"{total:,}")
    if not counts:
        path.unlink()
        raise DataError(f"{options.source} lists no clips; check the file, or --format")
    _keep_counts(path, options, counts)


def _earlier(path: Path, options: PrepareOptions) -> pa.ipc.RecordBatchFileReader | None:
    """The listing that shards were already made from, if there is one."""
    if not path.exists() or next((options.out / "parts").glob("*.parquet"), None) is None:
        return None
    try:
        return pa.ipc.open_file(pa.OSFile(str(path)))
    except pa.ArrowException:
        return None


def _require_equal(before: pa.RecordBatch, now: pa.RecordBatch, options: PrepareOptions) -> None:
    # of shards of equal size: a source that has grown is refused with its numbers, at the end
    if before.num_rows != now.num_rows or all(before[name].equals(now[name]) for name in CONTENT):
        return
    raise DataError(
        f"{options.source} lists other clips or captions in {now['shard'][0]} than when the"
        f" preparation of {options.out} began; prepare it into another --out"
    )


def _keep_counts(path: Path, options: PrepareOptions, counts: Counts) -> None:
    plan = options.out / PLAN
    known = read_plan(plan) if plan.exists() else None
    if known is None:
        write_atomic(plan, json.dumps(counts) + "\n")
    elif known != counts:
        path.unlink()
        raise DataError(
            f"{options.source} lists {counts} now, and listed {known} when the preparation of"
            f" {options.out} began; prepare it into another --out"
        )


class _Waiting:
    """Rows of a split that are not in a shard yet."""

    def __init__(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[SourceRow] = []  # after those of the batches
        self.count = 0

    def add(self, row: SourceRow) -> None:
        self._rows.append(row)
        self.count += 1

    def add_batch(self, batch: pa.RecordBatch) -> None:
        if self._rows:
            self._batches.append(_batch("", self._rows))
            self._rows = []
        self._batches.append(batch)
        self.count += batch.num_rows

    def shard(self, name: str) -> pa.RecordBatch:
        """All rows."""
        if not self._batches:
            return _batch(name, self._rows)
        if self._rows:
            self._batches.append(_batch("", self._rows))
        batch = pa.concat_batches(self._batches)
        return batch.set_column(0, SCHEMA.field("shard"), pa.repeat(name, batch.num_rows))


def _shards(
    rows: Iterator[SourceRow | PlainRows], clips: int
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield (split, shard): fixed chunks of each split, in source order.

    The same source gives the same shards.
    """
    waiting: dict[str, _Waiting] = {}
    numbers: dict[str, int] = {}

    def full(split: str) -> tuple[str, pa.RecordBatch]:
        number = numbers[split] = numbers.get(split, -1) + 1
        return split, waiting.pop(split).shard(f"{split}-{number:05d}")

    for row in rows:
        split, taken = row.split, 0
        batch = _plain_batch(row) if isinstance(row, PlainRows) else None
        while taken < (1 if batch is None else batch.num_rows):
            members = waiting.setdefault(split, _Waiting())
            before = members.count
            if isinstance(row, SourceRow):
                members.add(row)
            elif batch is not None:
                members.add_batch(batch.slice(taken, clips - before))
            taken += members.count - before
            if members.count == clips:
                yield full(split)
    for split in list(waiting):
        yield full(split)


def _plain_batch(rows: PlainRows) -> pa.RecordBatch:
    """The rows of a block; column "shard" is filled later."""
    count = len(rows)
    folder = os.fsencode(Path(f"{rows.root}/x"))[:-1]
    known = {
        "shard": pa.repeat("", count),
        "split": pa.repeat(rows.split, count),
        "id": rows.ids,
        "captions": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), rows.captions),
        "path": pc.binary_join_element_wise(folder, rows.sources.cast(pa.binary()), b""),
        "source": rows.sources,
        "offset": pa.repeat(pa.scalar(0, pa.int64()), count),
        "extension": pa.repeat(rows.extension, count),
        "alternatives": pa.array([[]] * count, SCHEMA.field("alternatives").type),
    }
    columns = [known.get(kind.name, pa.nulls(count, kind.type)) for kind in SCHEMA]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    if not rows.others:
        return batch
    # the other rows are appended, and then taken to their positions
    order = np.arange(count)
    order[list(rows.others)] = count + np.arange(len(rows.others))
    others = _batch("", list(rows.others.values()))
    return pa.concat_batches([batch, others]).take(pa.array(order))


def _batch(name: str, rows: list[SourceRow]) -> pa.RecordBatch:
    narrations = [row.narration for row in rows]
    columns: dict[str, list[Any]] = {
        column: [getattr(row, column) for row in rows]
        for column in ("split", "id", "captions", "source", "offset", "size", "extension")
    }
    columns["reason"] = [row.reason for row in rows]
    columns["detail"] = [row.detail for row in rows]
    columns["shard"] = [name] * len(rows)
    columns["path"] = [os.fsencode(row.path) for row in rows]
    columns["narration"] = [n and n.lines.__name__ for n in narrations]
    columns["narration_path"] = [n and os.fsencode(n.path) for n in narrations]
    # surrogatepass: json.loads accepts lone surrogates, clean_text replaces them
    columns["narration_text"] = [
        None if n is None or n.text is None else n.text.encode("utf-8", "surrogatepass")
        for n in narrations
    ]
    columns["alternatives"] = [[os.fsencode(path) for path in row.alternatives] for row in rows]
    return pa.RecordBatch.from_pydict(columns, SCHEMA)


def _rows(batch: pa.RecordBatch) -> list[SourceRow]:
    empty = [None] * batch.num_rows
    columns = {
        name: empty if batch[name].null_count == batch.num_rows else batch[name].to_pylist()
        for name in SCHEMA.names
    }
    return [
        SourceRow(
            split,
            name,
            tuple(captions),
            Path(os.fsdecode(path)),
            source,
            offset,
            size,
            extension,
            reason,
            detail,
            narration and _narration(narration, listed, text),
            tuple(Path(os.fsdecode(other)) for other in alternatives),
        )
        for (
            _,
            split,
            name,
            captions,
            path,
            source,
            offset,
            size,
            extension,
            reason,
            detail,
            narration,
            listed,
            text,
            alternatives,
        ) in zip(*columns.values(), strict=True)
    ]


def _narration(name: str, path: bytes, text: bytes | None) -> Narration:
    if name not in NARRATIONS:  # a listing of another version, or one that was made up
        raise DataError(f"{LISTING} names the unknown captions {name!r}; delete it")
    decoded = None if text is None else text.decode("utf-8", "surrogatepass")
    return Narration(NARRATIONS[name], Path(os.fsdecode(path)), decoded)
