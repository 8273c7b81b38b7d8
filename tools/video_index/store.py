"""The files of an index.

    INDEX/index.json              the model, the folder of the videos, the list of parts
    INDEX/part-000001.parquet     one row per clip: file, size, modification time, start, end
    INDEX/part-000001.safetensors embeddings of the same rows, [rows, D], of unit length

Parts are only added. The newest part that names a file has all of its clips; its rows in older
parts no longer count. A file that was deleted, or cannot be read, has one row without an embedding.
A part counts once index.json lists it, which is replaced atomically: an interrupted write loses the
part, never the index.

Letters: D projection width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from allinone.common.atomic_io import atomic_path, content_hash, remove_leftovers, write_atomic
from allinone.common.errors import DataError, InputError
from allinone.tools.video_index.remote_media import inside, remote_media

MANIFEST = "index.json"
FORMAT = 1
_PART = re.compile(r"part-\d{6}")
_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
Precision = Literal["fp16", "fp32"]


@dataclass(frozen=True)
class IndexSettings:
    """What all parts of an index have in common; a change needs a new index."""

    weights: str
    """Content hash of the model's weights."""
    width: int
    """D."""
    clip_s: float
    """Length of the clips that long videos are divided into, seconds."""
    precision: Precision
    """Of the stored embeddings."""


@dataclass(frozen=True)
class IndexedClip:
    """A row: a clip, or a file without one."""

    path: str
    """Relative to the folder of the videos, with forward slashes."""
    size: int
    """Bytes of the file."""
    mtime_ns: int
    """Its modification time. With the size it tells whether the file has changed."""
    start_s: float = 0.0
    """Start of the clip, seconds."""
    end_s: float | None = None
    """End of the clip; None: end of the file."""
    problem: str = ""
    """Why the clip cannot be found: DELETED, or what is wrong with the file."""


@dataclass(frozen=True)
class Manifest:
    """Content of index.json."""

    root: str
    """Absolute path of the folder of the videos when the index was last written."""
    checkpoint: str
    """What --checkpoint was given; searching takes it unless told otherwise."""
    settings: IndexSettings
    parts: tuple[tuple[str, int, str], ...] = ()
    """(name, rows, hash of the Parquet file) of each part."""

    @property
    def rows(self) -> int:
        """Rows of all parts, those that no longer count included."""
        return sum(rows for _, rows, _ in self.parts)


def read_manifest(folder: Path) -> Manifest | None:
    """Read index.json; None if there is none; DataError if it is damaged."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}; this version reads {FORMAT}")
        settings = IndexSettings(**content["settings"])
        manifest = Manifest(
            str(content["root"]),
            str(content["checkpoint"]),
            settings,
            tuple((str(name), int(rows), str(digest)) for name, rows, digest in content["parts"]),
        )
        if settings.precision not in _DTYPES or int(settings.width) < 1:
            raise ValueError(f"settings {content['settings']!r}")
        # names become paths
        if wrong := [name for name, _, _ in manifest.parts if not _PART.fullmatch(name)]:
            raise ValueError(f"a part named {wrong[0]!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not an index of videos: {error}") from error
    return manifest


def add_part(
    folder: Path, manifest: Manifest, rows: Sequence[IndexedClip], embeddings: Tensor
) -> Manifest:
    """Add a part.

    Args:
        folder: The index.
        manifest: Its present content.
        rows: All clips of the files that they name.
        embeddings: float32 [rows, D]; zeros for rows with a problem.

    Returns:
        The new content, which is on the disk.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save

    number = 1 + max((int(name[5:]) for name, _, _ in manifest.parts), default=0)
    name = f"part-{number:06d}"
    stored = embeddings.to(_DTYPES[manifest.settings.precision]).contiguous()
    # not save_file, which leaves 0600 behind whatever the umask; a part has a few megabytes
    write_atomic(folder / f"{name}.safetensors", save({"embeddings": stored}))
    columns = {name: [getattr(row, name) for row in rows] for name in _schema().names}
    with atomic_path(folder / f"{name}.parquet") as temporary:
        pq.write_table(pa.table(columns, schema=_schema()), temporary)
    digest = content_hash((folder / f"{name}.parquet").read_bytes())
    manifest = replace(manifest, parts=(*manifest.parts, (name, len(rows), digest)))
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace index.json."""
    content = {"format": FORMAT, **asdict(manifest)}
    write_atomic(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def remove_unlisted(folder: Path, manifest: Manifest | None) -> None:
    """Delete parts that an interrupted write left, before the lock's holder adds others."""
    remove_leftovers(folder)
    listed = {name for name, _, _ in manifest.parts} if manifest else set()
    for path in folder.glob("part-*"):
        if path.name.partition(".")[0] not in listed and _PART.fullmatch(path.stem):
            path.unlink(missing_ok=True)


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("path", pa.string()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("problem", pa.string()),
        ]
    )


DELETED = "deleted"
"""Problem of a file that is no longer there."""


class VideoIndex:
    """An index opened for reading. A part that is added later is not seen.

    Args:
        folder: The index.

    Raises:
        InputError: There is no index.
        DataError: It is damaged.
    """

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(
                f"--index {folder} is not an index of videos; make one: allinone index DIR"
                f" --checkpoint … --out {folder}"
            )
        self.folder = folder
        self.manifest = manifest
        self.embeddings = [self._embeddings(name, rows) for name, rows, _ in manifest.parts]
        """One tensor [rows, D] per part, mapped from its file."""
        self._table = self._read_tables()
        live = self._live()
        self.live: NDArray[np.bool_] = live
        """bool [rows of all parts]: rows that count."""
        problems = self._table.column("problem").to_numpy(zero_copy_only=False)
        has_clip = problems == ""
        self.clips: NDArray[np.int64] = np.flatnonzero(live & has_clip)
        """Numbers of the rows that can be found."""
        self._problems = np.flatnonzero(live & ~has_clip)

    def __len__(self) -> int:
        return len(self.clips)

    def row(self, number: int) -> IndexedClip:
        """The row of this number, counted over all parts."""
        return IndexedClip(**self._table.slice(number, 1).to_pylist()[0])

    def problems(self) -> dict[str, str]:
        """File → why it has no clip; deleted files are left out."""
        rows = (self.row(int(number)) for number in self._problems)
        return {row.path: row.problem for row in rows if row.problem != DELETED}

    def known(self) -> dict[str, tuple[int, int, str]]:
        """File → (size, modification time, problem), of all files ever indexed."""
        table = self._table.filter(self.live).select(["path", "size", "mtime_ns", "problem"])
        columns = (table.column(name).to_pylist() for name in table.column_names)
        return {
            path: (size, mtime, problem)
            for path, size, mtime, problem in zip(*columns, strict=True)
        }

    def file_codes(self) -> NDArray[np.int64]:
        """Number of the file of every row, int64 [rows of all parts]."""
        return self._codes

    def file(self, path: str, *, content: bool = False) -> Path:
        """Where an indexed file is.

        Args:
            path: Its path below the folder of the videos.
            content: Copy it from object storage; otherwise a file there has size and version only.

        Raises:
            DataError: The path leaves the folder, or the storage does not give the file.
        """
        media = remote_media(Path(self.manifest.root))
        if media is None:
            return inside(Path(self.manifest.root), path)
        if content:
            media.fetch([path])
        return media.file(path)

    def _embeddings(self, name: str, rows: int) -> Tensor:
        from safetensors import SafetensorError, safe_open

        path = self.folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor("embeddings")
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} is damaged: {error}; make the index again") from error
        expected = (rows, self.manifest.settings.width)
        if tuple(tensor.shape) != expected or tensor.dtype not in _DTYPES.values():
            raise DataError(
                f"{path} is damaged: it has {list(tensor.shape)} {tensor.dtype}, index.json says"
                f" {list(expected)}; make the index again"
            )
        return tensor

    def _read_tables(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = [_schema().empty_table()]
        for name, rows, digest in self.manifest.parts:
            path = self.folder / f"{name}.parquet"
            try:
                content = path.read_bytes()
                if content_hash(content) != digest:
                    raise DataError(f"{path} is damaged: its hash differs from that in index.json")
                table = pq.read_table(pa.BufferReader(content), schema=_schema())
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{path} is damaged: {error}; make the index again") from error
            if table.num_rows != rows:
                raise DataError(f"{path} has {table.num_rows} rows, index.json says {rows}")
            tables.append(table)
        return pa.concat_tables(tables).combine_chunks()

    def _live(self) -> NDArray[np.bool_]:
        """Rows of the newest part that names their file."""
        encoded = self._table.column("path").combine_chunks().dictionary_encode()
        self._codes = encoded.indices.to_numpy().astype(np.int64)
        sizes = [rows for _, rows, _ in self.manifest.parts]
        part = np.repeat(np.arange(len(sizes)), sizes)
        newest = np.zeros(len(encoded.dictionary), np.int64)
        np.maximum.at(newest, self._codes, part)
        live: NDArray[np.bool_] = newest[self._codes] == part
        return live
