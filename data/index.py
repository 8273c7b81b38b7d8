"""The index of a prepared data set: one row per clip, bad ones included. Parquet for people and tools, the same as Arrow IPC for loaders to map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.errors import DataError
from data.files import atomic_path

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # unique in the folder: split/id
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("shard", pa.string()),  # tar, relative to the folder; null for a bad clip
        ("offset", pa.int64()),  # of the media bytes in the tar
        ("size", pa.int64()),
        ("codec", pa.string()),
        ("pixel_format", pa.string()),
        ("container", pa.string()),
        ("media", pa.string()),  # video or image
        ("width", pa.int32()),  # after rotation
        ("height", pa.int32()),
        ("rotation", pa.int32()),  # degrees clockwise that a reader must apply: 0, 90, 180, 270
        ("frames", pa.int32()),  # frames that decode
        ("frame_rate", pa.float64()),
        ("duration_s", pa.float64()),
        ("frame_times", pa.list_(pa.float32())),  # seconds; null at a constant rate
        ("keyframes", pa.list_(pa.int32())),  # display-order numbers where decoding may start
        ("reason", pa.string()),  # null = good
        ("detail", pa.string()),
        ("source", pa.string()),  # path in the source
    ]
)


@dataclass
class Clip:
    """One row. Times in seconds, sizes in pixels and bytes."""

    key: str
    split: str
    captions: list[str]
    source: str
    shard: str | None = None
    offset: int | None = None
    size: int | None = None
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
    reason: str | None = None
    detail: str | None = None


def table_of(clips: Sequence[Clip]) -> pa.Table:
    """Rows as an Arrow table of SCHEMA."""
    return pa.Table.from_pylist([vars(clip) for clip in clips], schema=SCHEMA)


def write_index(folder: Path, table: pa.Table) -> None:
    """index.parquet and index.arrow, each whole or absent."""
    with atomic_path(folder / "index.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    with (
        atomic_path(folder / "index.arrow") as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, SCHEMA) as writer,
    ):
        writer.write_table(table)


class Index:
    """The good rows of one split, memory-mapped: ranks and workers of a machine share the pages."""

    def __init__(self, folder: Path, split: str) -> None:
        if not (folder / "dataset.json").is_file():
            raise DataError(
                f"{folder} is no finished prepared data set (no dataset.json); run: python tools/prepare.py SOURCE --out {folder}"
            )
        self._table = pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow"))).read_all()
        splits = self._table["split"]
        good = pc.and_(pc.equal(splits, split), pc.is_null(self._table["reason"]))
        self.rows: NDArray[np.int64] = np.flatnonzero(good.to_numpy(zero_copy_only=False))
        if not self.rows.size:
            raise DataError(f"{folder} has no good clip in split {split!r}; splits: {', '.join(sorted(set(splits.to_pylist())))}")
        self.folder, self.split = folder, split

    def __len__(self) -> int:
        return int(self.rows.size)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Columns of the item-th good row."""
        return self._table.slice(int(self.rows[item]), 1).to_pylist()[0]
