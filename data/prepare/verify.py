"""Whether a prepared folder is what its index says, and what lies in it."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from allinone.common.atomic_io import content_hash
from allinone.common.errors import DataError
from allinone.data.loading.index import (
    CLIPS_PER_BATCH,
    VIDEO_SCHEMA,
    VIDEOS_PER_BATCH,
    dataset_facts,
)
from allinone.data.prepare.probe import Limits, ProbePool
from allinone.data.prepare.worker import ClipTask, Found, worker

SAMPLED = 1_000_000
"""Clips looked at for the distributions; of more, the first ones of evenly spaced batches."""
ASIDE = frozenset({"txt", "json"})
"""Members of a shard that stand beside the media and are not in the index."""


def check(
    folder: Path,
    *,
    hashes: bool,
    decodes: int,
    seed: int,
    workers: int,
    progress: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """What is damaged, a sentence each; empty where all is well. DataError where the folder is no
    finished prepared data set."""
    facts = dataset_facts(folder)
    try:
        columns = [
            name for name in VIDEO_SCHEMA.names if name not in ("frame_times", "keyframes")
        ]  # gigabytes, needed once
        videos = pq.read_table(folder / "videos.parquet", columns=columns)
        problems = [*_tables(folder, facts, videos), *_clips(folder, facts, videos)]
    except (OSError, pa.ArrowException) as error:
        return [f"the index cannot be read: {error}"]
    spans = _spans(videos["shard"])
    for path in sorted((folder / "shards").glob("*.tar")):
        if f"shards/{path.name}" not in spans and path.stat().st_size > tarfile.RECORDSIZE:
            problems.append(f"shards/{path.name} is not in the index")
    with ThreadPoolExecutor(workers) as pool:
        checked = pool.map(
            lambda name: check_shard(folder, name, _rows(videos, spans[name]), hashes), spans
        )
        for number, found in enumerate(checked, start=1):
            problems += found
            progress(f"{number}/{len(spans)} shards, {len(problems)} problems")
    return problems + _decode_some(folder, videos, decodes, seed, workers)


def _tables(folder: Path, facts: dict[str, Any], videos: pa.Table) -> Iterator[str]:
    """Parquet, Arrow and dataset.json must say the same."""
    mapped, seen, equal = (
        pa.ipc.open_file(pa.memory_map(str(folder / "videos.arrow"))).read_all(),
        0,
        True,
    )
    for batch in pq.ParquetFile(folder / "videos.parquet").iter_batches(VIDEOS_PER_BATCH):
        part = pa.Table.from_batches([batch]).cast(VIDEO_SCHEMA)
        equal = equal and mapped.slice(seen, batch.num_rows).equals(part)
        seen += batch.num_rows
    if not equal or mapped.num_rows != seen:
        yield (
            "videos.arrow and videos.parquet differ; the command that prepared them, with --merge,"
            " makes the index anew"
        )
    good = sum(facts["clips"].values())
    reader = pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow")))
    rows = sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
    if rows != good:
        yield f"index.arrow has {rows:,} clips, dataset.json says {good:,}"
    if videos.num_rows != facts["files"][0]:
        yield (
            f"videos.parquet has {videos.num_rows:,} files, dataset.json says {facts['files'][0]:,}"
        )


def _clips(folder: Path, facts: dict[str, Any], videos: pa.Table) -> Iterator[str]:
    """Every good clip has a caption, a stored file, and a window inside of it."""
    frames = videos["frames"].to_numpy(zero_copy_only=False)
    good = 0
    for batch in pq.ParquetFile(folder / "index.parquet").iter_batches(CLIPS_PER_BATCH):
        table = pa.Table.from_batches([batch])
        table = table.filter(pc.is_null(table["reason"]))
        good += table.num_rows
        video = pc.fill_null(table["video"], -1).to_numpy()
        outside = (video < 0) | (video >= videos.num_rows)
        available = frames[np.where(outside, 0, video)] if len(frames) else np.zeros(len(video))
        last = pc.fill_null(table["last_frame"], 0).to_numpy()
        first = pc.fill_null(table["first_frame"], 0).to_numpy()
        wrong = {
            "refers to no stored file": outside,
            "has a window beyond its file": (
                ~outside & ((first < 0) | (last < first) | (last >= available))
            ),
            "has no caption": (
                pc.fill_null(pc.list_value_length(table["captions"]), 0).to_numpy() == 0
            ),
        }
        for text, rows in wrong.items():
            for row in np.flatnonzero(rows)[:5]:
                yield f"clip {table['key'][int(row)]} {text}"
    if good != sum(facts["clips"].values()):
        yield (
            f"index.parquet has {good:,} good clips, dataset.json says"
            f" {sum(facts['clips'].values()):,}"
        )


def _spans(shards: pa.ChunkedArray) -> dict[str, list[tuple[int, int]]]:
    """Shard → [(first row, number of rows)]: the rows of a shard stand together."""
    encoded = shards.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1)).tolist()
    spans: dict[str, list[tuple[int, int]]] = {name: [] for name in encoded.dictionary.to_pylist()}
    for start, stop in itertools.pairwise([*starts, len(codes)]):
        spans[encoded.dictionary[int(codes[start])].as_py()].append((start, stop - start))
    return spans


def _rows(videos: pa.Table, spans: list[tuple[int, int]]) -> list[dict[str, Any]]:
    columns = videos.select(["offset", "size", "hash", "source"])
    return [row for first, number in spans for row in columns.slice(first, number).to_pylist()]


def check_shard(folder: Path, name: str, rows: list[dict[str, Any]], hashes: bool) -> list[str]:
    """One tar against its rows: offsets and sizes of members, nothing unknown, and, with `hashes`,
    the content."""
    problems: list[str] = []
    members: dict[int, tarfile.TarInfo] = {}
    try:
        with tarfile.open(folder / name) as archive:
            members = {member.offset_data: member for member in archive if member.isfile()}
        if (
            max((m.offset_data + m.size for m in members.values()), default=0)
            > (folder / name).stat().st_size
        ):
            problems.append(f"{name} is cut short")
    except (OSError, tarfile.TarError, EOFError) as error:
        return [f"{name} cannot be read as a tar: {error}"]
    known = {row["offset"] for row in rows}
    for member in members.values():
        if member.offset_data not in known and member.name.rpartition(".")[2] not in ASIDE:
            problems.append(f"{name}: member {member.name} is not in the index")
    with (folder / name).open("rb") as file:
        for row in rows:
            member_here = members.get(row["offset"])
            if member_here is None or member_here.size != row["size"]:
                problems.append(
                    f"{name}: no member of {row['size']:,} bytes at offset {row['offset']:,}"
                    f" ({row['source']})"
                )
            elif hashes:
                file.seek(row["offset"])
                if content_hash(file.read(row["size"])) != row["hash"]:
                    problems.append(
                        f"{name}: the bytes of {row['source']} are not those that were written"
                        f" (hash {row['hash']})"
                    )
    return problems


def _decode_some(folder: Path, videos: pa.Table, number: int, seed: int, workers: int) -> list[str]:
    """Random stored files, decoded to their end in processes that can be killed, against the
    index."""
    number = min(number, videos.num_rows)
    chosen = (
        np.sort(np.random.default_rng(seed).choice(videos.num_rows, number, replace=False))
        if number
        else np.array([], int)
    )
    if not chosen.size:
        return []
    rows = videos.take(pa.array(chosen)).to_pylist()
    tasks = [
        ClipTask((folder / row["shard"],), row["offset"], row["size"], row["container"])
        for row in rows
    ]
    pool = ProbePool(workers, Limits(1, float("inf"), 1800.0), worker)
    problems = []
    try:
        for task, reason, result in pool.map(tasks):
            row = rows[task]
            if reason is not None:
                problems.append(
                    f"{row['shard']}: {row['source']} does not decode ({reason}: {result})"
                )
                continue
            assert isinstance(result, Found)
            for column in ("frames", "width", "height", "codec", "rotation"):
                if result.columns[column] != row[column]:
                    problems.append(
                        f"{row['source']}: {column} is {result.columns[column]}, the index says"
                        f" {row[column]}"
                    )
    finally:
        pool.close()
    return problems


def distributions(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Values to be plotted, by title with unit. Of clips: length and words per caption; of stored
    files: the rest."""
    videos = pq.read_table(
        folder / "videos.parquet",
        columns=["width", "height", "size", "frames", "frame_rate", "duration_s", "keyframes"],
    )
    column = {
        name: videos[name].to_numpy(zero_copy_only=False)
        for name in videos.column_names
        if name != "keyframes"
    }
    gops = column["frames"] / np.maximum(
        pc.list_value_length(videos["keyframes"]).to_numpy(zero_copy_only=False), 1
    )
    lengths, words = [], []
    source = pq.ParquetFile(folder / "index.parquet")
    step = max(1, source.metadata.num_rows // SAMPLED)
    for number, batch in enumerate(source.iter_batches(CLIPS_PER_BATCH)):
        if number % step:
            continue
        table = pa.Table.from_batches([batch])
        table = table.filter(pc.is_null(table["reason"]))
        video = table["video"].to_numpy(zero_copy_only=False).astype(np.int64)
        span = (
            pc.add(pc.subtract(table["last_frame"], table["first_frame"]), 1)
            .to_numpy(zero_copy_only=False)
            .astype(float)
        )
        rate = np.maximum(column["frame_rate"][video], 1e-9)
        lengths.append(np.where(np.isnan(span), column["duration_s"][video], span / rate))
        words.append(
            pc.list_value_length(
                pc.utf8_split_whitespace(pc.list_flatten(table["captions"]))
            ).to_numpy(zero_copy_only=False)
        )
    return {
        "clip length, s": np.concatenate(lengths or [np.array([])]).astype(float),
        "words per caption": np.concatenate(words or [np.array([])]).astype(float),
        "short side, pixels": np.minimum(column["width"], column["height"]).astype(float),
        "frame rate, 1/s": column["frame_rate"].astype(float),
        "file size, kB": column["size"] / 1e3,
        "frames per keyframe": gops.astype(float),
    }


def require_splits(folder: Path, split: str | None) -> str:
    """The split asked for, or the first with clips; DataError where there is none."""
    clips = {name: number for name, number in dataset_facts(folder)["clips"].items() if number}
    if split is None and clips:
        return next(iter(clips))
    if split is None or split not in clips:
        raise DataError(
            f"{folder} has no good clip in split {split!r}; splits: {', '.join(clips) or 'none'}"
        )
    return split
