#!/usr/bin/env python3
"""Unpack Parquet files that hold images or videos into WebDataset tars, for `allinone prepare`.

    tools/unpack.py data/ --out tars
    allinone prepare tars --out prepared/mine --caption-fields text

A row becomes NUMBER.jpg (or mp4, …) and NUMBER.json with its other columns. The media column is the
first that holds bytes, as Hugging Face data sets store images and videos ({bytes, path}), or plain
binary; --media names another. A column of URLs works if the files were downloaded before:

    tools/unpack.py list.parquet --out tars --media url --files images --names "{md5}.jpg"

Each Parquet file gives one tar of its name, written under another name first: repeating the command
continues after an interruption. Rows without a media file stay in the tar as .json only, so that
`prepare` names and counts them.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from allinone.common.access import require_writable
from allinone.common.atomic_io import atomic_path
from allinone.common.command_line import parse, run_command
from allinone.common.console import setup_logging
from allinone.common.errors import DataError, InputError
from allinone.data.decoding.codecs import IMAGES, VIDEOS
from allinone.data.sources.media import image_path, leaves_folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

log = logging.getLogger("allinone.tools.unpack")  # not __name__, which is __main__ in a script

BATCH_ROWS = 64
"""Rows that are in memory at a time: those of videos have megabytes each."""
MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG", "png"),
    (8, b"WEBP", "webp"),
    (0, b"GIF8", "gif"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
    (8, b"AVI ", "avi"),
)
"""Offset, bytes and extension of the formats that are told apart by their content."""


@dataclass(frozen=True)
class UnpackOptions:
    """Options of unpacking."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A Parquet file, or a folder of them."""
    out: Path
    """Folder of the tars."""
    media: str = ""
    """Column of the images or videos; by default the first that holds bytes."""
    files: Path | None = None
    """Folder of the downloaded files, if the column holds URLs."""
    names: str = "{basename}"
    """Template of a file's path below that folder; fields: {split} (always train), {number} (row,
    from 0, over all files), {crc32}, {md5} and {basename} of the URL."""


def media_column(schema: pa.Schema, options: UnpackOptions, path: Path) -> str:
    """Name of the media column.

    Args:
        schema: Schema of a Parquet file.
        options: May name the column.
        path: The file, for messages.

    Raises:
        InputError: There is no such column, or none that holds bytes.
    """
    import pyarrow as pa

    def holds_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(part.name == "bytes" and holds_bytes(part.type) for part in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    name = options.media or next(iter(found), "")
    if name not in schema.names:
        raise InputError(
            f"{path} has no column {name!r}" if name else f"{path} has no column that holds bytes",
            hint=f"its columns: {', '.join(schema.names)}; --media names one of them",
        )
    if name not in found and options.files is None:
        raise InputError(
            f"{path}: column {name} holds no bytes; for URLs of files that were downloaded, give"
            " their folder: --files DIR --names TEMPLATE"
        )
    return name


def extension_of(content: bytes, name: str) -> str:
    """Extension of a media file by its name, else by its content; empty if neither is known."""
    suffix = name.rpartition(".")[2].lower()
    if suffix in IMAGES | VIDEOS:
        return suffix
    known = (kind for start, magic, kind in MAGIC if content[start:].startswith(magic))
    return next(known, "")


def _content(value: Any, number: int, folder: Path, options: UnpackOptions) -> tuple[bytes, str]:
    """(bytes, extension) of a row's media; ("", "") if there are none.

    Args:
        value: The row's field: bytes, {bytes, path}, or a URL.
        number: The row, over all files.
        folder: Folder of the Parquet file.
        options: Folder and template for URLs.
    """
    name = ""
    if isinstance(value, dict):
        name, value = str(value.get("path") or ""), value.get("bytes")
        if value is None and name and not leaves_folder(Path(name)):
            return _file(folder / name)  # the library may store the path alone
    if isinstance(value, str) and options.files is not None:
        return _file(options.files / image_path(options.names, "train", number, value))
    return (value, extension_of(value, name)) if isinstance(value, bytes) else (b"", "")


def _file(path: Path) -> tuple[bytes, str]:
    if not path.is_file():
        return b"", ""
    content = path.read_bytes()
    return content, extension_of(content, path.name)


def _metadata(path: Path) -> pq.FileMetaData:
    """Schema and number of rows; DataError if it is no Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file; DataError if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def unpack(path: Path, first: int, options: UnpackOptions) -> tuple[int, int]:
    """Write one tar.

    Args:
        path: The Parquet file.
        first: Number of its first row, over all files.
        options: Column and folders.

    Returns:
        (rows, rows without a media file).

    Raises:
        DataError: The file is damaged.
    """
    column = media_column(_metadata(path).schema.to_arrow_schema(), options, path)
    count = without = 0
    target = options.out / f"{path.stem}.tar"
    with atomic_path(target) as temporary, tarfile.open(temporary, "w") as tar:
        for count, row in enumerate(rows(path), 1):
            key = f"{first + count - 1:09d}"
            content, extension = _content(row.pop(column), first + count - 1, path.parent, options)
            if extension:
                _add(tar, f"{key}.{extension}", content)
            without += not extension
            # bytes of other columns are not captions
            kept = {name: value for name, value in row.items() if not isinstance(value, bytes)}
            _add(tar, f"{key}.json", json.dumps(kept, default=str).encode())
    return count, without


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time and no owner: equal rows give equal tars
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    options: UnpackOptions = parse(
        UnpackOptions, argv, prog="tools/unpack.py", description=__doc__ or ""
    )
    setup_logging()
    source = options.source
    paths = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not paths or not paths[0].is_file():
        raise InputError(f"{source} is no Parquet file and holds none")
    if options.files is not None:
        image_path(options.names, "train", 0, "")  # a wrong template ends the command here
    require_writable(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    first = 0
    for path in paths:
        total = _metadata(path).num_rows
        if (options.out / f"{path.stem}.tar").exists():
            log.info("%s: its tar is there", path.name)
        else:
            count, without = unpack(path, first, options)
            log.info("%s: %s rows, %s without a media file", path.name, f"{count:,}", without)
        first += total
    log.info("next: allinone prepare %s --out DIR --caption-fields NAME", options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
