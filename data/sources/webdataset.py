"""Tars as video2dataset and img2dataset write them: <key>.mp4|jpg|…, <key>.txt, <key>.json per
sample (github.com/webdataset/webdataset)."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from allinone.common.errors import DataError
from allinone.data.decoding.codecs import IMAGES, VIDEOS
from allinone.data.sources.base import Format, ReadOptions, SourceRow, bad


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".tar" else []
    return sorted(source.glob("*.tar"))


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    """Members are read by offset inside the tar; their names serve as keys only and never become
    paths. A key is the name up to the first dot behind the last slash, as WebDataset has it."""
    for path in _files(source):
        samples: dict[str, dict[str, tarfile.TarInfo]] = {}
        again: list[SourceRow] = []
        with path.open("rb") as file:
            try:
                with tarfile.open(fileobj=file) as archive:
                    for member in archive:
                        if member.isfile():
                            folder, slash, base = member.name.removeprefix("./").rpartition("/")
                            stem, _, extension = base.partition(".")
                            members = samples.setdefault(f"{folder}{slash}{stem}", {})
                            if extension.lower() in members:
                                name = f"{path.stem}/{member.name}"
                                again.append(
                                    bad(
                                        "train",
                                        name,
                                        path,
                                        name,
                                        f"{member.name} stands twice in the tar",
                                        "duplicate",
                                    )
                                )
                            else:
                                members[extension.lower()] = member
            except (tarfile.TarError, EOFError) as error:
                raise DataError(
                    f"{path} is no readable tar ({error}); delete or repair it"
                ) from error
            for key, members in samples.items():
                yield _row(path, file, key, members)
        yield from again


def _row(path: Path, file: IO[bytes], key: str, members: dict[str, tarfile.TarInfo]) -> SourceRow:
    def text(extension: str) -> str:
        member = members[extension]
        file.seek(member.offset_data)
        return file.read(member.size).decode("utf-8", errors="replace")

    caption, name = "", f"{path.stem}/{key}"
    if "txt" in members:
        caption = text("txt")
    elif "json" in members:
        try:
            caption = str(json.loads(text("json")).get("caption") or "")
        except (json.JSONDecodeError, AttributeError):
            caption = ""
    media = next((extension for extension in members if extension in VIDEOS | IMAGES), None)
    if media is None:
        return bad("train", name, path, name, "the sample has no media file", "missing")
    return SourceRow(
        "train",
        name,
        (caption,),
        path,
        name,
        members[media].offset_data,
        members[media].size,
        media,
    )


FORMAT = Format(
    "webdataset", "a .tar of video2dataset or img2dataset, or a folder of them", _files, _read
)
