"""Tars of video2dataset and img2dataset: <key>.mp4|jpg|…, <key>.txt and <key>.json per sample.

The layout is WebDataset's (github.com/webdataset/webdataset).
"""

from __future__ import annotations

import math
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from allinone.common.errors import DataError
from allinone.common.json_text import parse_json
from allinone.common.tar import list_members
from allinone.data.decoding.codecs import IMAGES, VIDEOS
from allinone.data.sources.schema import ReadOptions, SourceFormat, SourceRow, bad_row, has_text

LARGEST_TEXT = 1 << 20
"""Bytes of a sample's .txt or .json; real ones have some thousand."""
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""First bytes of a compressed file → program that decompresses it."""
Members = dict[str, tarfile.TarInfo]
"""Extension → member of one sample."""


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".tar" else []
    return sorted(source.glob("*.tar"))


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    """Read members by their offset in the tar; their names are keys only and never become paths."""
    for path in _files(source):
        # one file object: all headers have been read before the captions are read by offset
        with path.open("rb") as file:
            _refuse_compressed(path, file)
            found, problem = list_members(file)
            if problem and not found and path == source:
                raise DataError(f"{path} is not a readable tar: {problem}; delete or repair it")
            samples, duplicates = _samples(path, found)
            for key, members in samples.items():
                yield _row(path, file, key, members, options.caption_fields)
        yield from duplicates
        if problem:
            detail = (
                f"{path.name}: {problem}; samples after its {len(found):,} readable members are"
                " missing, download it again"
            )
            yield bad_row("train", path.name, path, path.name, detail, "damaged_tar")


def _refuse_compressed(path: Path, file: IO[bytes]) -> None:
    """Raise DataError: members are read by their place, which a compressed tar does not have."""
    head = file.read(6)
    file.seek(0)
    if compression := next((name for m, name in COMPRESSED.items() if head.startswith(m)), None):
        raise DataError(
            f"{path} is a compressed tar ({compression}); decompress it, for example: {compression}"
            f" -dc < {shlex.quote(path.name)} > decompressed.tar"
        )


def _samples(
    path: Path, found: list[tarfile.TarInfo]
) -> tuple[dict[str, Members], list[SourceRow]]:
    """(members by key, rows of the members that occur twice).

    A key is the name up to the first dot after the last slash, as in WebDataset.
    """
    samples: dict[str, Members] = {}
    duplicates: list[SourceRow] = []
    for member in found:
        # the content of a sparse member is not one piece of the tar
        if not member.isfile() or member.issparse():
            continue
        # the folder apart: a dot in its name does not end the key
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        stem, _, extension = base.partition(".")
        members = samples.setdefault(f"{folder}{slash}{stem}", {})
        if extension.lower() not in members:
            members[extension.lower()] = member
            continue
        name = f"{path.stem}/{member.name}"
        detail = f"{member.name} occurs twice in the tar"
        duplicates.append(bad_row("train", name, path, name, detail, "duplicate"))
    return samples, duplicates


def _row(
    path: Path, file: IO[bytes], key: str, members: Members, fields: tuple[str, ...]
) -> SourceRow:
    """Convert one sample.

    Args:
        path: The tar.
        file: The opened tar, from which the caption is read.
        key: The sample's key.
        members: Its members.
        fields: As `ReadOptions.caption_fields`.
    """
    name = f"{path.stem}/{key}"
    media = _media_members(members)
    if not media:
        found = ", ".join(sorted(members))[:200]
        detail = f"the sample has no media file, only {found}"
        return bad_row("train", name, path, name, detail, "missing")
    if len(media) > 1:
        detail = f"the sample has several media files, {', '.join(media)}; leave one of them"
        return bad_row("train", name, path, name, detail, "ambiguous")
    try:
        captions = _captions(file, members, fields)
    except ValueError as error:
        detail = f"the caption cannot be read ({type(error).__name__}: {str(error)[:100]})"
        return bad_row("train", name, path, name, detail)
    return SourceRow(
        "train",
        name,
        captions,
        path,
        name,
        members[media[0]].offset_data,
        members[media[0]].size,
        media[0],
    )


def _media_members(members: Members) -> list[str]:
    """Extensions of a sample's media; a video's thumbnail or GIF preview is not the sample."""
    media = [extension for extension in members if extension in VIDEOS | IMAGES]
    return [extension for extension in media if extension in VIDEOS - {"gif"}] or media


def _captions(file: IO[bytes], members: Members, fields: tuple[str, ...]) -> tuple[str, ...]:
    """Captions of a sample: the .txt, or those of the .json if it is missing or empty.

    Args:
        file: The tar.
        members: Members of the sample.
        fields: As `ReadOptions.caption_fields`; captions of all of them, each text once.

    Raises:
        ValueError: What holds them is damaged.
    """

    def text(extension: str) -> str:
        member = members[extension]
        if member.size > LARGEST_TEXT:
            raise ValueError(f"{member.name} has {member.size:,} bytes")
        file.seek(member.offset_data)
        # utf-8-sig: Windows editors write a byte order mark, which no JSON may begin with
        return file.read(member.size).decode("utf-8-sig")

    written = text("txt") if "txt" in members and (not fields or "txt" in fields) else ""
    if not fields and has_text(written):
        return (written,)
    record = parse_json(text("json")) if "json" in members else None
    found: list[Any] = []
    for name in fields or ("caption",):
        value = record.get(name) if isinstance(record, dict) else None
        value = written if fields and name == "txt" else value
        found += value if isinstance(value, list) else [value]
    return tuple(
        dict.fromkeys(
            str(caption)
            for caption in found
            if isinstance(caption, str | int)
            or (isinstance(caption, float) and math.isfinite(caption))  # infinite: too many digits
        )
    )


FORMAT = SourceFormat(
    "webdataset", "a .tar of video2dataset or img2dataset, or a folder of them", _files, _read
)
