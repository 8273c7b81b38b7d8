"""The index of a prepared data set: two tables, stored files and clips.

Clips of long videos are windows into one stored file. The file's columns (its place, keyframes and
frame times: 400 kB for an hour at a variable rate) are stored once rather than with each of its
hundreds of captions: one of HowTo100M's 136 million clips takes about 100 bytes with its caption.

    index.parquet   a row per clip, bad ones included: for people and tools
    videos.parquet  a row per stored file; index.parquet's `video` is its row number
    index.arrow     good clips only, split after split (dataset.json has their numbers)
    videos.arrow    the same as videos.parquet

Loaders map the Arrow files into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from allinone.common.atomic_io import atomic_path
from allinone.common.errors import LASTING, DataError
from allinone.data.config import standard_split
from allinone.data.index_validation import REMEDY, open_arrow, validate_index
from allinone.data.remote_index import local_index

FILES = ("index.parquet", "videos.parquet", "index.arrow", "videos.arrow")
"""Files of the index; dataset.json has their hashes."""
LAYOUT = 2
"""Version of the prepared folder's layout; loaders refuse other versions."""
CLIPS_PER_BATCH, VIDEOS_PER_BATCH = 65_536, 4096
"""Rows of every record batch but the last, so that a division finds a row's batch."""

VIDEO_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),  # tar, relative to the folder
        ("offset", pa.int64()),  # of the media bytes in the tar
        ("size", pa.int64()),
        ("hash", pa.string()),  # of the media bytes, as b2sum --length 64 prints it
        ("codec", pa.string()),
        ("pixel_format", pa.string()),
        ("container", pa.string()),
        ("media", pa.string()),  # video or image
        ("width", pa.int32()),  # after rotation
        ("height", pa.int32()),
        ("rotation", pa.int32()),  # what readers must apply: codecs.rotation_of
        ("frames", pa.int32()),  # frames that decode
        ("frame_rate", pa.float64()),
        ("duration_s", pa.float64()),
        # seconds; null at a constant rate. float32 rounds by 0.12 ms in the first hour and 2 ms in
        # the tenth, Timeline tolerates a tenth of a frame (4 ms at 25 per second).
        ("frame_times", pa.list_(pa.float32())),
        ("keyframes", pa.list_(pa.int32())),  # display-order numbers where decoding may start
        ("source", pa.string()),  # path in the source
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # unique in the folder: split/id, and #line of a long video
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("video", pa.int64()),  # row of videos.parquet; null where the file is bad
        # window in the stored file, display-order numbers, both included; null = the complete file
        ("first_frame", pa.int32()),
        ("last_frame", pa.int32()),
        ("reason", pa.string()),  # null = good clip
        ("detail", pa.string()),
        ("source", pa.string()),
    ]
)
LOADER_SCHEMA = pa.schema(
    [SCHEMA.field(name) for name in ("key", "captions", "video", "first_frame", "last_frame")]
)


@dataclass
class Video:
    """One stored file. Times in seconds, sizes in pixels and bytes."""

    shard: str
    source: str
    offset: int = 0
    size: int = 0
    hash: str = ""
    codec: str | None = None
    pixel_format: str | None = None
    container: str | None = None
    media: str | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    frames: int | None = None
    frame_rate: float | None = None
    duration_s: float | None = None
    frame_times: list[float] | None = None
    keyframes: list[int] = field(default_factory=list)


@dataclass
class Clip:
    """One row of the index."""

    key: str
    split: str
    captions: list[str]
    source: str
    video: int | None = None
    first_frame: int | None = None
    last_frame: int | None = None
    reason: str | None = None
    detail: str | None = None


def write_mapped(
    path: Path, schema: pa.Schema, tables: Iterable[pa.Table], rows_per_batch: int
) -> None:
    """Write Arrow IPC with record batches of equal size, atomically.

    Args:
        path: The file.
        schema: Of all tables.
        tables: Rows in order; their sizes do not matter.
        rows_per_batch: Rows of every record batch but the last.
    """
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        # shards differ in their rows; batches must not, or a row's batch could not be computed
        waiting = schema.empty_table()
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            while waiting.num_rows >= rows_per_batch:
                _write_batch(writer, waiting.slice(0, rows_per_batch))
                waiting = waiting.slice(rows_per_batch)
        if waiting.num_rows:
            _write_batch(writer, waiting)


def _write_batch(writer: Any, table: pa.Table) -> None:
    (batch,) = pa.Table.from_batches(table.to_batches(), table.schema).combine_chunks().to_batches()
    writer.write_batch(batch)


class _Mapped:
    """Rows of a memory-mapped Arrow file with equal record batches.

    A pickled copy maps the file again instead of copying it.
    """

    def __init__(self, path: Path, rows_per_batch: int) -> None:
        self._path, self._size = path, rows_per_batch
        self._reader = open_arrow(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path, "rows_per_batch": self._size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def row(self, number: int) -> dict[str, Any]:
        batch, inside = divmod(number, self._size)
        return self._reader.get_batch(batch).slice(inside, 1).to_pylist()[0]


class Index:
    """The good clips of one split, memory-mapped: all processes of a node share the pages.

    Args:
        folder: Prepared folder, here or in object storage.
        split: Name of the split.

    Raises:
        DataError: The folder is unfinished or damaged, or the split has no good clip.
    """

    def __init__(self, folder: Path, split: str) -> None:
        facts = dataset_facts(folder)
        local = local_index(folder)
        split = choose_split(folder, facts["clips"], split)
        # dataset.json lists the splits in the order of index.arrow, each a block of rows
        names = list(facts["clips"])
        self._first = sum(facts["clips"][name] for name in names[: names.index(split)])
        self._rows: int = facts["clips"][split]
        try:
            validate_index(
                local,
                facts["clips"],
                (LOADER_SCHEMA, VIDEO_SCHEMA),
                (CLIPS_PER_BATCH, VIDEOS_PER_BATCH),
            )
            self._clips = _Mapped(local / "index.arrow", CLIPS_PER_BATCH)
            self._videos = _Mapped(local / "videos.arrow", VIDEOS_PER_BATCH)
        except (OSError, pa.ArrowInvalid) as error:
            if isinstance(error, OSError) and error.errno not in LASTING:
                raise  # the storage is in trouble, the index may be good
            raise DataError(f"the index of {folder} cannot be read ({error}). {REMEDY}") from error
        self.folder, self.split = folder, split

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Return the columns of the item-th good clip and of its stored file."""
        if not 0 <= item < self._rows:
            raise IndexError(f"clip {item} of {self._rows}")
        clip = self._clips.row(self._first + item)
        return {**self._videos.row(clip["video"]), **clip, "split": self.split}


def index_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the index, by name."""
    hashes = {}
    for name in FILES:
        with (folder / name).open("rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def choose_split(folder: Path, clips: dict[str, int], split: str | None) -> str:
    """Find a split that has clips.

    Args:
        folder: Prepared folder, for the message.
        clips: Good clips per split, from dataset.json.
        split: The requested split; None: the first with clips.

    Returns:
        The split's name in the folder: "validation" for "val" if the folder calls it so.

    Raises:
        DataError: It has no good clip.
    """
    good = [name for name, number in clips.items() if number]
    chosen = next(iter(good), None) if split is None else split
    if chosen is not None and chosen not in good:
        alike = [name for name in good if standard_split(name) == standard_split(chosen)]
        chosen = alike[0] if len(alike) == 1 else chosen
    if chosen is None or chosen not in good:
        splits = ", ".join(sorted(good)) or "none"
        raise DataError(
            f"{folder} has no good clip in split {split!r}; splits: {splits}. DIR:SPLIT selects one"
        )
    return chosen


def _require_counts(facts: dict[str, Any]) -> None:
    """Raise TypeError, ValueError or KeyError unless dataset.json holds counts of clips."""
    if facts.get("layout") != LAYOUT:
        return  # has a message of its own
    counts = [*facts["clips"].items(), *facts["bad"].items()]
    numbers = [number for _, number in counts] + [*facts["files"], *facts["captions"]]
    if any(type(number) is not int or not 0 <= number < 1 << 40 for number in numbers):
        raise ValueError("its counts are not numbers")
    if len(facts["files"]) != 2 or len(facts["captions"]) != 2:
        raise ValueError("files and captions are not pairs")


def dataset_facts(folder: Path) -> dict[str, Any]:
    """Read dataset.json of a prepared folder; raises DataError for unfinished or other layouts."""
    path = local_index(folder) / "dataset.json"
    if not path.is_file():
        raise DataError(
            f"{folder} is not a finished prepared data set (no dataset.json). Check --data and"
            f" --val, or run: python tools/prepare.py SOURCE --out {folder}"
        )
    try:
        facts = json.loads(path.read_bytes())
        if not isinstance(facts, dict):
            raise TypeError("it is not a dictionary")
        _require_counts(facts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error!r}). {REMEDY}") from error
    if facts.get("layout") != LAYOUT:
        raise DataError(
            f"{folder} has layout {facts.get('layout', 1)}, this version reads {LAYOUT}; prepare it"
            " again, into a new folder"
        )
    return facts
