"""Fragments of all shards → one index, counts and the list of bad clips. Reads a shard's fragment
at a time: HowTo100M has 136 million clips."""

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
from allinone.data.loading.index import (
    CLIPS_PER_BATCH,
    LAYOUT,
    LOADER_SCHEMA,
    SCHEMA,
    VIDEO_SCHEMA,
    VIDEOS_PER_BATCH,
    Clip,
    Video,
    write_mapped,
)

PLACEHOLDER_COPIES = 20
"""An image that so many rows share is no photo but what a site shows for a deleted one (Flickr's in
SBU): none of its rows is used."""


def fragment_paths(out: Path, name: str) -> tuple[Path, Path]:
    """(stored files, clips) of one shard. The second is written last: where it stands, the shard is
    whole."""
    return out / "parts" / f"{name}.videos.parquet", out / "parts" / f"{name}.parquet"


def write_fragment(out: Path, name: str, videos: list[Video], clips: list[Clip]) -> None:
    """Both tables of one shard; a clip's `video` counts inside the shard."""
    for_videos, for_clips = fragment_paths(out, name)
    with atomic_path(for_videos) as temporary:
        pq.write_table(
            pa.Table.from_pylist([vars(video) for video in videos], schema=VIDEO_SCHEMA), temporary
        )
    with atomic_path(for_clips) as temporary:
        pq.write_table(
            pa.Table.from_pylist([vars(clip) for clip in clips], schema=SCHEMA), temporary
        )


def bad_files(out: Path, name: str) -> dict[str, str]:
    """Key → reason of a shard's files that are not stored."""
    table = pq.read_table(fragment_paths(out, name)[1], columns=["key", "video", "reason"])
    return {
        row["key"]: row["reason"] for row in table.filter(pc.is_null(table["video"])).to_pylist()
    }


@dataclass(frozen=True)
class Merged:
    """What a prepared folder holds."""

    clips: dict[str, int]
    """Good clips per split."""
    bad: dict[str, int]
    """Bad files and captions per reason."""
    files: tuple[int, int]
    """Stored and listed."""
    captions: tuple[int, int]
    """Good clips, and clips listed by the stored files."""
    bytes: int

    @property
    def kept_share(self) -> float:
        """Share of the listed clips that can be used. How many a lost long video had is not known:
        as many as the others, is assumed."""
        (stored, listed), (good, all_clips) = self.files, self.captions
        return stored / max(listed, 1) * good / max(all_clips, 1)


def merge_fragments(out: Path, names: list[str]) -> Merged:
    """Write index and videos, Parquet and Arrow, and bad_clips.jsonl; equal bytes whoever made the
    fragments. DataError where one is missing."""
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
    for folder in (out, out / "shards", out / "parts"):
        remove_leftovers(folder)
    placeholders = _placeholders(out, names)
    write_mapped(
        out / "videos.arrow", VIDEO_SCHEMA, (_videos(out, name) for name in names), VIDEOS_PER_BATCH
    )
    with (
        atomic_path(out / "videos.parquet") as path,
        pq.ParquetWriter(path, VIDEO_SCHEMA, compression="zstd") as writer,
    ):
        for name in names:
            writer.write_table(_videos(out, name))
    clips: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    total = stored = cuts = lost_files = 0
    with (
        atomic_path(out / "index.parquet") as path,
        pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer,
        atomic_path(out / "bad_clips.jsonl") as ledger,
        ledger.open("w", encoding="utf-8") as bad_rows,
    ):
        for name in names:
            videos = _videos(out, name)
            table = _clips(out, name, videos, stored, placeholders)
            writer.write_table(table)
            lost = table.filter(pc.is_valid(table["reason"]))
            for row in lost.select(["key", "source", "reason", "detail"]).to_pylist():
                bad_rows.write(json.dumps(row) + "\n")
                bad[row["reason"]] += 1
            clips[name.rpartition("-")[0]] += table.num_rows - lost.num_rows
            cuts += table.num_rows - table["video"].null_count
            lost_files += table["video"].null_count
            stored += videos.num_rows
            total += (out / "shards" / f"{name}.tar").stat().st_size
    write_mapped(
        out / "index.arrow", LOADER_SCHEMA, _good_clips(out / "index.parquet"), CLIPS_PER_BATCH
    )
    return Merged(
        dict(clips), dict(bad), (stored, stored + lost_files), (sum(clips.values()), cuts), total
    )


def _videos(out: Path, name: str) -> pa.Table:
    return pq.read_table(fragment_paths(out, name)[0], schema=VIDEO_SCHEMA)


def _clips(out: Path, name: str, videos: pa.Table, base: int, placeholders: pa.Array) -> pa.Table:
    """A shard's clips, numbered through the whole data set."""
    table = pq.read_table(fragment_paths(out, name)[1], schema=SCHEMA)
    local = table["video"]
    if len(placeholders):
        shared = pc.fill_null(pc.is_in(videos["hash"].take(local), value_set=placeholders), False)
        for column, text in (
            ("reason", "placeholder"),
            ("detail", f"at least {PLACEHOLDER_COPIES} rows share this very image"),
        ):
            table = table.set_column(
                table.schema.get_field_index(column),
                column,
                pc.if_else(shared, text, table[column]),
            )
    return table.set_column(
        table.schema.get_field_index("video"), "video", pc.add(local, base)
    ).cast(SCHEMA)


def _placeholders(out: Path, names: list[str]) -> pa.Array:
    """Hashes of images that too many rows share."""
    seen: list[Any] = []
    for name in names:
        table = pq.read_table(fragment_paths(out, name)[0], columns=["hash", "media"])
        seen.append(table.filter(pc.equal(table["media"], "image"))["hash"].combine_chunks())
    counted = pa.chunked_array(seen, pa.string()).value_counts()
    return counted.field("values").filter(
        pc.greater_equal(counted.field("counts"), PLACEHOLDER_COPIES)
    )


def _good_clips(path: Path) -> Iterator[pa.Table]:
    """Clips without a reason; the shards' order keeps splits together."""
    for batch in pq.ParquetFile(path).iter_batches(CLIPS_PER_BATCH):
        table = pa.Table.from_batches([batch])
        yield (
            table.filter(pc.is_null(table["reason"]))
            .select(LOADER_SCHEMA.names)
            .cast(LOADER_SCHEMA)
        )


def write_facts(
    out: Path, merged: Merged, kind: str, options: dict[str, Any], official: list[str]
) -> None:
    """dataset.json, the last file of preparing."""
    facts = {
        "layout": LAYOUT,
        "format": kind,
        "clips": merged.clips,
        "bad": merged.bad,
        "files": merged.files,
        "captions": merged.captions,
        "bytes": merged.bytes,
        "official": official,
        "options": options,
    }
    write_atomic(out / "dataset.json", json.dumps(facts, indent=1) + "\n")
