"""Fingerprints of what a run reads: the content of prepared data and of the tokenizer.

They do not depend on where a folder is, on its shards, or on other splits in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allinone.common.atomic_io import content_hash
from allinone.common.errors import LASTING, DataError
from allinone.data.decoding.codecs import IMAGES, VIDEOS
from allinone.data.index import Index, choose_split, dataset_facts
from allinone.data.remote_index import local_index
from allinone.data.text import VOCABULARY, Tokenizer

SAMPLE = "A cat's re-encoded café video, №1: 日本 don't-stop!? naïve 3.14 ﬁlm\u200b end"
"""Text with accents, CJK, punctuation and a ligature, some of which another tokenizer cuts
elsewhere."""


def _joined_texts(column: pa.Array) -> memoryview:
    """The bytes of all texts of a column, one after the other, without a copy."""
    if column.null_count:
        column = pc.fill_null(column, "")  # the bytes of a null are not defined
    _, offsets, values = column.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(column) + 1, 4 * column.offset)
    return memoryview(values or b"")[bounds[0] : bounds[-1]]


class _Column:
    """A hash of a column's values that does not depend on how they are divided into batches."""

    def __init__(self) -> None:
        self._lengths, self._values = blake2b(digest_size=16), blake2b(digest_size=16)

    def add(self, column: pa.Array) -> None:
        """Add the column of a batch: numbers, texts, or lists of texts."""
        if pa.types.is_list(column.type):
            self._add_lengths(pc.list_value_length(column))
            column = column.flatten()
        if pa.types.is_string(column.type):
            self._add_lengths(pc.binary_length(column))
            self._values.update(_joined_texts(column))
        else:
            self._values.update(pc.fill_null(column, -1).cast(pa.int64()).to_numpy().tobytes())

    def _add_lengths(self, lengths: pa.Array) -> None:
        self._lengths.update(pc.fill_null(lengths, -1).cast(pa.int64()).to_numpy().tobytes())

    def digest(self) -> bytes:
        """The hash."""
        return self._lengths.digest() + self._values.digest()


def clips_fingerprint(folder: Path, split: str) -> dict[str, str]:
    """Hash the good clips of a split in their order, as training reads them.

    Args:
        folder: Prepared folder.
        split: Name of the split.

    Returns:
        "clips": hash of names, media bytes and windows; "captions": hash of the captions.

    Raises:
        DataError: The folder is unfinished or damaged.
    """
    clips = dataset_facts(folder)["clips"]
    local = local_index(folder)
    names = list(clips)
    try:
        split = choose_split(folder, clips, split)
    except DataError:
        return {}  # reading the split says what is wrong
    first = sum(clips[name] for name in names[: names.index(split)])
    Index(folder, split)  # validates what is read below
    columns = {name: _Column() for name in ("key", "captions", "hash", "first_frame", "last_frame")}
    try:
        videos = pa.ipc.open_file(pa.memory_map(str(local / "videos.arrow")))
        batches = (videos.get_batch(i) for i in range(videos.num_record_batches))
        # one array: a column of strings cannot be taken from in chunks of different batches
        hashes = pa.concat_arrays([batch.column("hash") for batch in batches])
        for batch in _rows(local / "index.arrow", first, clips[split]):
            for name, column in columns.items():
                column.add(hashes.take(batch["video"]) if name == "hash" else batch[name])
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno not in LASTING:
            raise
        raise DataError(
            f"the index of {folder} cannot be read ({error}); rebuild it with the command that"
            " prepared the folder and --merge"
        ) from error
    return {
        "clips": _joined(columns[name] for name in ("key", "hash", "first_frame", "last_frame")),
        "captions": _joined([columns["captions"]]),
    }


def _joined(columns: Iterable[_Column]) -> str:
    return content_hash(b"".join(column.digest() for column in columns))


def _rows(path: Path, first: int, number: int) -> Iterator[pa.RecordBatch]:
    """The rows [first, first + number) of an Arrow file, batch after batch."""
    file, start, end = pa.ipc.open_file(pa.memory_map(str(path))), 0, first + number
    for i in range(file.num_record_batches):
        batch = file.get_batch(i)
        begin, stop = max(first - start, 0), min(end - start, batch.num_rows)
        if begin < stop:
            yield batch.slice(begin, stop - begin)
        start += batch.num_rows


def tokenizer_fingerprint(vocabulary: Path = VOCABULARY) -> dict[str, str]:
    """Hash the vocabulary, and how a sample text is cut into its words."""
    pieces = " ".join(map(str, Tokenizer(vocabulary).ids(SAMPLE)))
    return {
        "vocabulary": content_hash(vocabulary.read_bytes()),
        "tokenizer": content_hash(pieces.encode()),
    }


def _is_media(path: Path) -> bool:
    return path.suffix[1:].lower() in IMAGES | VIDEOS


def files_fingerprint(files: Iterable[Path], root: Path) -> dict[str, str]:
    """Hash files completely, and the files in folders by name and size.

    Args:
        files: Files and folders. Folders hold one file per clip, up to millions, so their content
            is not read, and media among them (VCR has images and their boxes in one folder) are
            left out.
        root: Their names in the result are relative to it; names alone for files elsewhere.

    Returns:
        Name → hash.
    """
    found = {}
    for path in files:
        name = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
        digest = blake2b(digest_size=8)
        if path.is_dir():
            for inner in sorted(p for p in path.rglob("*") if not _is_media(p) and p.is_file()):
                digest.update(f"{inner.relative_to(path)}\0{inner.stat().st_size}\0".encode())
        else:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        found[name] = digest.hexdigest()
    return found
