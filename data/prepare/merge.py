"""Fragments of all shards → one index, its counts and the list of bad clips.

Only one shard's fragment is in memory at a time: HowTo100M has 136 million clips.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from allinone.common.atomic_io import atomic_path, remove_leftovers, write_atomic
from allinone.common.errors import DataError
from allinone.data.index import (
    CLIPS_PER_BATCH,
    LAYOUT,
    LOADER_SCHEMA,
    SCHEMA,
    VIDEO_SCHEMA,
    VIDEOS_PER_BATCH,
    Clip,
    Video,
    index_hashes,
    write_mapped,
)

PLACEHOLDER_COPIES = 20
"""An image in at least this many rows is the placeholder that a site (Flickr for SBU) returns for a
deleted photo; none of its rows is used."""


def fragment_paths(out: Path, name: str) -> tuple[Path, Path]:
    """(stored files, clips) of one shard; the second is written last and marks it as complete."""
    return out / "parts" / f"{name}.videos.parquet", out / "parts" / f"{name}.parquet"


def write_fragment(out: Path, name: str, videos: list[Video], clips: list[Clip]) -> None:
    """Write both tables of one shard.

    Args:
        out: The prepared folder.
        name: The shard.
        videos: Its stored files, in the order of the tar.
        clips: Its clips; `video` is the position in `videos`.
    """
    for_videos, for_clips = fragment_paths(out, name)
    _write_rows(for_videos, [vars(video) for video in videos], VIDEO_SCHEMA)
    _write_rows(for_clips, [vars(clip) for clip in clips], SCHEMA)


def _write_rows(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def bad_files(out: Path, name: str) -> dict[str, str]:
    """Key → reason of a shard's files that are not stored."""
    table = pq.read_table(fragment_paths(out, name)[1], columns=["key", "video", "reason"])
    bad = table.filter(pc.is_null(table["video"])).to_pylist()
    return {row["key"]: row["reason"] for row in bad}


@dataclass(frozen=True)
class DatasetCounts:
    """What a prepared folder holds."""

    clips: dict[str, int]
    """Good clips per split."""
    bad: dict[str, int]
    """Bad files and captions per reason."""
    files: tuple[int, int]
    """Files: stored, and listed."""
    captions: tuple[int, int]
    """Good clips, and clips that the stored files list."""
    bytes: int
    """Size of all shards."""

    @property
    def kept_share(self) -> float:
        """Share of the listed clips that can be used.

        The number of captions of a long video that is not stored is unknown; it is assumed to be
        the average.
        """
        (stored, listed), (good, all_clips) = self.files, self.captions
        return stored / max(listed, 1) * good / max(all_clips, 1)


def merge_fragments(out: Path, names: list[str]) -> DatasetCounts:
    """Write the index, as Parquet and Arrow, and bad_clips.jsonl.

    The bytes do not depend on which runs made the fragments.

    Args:
        out: The prepared folder.
        names: All shards, in order.

    Raises:
        DataError: Shards are missing.
    """
    _require_complete(out, names)
    # Only here: before all shards exist, an unfinished file may be the work of another part.
    for folder in (out, out / "shards", out / "parts"):
        remove_leftovers(folder)
    write_mapped(
        out / "videos.arrow", VIDEO_SCHEMA, (_videos(out, name) for name in names), VIDEOS_PER_BATCH
    )
    with (
        atomic_path(out / "videos.parquet") as path,
        pq.ParquetWriter(path, VIDEO_SCHEMA, compression="zstd") as writer,
    ):
        for name in names:  # one row group per shard, so only one shard is in memory
            writer.write_table(_videos(out, name))
    counts = _write_clips(out, names)
    write_mapped(
        out / "index.arrow", LOADER_SCHEMA, _good_clips(out / "index.parquet"), CLIPS_PER_BATCH
    )
    return counts


def _require_complete(out: Path, names: list[str]) -> None:
    missing = [
        name
        for name in names
        if not all(
            path.is_file() for path in (out / "shards" / f"{name}.tar", *fragment_paths(out, name))
        )
    ]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} shards of {out} are not prepared yet, first:"
            f" {', '.join(missing[:5])}; run the parts that make them (--part i/n, the same n as"
            " before), or the command without --part, which makes what is missing"
        )


def _write_clips(out: Path, names: list[str]) -> DatasetCounts:
    """Write index.parquet and bad_clips.jsonl."""
    placeholders = _placeholders(out, names)
    clips: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    total = stored = listed_clips = lost_files = 0
    with (
        atomic_path(out / "index.parquet") as path,
        pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer,
        atomic_path(out / "bad_clips.jsonl") as log_path,
        log_path.open("w", encoding="utf-8") as bad_clips,
    ):
        for name in names:
            videos = _videos(out, name)
            table = _clips(out, name, videos, stored, placeholders)
            writer.write_table(table)
            lost = table.filter(pc.is_valid(table["reason"]))
            for row in lost.select(["key", "source", "reason", "detail"]).to_pylist():
                bad_clips.write(json.dumps(row) + "\n")
                bad[row["reason"]] += 1
            # the split of the shard's name; splits may contain "-" themselves
            clips[name.rpartition("-")[0]] += table.num_rows - lost.num_rows
            listed_clips += table.num_rows - table["video"].null_count
            lost_files += table["video"].null_count
            stored += videos.num_rows
            total += (out / "shards" / f"{name}.tar").stat().st_size
    files = (stored, stored + lost_files)
    return DatasetCounts(dict(clips), dict(bad), files, (sum(clips.values()), listed_clips), total)


def _videos(out: Path, name: str) -> pa.Table:
    return pq.read_table(fragment_paths(out, name)[0], schema=VIDEO_SCHEMA)


def _clips(out: Path, name: str, videos: pa.Table, base: int, placeholders: pa.Array) -> pa.Table:
    """A shard's clips; `video` becomes the row of the complete table of stored files.

    Args:
        out: The prepared folder.
        name: The shard.
        videos: Its stored files.
        base: Stored files of all shards before it.
        placeholders: Hashes of images whose clips are bad.
    """
    table = pq.read_table(fragment_paths(out, name)[1], schema=SCHEMA)
    local = table["video"]
    if len(placeholders):
        # the row of a file that is not stored takes null here and keeps its own reason
        shared = pc.fill_null(pc.is_in(videos["hash"].take(local), value_set=placeholders), False)
        detail = f"at least {PLACEHOLDER_COPIES} rows share this image"
        for column, text in (("reason", "placeholder"), ("detail", detail)):
            marked = pc.if_else(shared, text, table[column])
            table = table.set_column(table.schema.get_field_index(column), column, marked)
    position = table.schema.get_field_index("video")
    return table.set_column(position, "video", pc.add(local, base)).cast(SCHEMA)


def _placeholders(out: Path, names: list[str]) -> pa.Array:
    """Hashes of the images that too many rows share."""
    # The one thing kept of all shards: 16 hexadecimal digits and a 4-byte offset in Arrow, which
    # is 250 MB for CC12M.
    seen: list[Any] = []
    for name in names:
        table = pq.read_table(fragment_paths(out, name)[0], columns=["hash", "media"])
        seen.append(table.filter(pc.equal(table["media"], "image"))["hash"].combine_chunks())
    counted = pa.chunked_array(seen, pa.string()).value_counts()
    return counted.field("values").filter(
        pc.greater_equal(counted.field("counts"), PLACEHOLDER_COPIES)
    )


def _good_clips(path: Path) -> Iterator[pa.Table]:
    """Clips without a reason; the order of the shards keeps splits together."""
    # from index.parquet rather than the fragments: its `video` and its reasons are final
    for batch in pq.ParquetFile(path).iter_batches(CLIPS_PER_BATCH):
        table = pa.Table.from_batches([batch])
        good = table.filter(pc.is_null(table["reason"]))
        yield good.select(LOADER_SCHEMA.names).cast(LOADER_SCHEMA)


def write_facts(
    out: Path,
    counts: DatasetCounts,
    format_name: str,
    options: dict[str, Any],
    official: list[str],
    warnings: list[str],
) -> None:
    """Write dataset.json, the last file of a preparation.

    Args:
        out: The prepared folder.
        counts: What it holds.
        format_name: Format of the source.
        options: Fingerprint of the options.
        official: Comparison with the official numbers, for people.
        warnings: What may be a mistake of the user, for people.
    """
    facts: dict[str, Any] = {
        "layout": LAYOUT,
        "format": format_name,
        "clips": counts.clips,
        "bad": counts.bad,
        "files": counts.files,
        "captions": counts.captions,
        "bytes": counts.bytes,
        "hashes": index_hashes(out),
        "official": official,
        "options": options,
    }
    if warnings:
        facts["warnings"] = warnings
    write_atomic(out / "dataset.json", json.dumps(facts, indent=1) + "\n")
