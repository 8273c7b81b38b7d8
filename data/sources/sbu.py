"""SBU Captioned Photos (Ordonez et al., NeurIPS 2011): sbu-captions-all.json with the parallel
lists image_urls, user_ids and captions, or the older SBU_captioned_photo_dataset_urls.txt and
..._captions.txt, aligned by line.

Images are looked for by the file name of their URL (--names is a template over it). Photos that
were deleted at Flickr come as one placeholder image; preparing refuses an image that many rows
share.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allinone.common.errors import DataError
from allinone.data.sources.base import (
    Format,
    ReadOptions,
    SourceRow,
    bad,
    image_of,
    load_json,
    media_row,
)

JSON_FILE = "sbu-captions-all.json"
TEXT_FILES = ("SBU_captioned_photo_dataset_urls.txt", "SBU_captioned_photo_dataset_captions.txt")


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.name in (JSON_FILE, TEXT_FILES[0]) else []
    return [source / name for name in (JSON_FILE, TEXT_FILES[0]) if (source / name).is_file()][:1]


def _pairs(path: Path) -> list[tuple[str, str]]:
    columns: list[Any]
    if path.suffix == ".json":
        content = load_json(path)
        columns = (
            [content.get(name) for name in ("image_urls", "captions")]
            if isinstance(content, dict)
            else []
        )
    else:
        other = path.with_name(TEXT_FILES[1])
        if not other.is_file():
            raise DataError(
                f"{other} is missing; it stands beside {path.name} in the official archive"
            )
        # not splitlines: captions may hold characters that it takes for line ends
        columns = [
            file.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
            for file in (path, other)
        ]
    if (
        len(columns) != 2
        or not all(isinstance(column, list) for column in columns)
        or len(columns[0]) != len(columns[1])
    ):
        raise DataError(
            f"{path}: image_urls and captions are no two lists of one length; download it again"
        )
    return list(zip(*columns, strict=True))


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    root = options.media or (source.parent if source.is_file() else source) / "images"
    for path in _files(source):
        for number, (url, caption) in enumerate(_pairs(path)):
            place = f"{path.name}:{number}"
            if not isinstance(url, str) or not isinstance(caption, str):
                yield bad("train", place, path, place, f"record {number} is no pair of texts")
                continue
            relative = image_of(options.names or "{basename}", "train", number, url)
            yield media_row(
                "train", relative.as_posix(), (caption,), root, relative, path, place, "jpg"
            )


FORMAT = Format(
    "sbu",
    f"{JSON_FILE} or {TEXT_FILES[0]}, or a folder with it",
    _files,
    _read,
    {name: {"train": (1_000_000, True)} for name in (JSON_FILE, TEXT_FILES[0])},
)
