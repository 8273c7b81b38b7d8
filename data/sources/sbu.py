"""SBU Captioned Photos (Ordonez et al., NeurIPS 2011).

sbu-captions-all.json with the parallel lists image_urls, user_ids and captions, or the older
SBU_captioned_photo_dataset_urls.txt and ..._captions.txt, aligned by line.

The path of an image is the file name of its URL (or follows from it by the template --names).
Photos that were deleted at Flickr are downloaded as one placeholder image; images that many rows
share are therefore rejected when the index is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allinone.common.errors import DataError
from allinone.data.sources.media import image_path, media_folder, media_row
from allinone.data.sources.reading import listed_files, load_json
from allinone.data.sources.schema import ReadOptions, SourceFormat, SourceRow, bad_row

JSON_FILE = "sbu-captions-all.json"
URL_FILE = "SBU_captioned_photo_dataset_urls.txt"
CAPTION_FILE = "SBU_captioned_photo_dataset_captions.txt"


def _files(source: Path) -> list[Path]:
    return listed_files(source, (JSON_FILE, URL_FILE))[:1]  # both hold the same photos


def _pairs(path: Path) -> list[tuple[Any, Any]]:
    """(URL, caption) of every photo; damaged records may hold other types."""
    if path.suffix == ".json":
        content = load_json(path)
        record = content if isinstance(content, dict) else {}
        urls, captions = record.get("image_urls"), record.get("captions")
    else:
        caption_file = path.with_name(CAPTION_FILE)
        if not caption_file.is_file():
            raise DataError(
                f"{caption_file} is missing; the official archive has it next to {path.name}"
            )
        urls, captions = _lines(path), _lines(caption_file)
    if not isinstance(urls, list) or not isinstance(captions, list) or len(urls) != len(captions):
        raise DataError(
            f"{path}: image_urls and captions are not two lists of one length; download it again"
        )
    return list(zip(urls, captions, strict=True))


def _lines(path: Path) -> list[str]:
    # not splitlines, which also splits at Unicode line separators inside captions
    return path.read_text(encoding="utf-8-sig", errors="replace").rstrip("\n").split("\n")


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    root = media_folder(source, options.media, "images")
    for path in _files(source):
        for number, (url, caption) in enumerate(_pairs(path)):
            place = f"{path.name}:{number}"
            if not isinstance(url, str) or not isinstance(caption, str):
                detail = f"record {number} is not a pair of texts"
                yield bad_row("train", place, path, place, detail)
                continue
            image = image_path(options.names or "{basename}", "train", number, url)
            yield media_row("train", image.as_posix(), (caption,), root, image, path, place, "jpg")


FORMAT = SourceFormat(
    "sbu",
    f"{JSON_FILE} or {URL_FILE}, or a folder with it",
    _files,
    _read,
    {name: {"train": (1_000_000, True)} for name in (JSON_FILE, URL_FILE)},
)
