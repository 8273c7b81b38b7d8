"""Validates the Arrow files of a prepared folder before anything follows what they say.

Arrow checks neither offsets nor text when it maps a file: a flipped bit is a wrong caption, a crash
of the process, or the path of another file.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from allinone.common.errors import LASTING, DataError

SHARD = re.compile(r"shards/[A-Za-z0-9_-]+\.tar")
"""Where stored files are: writer.py makes no other names."""
LARGEST_FILE = 8 << 30
"""Bytes; members of a shard are smaller (worker.MAX_MEMBER_BYTES)."""
ROTATIONS = range(0, 720, 90)
"""Degrees; 360 more for a mirrored file (codecs.rotation_of)."""
LARGEST_SIDE = 1 << 16
"""Pixels; no codec has larger pictures."""
FRAMES = 1 << 28
"""More than any file has: 100 days at 30 frames per second."""

_checked: set[tuple[Any, ...]] = set()
"""Files that this process has validated: training and evaluation may open one folder."""


class _DamagedError(Exception):
    """What is wrong, as the rest of a sentence that begins with the file."""


def open_arrow(path: Path) -> Any:
    """Map an Arrow file into memory; raises OSError or pa.ArrowInvalid.

    Raises:
        DataError: It is not a regular file: a FIFO would block, a device would never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError(f"{path} is not a regular file; copy the prepared folder again")
    return pa.ipc.open_file(pa.memory_map(str(path)))


def validate_index(
    folder: Path, clips: dict[str, int], schemas: tuple[pa.Schema, pa.Schema], rows: tuple[int, int]
) -> None:
    """Validate index.arrow and videos.arrow completely, once per process.

    Args:
        folder: The prepared folder.
        clips: Good clips per split, from dataset.json.
        schemas: Of clips and of stored files.
        rows: Per record batch, of clips and of stored files.

    Raises:
        DataError: A file is damaged, or refers to what it may not refer to.
        OSError: The storage failed.
    """
    paths = folder / "index.arrow", folder / "videos.arrow"
    facts = [path.stat() for path in paths]
    key = (*((f.st_dev, f.st_ino, f.st_size, f.st_mtime_ns) for f in facts), tuple(clips.items()))
    if key in _checked:
        return
    try:
        frames = _validate_videos(paths[1], schemas[1], rows[1])
        _validate_clips(paths[0], schemas[0], rows[0], frames, sum(clips.values()))
    except _DamagedError as error:
        raise DataError(f"{folder}: {error}. {REMEDY}") from error
    except (pa.ArrowException, OSError, MemoryError, ValueError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno not in LASTING:
            raise  # the storage is in trouble, the index may be good
        raise DataError(f"the index of {folder} cannot be read ({error}). {REMEDY}") from error
    _checked.add(key)


REMEDY = "Make it again with the command that prepared the folder and --merge, or copy it again"


def _batches(path: Path, schema: pa.Schema, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of the first row, batch) of a file, each validated."""
    reader = open_arrow(path)
    if not reader.schema.equals(schema):
        raise _DamagedError(f"the columns of {path.name} are not those of this version")
    last = reader.num_record_batches - 1
    for number in range(last + 1):
        batch = reader.get_batch(number)
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:
            raise _DamagedError(f"{path.name} is damaged ({error})") from error
        # a row's batch is found by a division
        if batch.num_rows > rows or (number < last and batch.num_rows != rows):
            raise _DamagedError(f"{path.name} has a batch of {batch.num_rows:,} rows")
        yield number * rows, batch


def _require(path: Path, first: int, good: Any, what: str) -> None:
    """Raise _DamagedError for the first row that is not good.

    Args:
        path: The file.
        first: Number of the first row.
        good: bool [rows], as NumPy or Arrow array; null counts as bad.
        what: What the row has.
    """
    if not isinstance(good, np.ndarray):
        good = pc.fill_null(good, False).to_numpy(zero_copy_only=False)
    if not good.all():
        raise _DamagedError(f"row {first + int(np.argmin(good)):,} of {path.name} {what}")


def _numbers(column: pa.Array, missing: int = -1) -> NDArray[Any]:
    return pc.fill_null(column, missing).to_numpy(zero_copy_only=False)


def _validate_videos(path: Path, schema: pa.Schema, rows: int) -> NDArray[np.int32]:
    """Validate the stored files; returns their numbers of frames."""
    found: list[NDArray[np.int32]] = []
    for first, batch in _batches(path, schema, rows):
        column = {name: batch.column(name) for name in batch.schema.names}
        names = column["shard"].dictionary_encode()
        inside = [bool(SHARD.fullmatch(name or "")) for name in names.dictionary.to_pylist()]
        good = pc.take(pa.array(inside, pa.bool_()), names.indices)
        _require(path, first, good, "is stored outside shards/")
        offset, size = _numbers(column["offset"]), _numbers(column["size"])
        good = (offset >= 0) & (offset < 1 << 62) & (size > 0) & (size < LARGEST_FILE)
        _require(path, first, good, "has an impossible place in its shard")
        frames = _numbers(column["frames"])
        _require(path, first, (frames > 0) & (frames < FRAMES), "has no number of frames")
        for name in ("width", "height"):
            side = _numbers(column[name])
            _require(path, first, (side > 0) & (side <= LARGEST_SIDE), f"has no {name}")
        turned = pc.is_in(column["rotation"], pa.array(ROTATIONS, pa.int32()))
        _require(path, first, turned, "has an unknown rotation")
        for name in ("frame_rate", "duration_s"):
            value = column[name].to_numpy(zero_copy_only=False)
            _require(path, first, np.isfinite(value) & (value >= 0), f"has no {name}")
        known = pc.is_in(column["media"], pa.array(["video", "image"]))
        _require(path, first, known, "is neither video nor image")
        for name in ("codec", "container", "pixel_format", "source"):
            _require(path, first, pc.is_valid(column[name]), f"has no {name}")
        _validate_lists(path, first, column, frames)
        found.append(frames)
    return np.concatenate(found) if found else np.zeros(0, np.int32)


def _validate_lists(
    path: Path, first: int, column: dict[str, pa.Array], frames: NDArray[np.int32]
) -> None:
    """Validate keyframes and frame times.

    Args:
        path: The file.
        first: Number of the first row.
        column: The columns of a batch.
        frames: Frames of each row.
    """
    keys, times = column["keyframes"], column["frame_times"]
    count = _numbers(pc.list_value_length(keys), 0)
    _require(path, first, count > 0, "has no keyframes")
    numbers, owners = pc.list_flatten(keys), np.repeat(np.arange(len(frames)), count)
    good = np.ones(len(frames), bool)
    numbers = _numbers(numbers)
    np.logical_and.at(good, owners, (numbers >= 0) & (numbers < frames[owners]))
    _require(path, first, good, "has keyframes beyond its end")
    count = _numbers(pc.list_value_length(times), 0)
    absent = pc.is_null(times).to_numpy(zero_copy_only=False)
    _require(path, first, absent | (count == frames), "has not a time per frame")
    good = np.ones(len(frames), bool)
    owners = np.repeat(np.arange(len(frames)), count)
    seconds = pc.list_flatten(times).to_numpy(zero_copy_only=False)
    np.logical_and.at(good, owners, np.isfinite(seconds))
    _require(path, first, good, "has a frame without a time")


def _validate_clips(
    path: Path, schema: pa.Schema, rows: int, frames: NDArray[np.int32], total: int
) -> None:
    """Validate the clips.

    Args:
        path: index.arrow.
        schema: Its columns.
        rows: Per record batch.
        frames: Frames of each stored file.
        total: Clips that dataset.json announces.
    """
    seen = 0
    for first, batch in _batches(path, schema, rows):
        seen += batch.num_rows
        column = {name: batch.column(name) for name in batch.schema.names}
        _require(path, first, pc.is_valid(column["key"]), "has no key")
        captions = column["captions"]
        count = _numbers(pc.list_value_length(captions), 0)
        _require(path, first, count > 0, "has no caption")
        if pc.list_flatten(captions).null_count:
            raise _DamagedError(f"{path.name} has an empty caption")
        video = _numbers(column["video"])
        _require(path, first, (video >= 0) & (video < len(frames)), "refers to no stored file")
        begin, end = _numbers(column["first_frame"]), _numbers(column["last_frame"])
        complete = pc.and_(pc.is_null(column["first_frame"]), pc.is_null(column["last_frame"]))
        window = (begin >= 0) & (begin <= end) & (end < frames[video])
        good = complete.to_numpy(zero_copy_only=False) | window
        _require(path, first, good, "has a window beyond its file")
    if seen != total:
        raise _DamagedError(f"{path.name} has {seen:,} clips, dataset.json says {total:,}")
