"""Checks whether a prepared folder agrees with its index, and describes its contents."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from allinone.common.atomic_io import content_hash
from allinone.common.errors import DataError
from allinone.common.tar import list_members
from allinone.common.validation import MAX_PIXELS
from allinone.data.index import (
    CLIPS_PER_BATCH,
    LOADER_SCHEMA,
    SCHEMA,
    VIDEO_SCHEMA,
    VIDEOS_PER_BATCH,
    dataset_facts,
    index_hashes,
)
from allinone.data.index_validation import validate_index
from allinone.data.prepare.pool import ProbePool
from allinone.data.prepare.probe import Limits
from allinone.data.prepare.worker import ClipTask, ProbedFile, worker

SAMPLED = 1_000_000
"""Clips that the distributions are made of; of more, evenly spaced batches are used."""
METADATA = frozenset({"txt", "json"})
"""Extensions of a shard's members that accompany the media and are not in the index."""
DECODE_LIMITS = Limits(min_frames=1, max_duration_s=float("inf"), timeout_s=1800.0)
"""Only damage counts: the source has met the limits of its preparation, and re-encoding at the
average of a variable rate may have left fewer frames."""


def check(
    folder: Path,
    *,
    hashes: bool,
    decodes: int,
    seed: int,
    workers: int,
    max_pixels: int | None = None,
    progress: bool = False,
) -> list[str]:
    """Check a prepared folder.

    Args:
        folder: The prepared folder.
        hashes: Also compare the hash of every stored file, which reads every byte.
        decodes: Number of random files to decode.
        seed: Of the choice of these files.
        workers: Threads for the hashes, processes for decoding.
        max_pixels: As for `decode_limits`.
        progress: Show a progress bar on a terminal.

    Returns:
        What is damaged, a sentence each; empty if nothing is.

    Raises:
        DataError: The folder is not a finished prepared data set.
    """
    facts = dataset_facts(folder)
    # frame times and keyframes take gigabytes and are needed once
    columns = [name for name in VIDEO_SCHEMA.names if name not in ("frame_times", "keyframes")]
    try:
        problems = [*_check_files(folder, facts)]
        if problems:  # what follows relies on them
            return problems
        videos = pq.read_table(folder / "videos.parquet", columns=columns)
        problems = [*_check_hashes(folder, facts)]
        problems += [*_check_tables(folder, facts, videos), *_check_clips(folder, facts, videos)]
    except (OSError, pa.ArrowException, MemoryError, OverflowError) as error:
        return [f"the index cannot be read: {error}"]
    spans = _spans(videos["shard"])
    for path in sorted((folder / "shards").glob("*.tar")):
        # tarfile pads an archive without members, of a shard of bad files, to one record (10 KiB)
        if f"shards/{path.name}" not in spans and path.stat().st_size > tarfile.RECORDSIZE:
            problems.append(f"shards/{path.name} is not in the index")
    hidden = None if progress else True  # None: tqdm shows the bar on terminals only
    # threads suffice: reading and hashing large blocks release the GIL
    with ThreadPoolExecutor(workers) as pool:
        checked = pool.map(
            lambda name: check_shard(folder, name, _rows(videos, spans[name]), hashes), spans
        )
        for found in tqdm(checked, total=len(spans), unit=" shards", leave=False, disable=hidden):
            problems += found
    limits = decode_limits(facts, max_pixels)
    return problems + _decode_some(folder, videos, decodes, seed, workers, limits)


def _check_files(folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    """Tables must have their columns and announced numbers of rows."""
    for name, schema, rows in (
        ("index.parquet", SCHEMA, None),
        ("videos.parquet", VIDEO_SCHEMA, facts["files"][0]),
    ):
        if not (folder / name).is_file():
            yield f"the index cannot be read: there is no file {name}"
            return
        table = pq.ParquetFile(folder / name)
        if not table.schema_arrow.equals(schema):
            yield f"the index cannot be read: {name} has other columns"
        # before it is read: a few bytes of Parquet may stand for any number of equal rows
        elif rows is not None and table.metadata.num_rows != rows:
            yield f"{name} has {table.metadata.num_rows:,} files, dataset.json says {rows:,}"
    try:
        validate_index(
            folder,
            facts["clips"],
            (LOADER_SCHEMA, VIDEO_SCHEMA),
            (CLIPS_PER_BATCH, VIDEOS_PER_BATCH),
        )
    except DataError as error:
        yield f"the index cannot be read: {error}"


def _check_hashes(folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    """Files of the index must have the bytes that were written."""
    # folders of earlier versions have no hashes
    wanted = facts.get("hashes", {})
    if not isinstance(wanted, dict):
        yield "dataset.json: hashes is not an object"
        return
    found = index_hashes(folder) if wanted else {}
    for name in found:
        if wanted.get(name) != found[name]:
            yield f"{name} does not have the content that was written (sha256 {found[name]})"


def _check_tables(folder: Path, facts: dict[str, Any], videos: pa.Table) -> Iterator[str]:
    """Parquet, Arrow and dataset.json must agree."""
    mapped = pa.ipc.open_file(pa.memory_map(str(folder / "videos.arrow"))).read_all()
    seen, equal = 0, True
    for batch in pq.ParquetFile(folder / "videos.parquet").iter_batches(VIDEOS_PER_BATCH):
        part = pa.Table.from_batches([batch]).cast(VIDEO_SCHEMA)
        equal = equal and mapped.slice(seen, batch.num_rows).equals(part)
        seen += batch.num_rows
    if not equal or mapped.num_rows != seen:
        yield (
            "videos.arrow and videos.parquet differ; the command that prepared them, with --merge,"
            " makes the index again"
        )
    mapped = pa.ipc.open_file(pa.memory_map(str(folder / "index.arrow"))).read_all()
    seen, equal = 0, True
    for table in _good_batches(folder):
        part = table.select(LOADER_SCHEMA.names).cast(LOADER_SCHEMA)
        equal = equal and mapped.slice(seen, part.num_rows).equals(part)
        seen += part.num_rows
    if not equal or mapped.num_rows != seen:
        yield (
            "index.arrow, which training reads, and index.parquet differ; the command that prepared"
            " them, with --merge, makes the index again"
        )


def _good_batches(folder: Path) -> Iterator[pa.Table]:
    """The good clips of each batch of index.parquet."""
    for batch in pq.ParquetFile(folder / "index.parquet").iter_batches(CLIPS_PER_BATCH):
        table = pa.Table.from_batches([batch])
        yield table.filter(pc.is_null(table["reason"]))


def _check_clips(folder: Path, facts: dict[str, Any], videos: pa.Table) -> Iterator[str]:
    """Every good clip must have a caption, a stored file, and a window inside it."""
    frames = videos["frames"].to_numpy(zero_copy_only=False)
    good = 0
    for table in _good_batches(folder):
        good += table.num_rows
        video = pc.fill_null(table["video"], -1).to_numpy()
        outside = (video < 0) | (video >= videos.num_rows)
        # row 0 stands in for a row that does not exist, which has a message of its own
        available = frames[np.where(outside, 0, video)] if len(frames) else np.zeros(len(video))
        last = pc.fill_null(table["last_frame"], 0).to_numpy()
        first = pc.fill_null(table["first_frame"], 0).to_numpy()
        beyond = (first < 0) | (last < first) | (last >= available)
        captions = pc.fill_null(pc.list_value_length(table["captions"]), 0).to_numpy()
        wrong = {
            "refers to no stored file": outside,
            "has a window beyond its file": ~outside & beyond,
            "has no caption": captions == 0,
        }
        for text, rows in wrong.items():
            # five per batch of 65,536: a systematic fault would fill millions of lines
            for row in np.flatnonzero(rows)[:5]:
                yield f"clip {table['key'][int(row)]} {text}"
    wanted = sum(facts["clips"].values())
    if good != wanted:
        yield f"index.parquet has {good:,} good clips, dataset.json says {wanted:,}"


def _spans(shards: pa.ChunkedArray) -> dict[str, list[tuple[int, int]]]:
    """Shard → [(first row, number of rows)]; the rows of a shard are usually one span."""
    encoded = shards.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1)).tolist()  # codes begin at 0: row 0 starts
    spans: dict[str, list[tuple[int, int]]] = {name: [] for name in encoded.dictionary.to_pylist()}
    for start, stop in itertools.pairwise([*starts, len(codes)]):
        spans[encoded.dictionary[int(codes[start])].as_py()].append((start, stop - start))
    return spans


def _rows(videos: pa.Table, spans: list[tuple[int, int]]) -> list[dict[str, Any]]:
    columns = videos.select(["offset", "size", "hash", "source"])
    return [row for first, number in spans for row in columns.slice(first, number).to_pylist()]


def check_shard(folder: Path, name: str, rows: list[dict[str, Any]], hashes: bool) -> list[str]:
    """Compare one tar with its rows of the index.

    Args:
        folder: The prepared folder.
        name: The tar, relative to the folder.
        rows: offset, size, hash and source of every stored file in it.
        hashes: Also compare the content with the hash.

    Returns:
        What is damaged, a sentence each.
    """
    problems: list[str] = []
    try:
        with (folder / name).open("rb") as file:
            found, problem = list_members(file)
    except OSError as error:
        return [f"{name} cannot be read as a tar: {error}"]
    if problem:
        problems.append(f"{name} cannot be read completely: {problem}")
    members = {member.offset_data: member for member in found if member.isfile()}
    known = {row["offset"] for row in rows}
    for member in members.values():
        if member.offset_data not in known and member.name.rpartition(".")[2] not in METADATA:
            problems.append(f"{name}: member {member.name} is not in the index")
    with (folder / name).open("rb") as file:
        for row in rows:
            stored = members.get(row["offset"])
            if stored is None or stored.size != row["size"]:
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


def decode_limits(facts: dict[str, Any], max_pixels: int | None) -> Limits:
    """What stored files must meet.

    Args:
        facts: Of dataset.json.
        max_pixels: Most pixels of a frame; None: as the folder was prepared.
    """
    if max_pixels is None:
        options = facts.get("options")
        found = options.get("max_pixels") if isinstance(options, dict) else None
        max_pixels = found if isinstance(found, int) else MAX_PIXELS
    return replace(DECODE_LIMITS, max_pixels=max_pixels)


def _decode_some(
    folder: Path, videos: pa.Table, number: int, seed: int, workers: int, limits: Limits
) -> list[str]:
    """Decode random stored files, in processes that can be killed, and compare with the index.

    Args:
        folder: The prepared folder.
        videos: Table of its stored files.
        number: Files to decode, at most.
        seed: Of their choice.
        workers: Processes.
        limits: Time and pixels of each file.

    Returns:
        What is damaged, a sentence each.
    """
    number = min(number, videos.num_rows)
    if number <= 0:
        return []
    # sorted: neighbouring files are read from one shard
    chosen = np.sort(np.random.default_rng(seed).choice(videos.num_rows, number, replace=False))
    rows = videos.take(pa.array(chosen)).to_pylist()
    tasks = [
        ClipTask((folder / row["shard"],), row["offset"], row["size"], row["container"])
        for row in rows
    ]
    problems = []
    with closing(ProbePool(workers, limits, worker)) as pool:
        for task, reason, result in pool.map(tasks):
            row = rows[task]
            if reason is not None:
                detail = f"{row['source']} does not decode ({reason}: {result})"
                problems.append(f"{row['shard']}: {detail}")
                continue
            assert isinstance(result, ProbedFile)
            for column in ("frames", "width", "height", "codec", "rotation"):
                found = result.columns[column]
                if found != row[column]:
                    problems.append(
                        f"{row['source']}: {column} is {found}, the index says {row[column]}"
                    )
    return problems


def distributions(folder: Path) -> dict[str, NDArray[np.float64]]:
    """Values to plot, by title with unit.

    Length and words per caption are of clips, everything else is of stored files.
    """
    videos = pq.read_table(
        folder / "videos.parquet",
        columns=["width", "height", "size", "frames", "frame_rate", "duration_s", "keyframes"],
    )
    column = {
        name: videos[name].to_numpy(zero_copy_only=False)
        for name in videos.column_names
        if name != "keyframes"
    }
    keyframes = pc.list_value_length(videos["keyframes"]).to_numpy(zero_copy_only=False)
    lengths, words = [np.array([])], [np.array([])]
    rows = pq.ParquetFile(folder / "index.parquet").metadata.num_rows
    # one of every rows / SAMPLED batches, so about SAMPLED rows in all
    for table in itertools.islice(_good_batches(folder), 0, None, max(1, rows // SAMPLED)):
        video = table["video"].to_numpy(zero_copy_only=False).astype(np.int64)
        span = pc.add(pc.subtract(table["last_frame"], table["first_frame"]), 1)
        frames = span.to_numpy(zero_copy_only=False).astype(float)
        rate = np.maximum(column["frame_rate"][video], 1e-9)
        # a clip without a window is a complete file
        lengths.append(np.where(np.isnan(frames), column["duration_s"][video], frames / rate))
        split = pc.utf8_split_whitespace(pc.list_flatten(table["captions"]))
        words.append(pc.list_value_length(split).to_numpy(zero_copy_only=False))
    return {
        "clip length, s": np.concatenate(lengths).astype(float),
        "words per caption": np.concatenate(words).astype(float),
        "short side, pixels": np.minimum(column["width"], column["height"]).astype(float),
        "frame rate, 1/s": column["frame_rate"].astype(float),
        "file size, kB": column["size"] / 1e3,
        "frames per keyframe": (column["frames"] / np.maximum(keyframes, 1)).astype(float),
    }
