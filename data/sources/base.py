"""What every reader of an official format yields, and the parsing that they share. Nothing here
opens a video."""

from __future__ import annotations

import csv
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b, md5
from pathlib import Path
from typing import Any

from allinone.common.errors import DataError
from allinone.data.decoding.codecs import IMAGES, VIDEOS

SPLIT = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A split names shards, and so may not hold separators."""
IMAGE_ENDS = ("jpg", "png", "webp", "jpeg")
CHUNK = 1 << 20
"""Characters read at a time from a JSON file that is too big to be held."""


@dataclass(frozen=True)
class Line:
    """One timed caption of a long video; seconds from its first frame. With a reason it is skipped
    and counted."""

    start_s: float
    end_s: float
    text: str
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Narration:
    """The timed captions of one long video, parsed and cut into clips by the process that decodes
    the video."""

    lines: Callable[[Narration], list[Line]]
    """A function of a module, so that it can be sent to a process."""
    path: Path
    text: str | None = None
    """The record, where the reader has it in hand; else `path` holds it."""


@dataclass(frozen=True)
class SourceRow:
    """One stored file of a source: a clip, an image, or a long video with a narration."""

    split: str
    id: str
    captions: tuple[str, ...]
    path: Path
    source: str
    """Shown to people: the path inside the source."""
    offset: int = 0
    size: int | None = None
    """None: the whole file."""
    extension: str = "mp4"
    reason: str | None = None
    detail: str | None = None
    narration: Narration | None = None
    others: tuple[Path, ...] = ()
    """Tried in this order where `path` is missing. The reader asks the file system nothing: a list
    may have millions of rows."""


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read."""

    media: Path | None = None
    """Folder of the videos or images; None: the format's own place beside the list."""
    names: str | None = None
    """Template of an image's path below `media`, for lists that know URLs only."""
    exclude: frozenset[str] = field(default_factory=frozenset)
    """Ids that are skipped and counted, for example videos of a test set."""


@dataclass(frozen=True)
class Format:
    """One official format: how it is recognised and read, and what it should hold."""

    name: str
    wanted: str
    """What a source of this format looks like, for messages."""
    files: Callable[[Path], list[Path]]
    """The official files of a source, in reading order; empty where the source is of another
    format."""
    read: Callable[[Path, ReadOptions], Iterator[SourceRow]]
    official: dict[str, dict[str, tuple[int, bool]]] = field(default_factory=dict)
    """File name → split → (rows, whether the number is exact), from the data set's page or
    paper."""
    whole: dict[str, int] = field(default_factory=dict)
    """Of a source whose lists vary: about how many "videos", and "captions" of all of them, there
    are officially."""
    narrated: bool = False
    """Minutes to hours long, cut into clips by its captions."""


def clean(text: str) -> str:
    """One line of valid Unicode: runs of white space become a space, lone surrogates and NULs a
    question mark."""
    return " ".join(text.encode("utf-8", "replace").decode().replace("\0", "?").split())


def key_hash(split: str, name: str) -> int:
    """64 bits that stand for a key in a set of millions."""
    return int.from_bytes(
        blake2b(f"{split}/{name}".encode("utf-8", "replace"), digest_size=8).digest(), "little"
    )


def unsafe(relative: Path) -> bool:
    """Whether a path of a list may leave the folder that it starts from."""
    return relative.is_absolute() or ".." in relative.parts or "\0" in str(relative)


def bad(
    split: str, name: str, path: Path, source: str, detail: str, reason: str = "bad_row"
) -> SourceRow:
    """A row that is counted and named, but not read."""
    return SourceRow(split, name, (), path, source, reason=reason, detail=detail)


def media_row(
    split: str,
    name: str,
    captions: tuple[str, ...],
    root: Path,
    relative: Path,
    listed: Path,
    place: str,
    default: str = "mp4",
    absolute: bool = False,
) -> SourceRow:
    """A row of the file `relative` below `root`, named in line or record `place` of the file
    `listed`. An image (`default` "jpg") whose name has no extension may have one on the disk.
    `absolute` allows a path that does not start from `root`: a list that someone wrote for this
    machine.
    """
    if (
        unsafe(Path(*relative.parts[1:]) if absolute and relative.is_absolute() else relative)
        or not relative.name
    ):
        return bad(
            split,
            place,
            listed,
            str(relative),
            f"the path is empty, absolute or leaves {root}; give paths below it (--videos names"
            " another folder)",
        )
    extension = relative.suffix[1:].lower()
    known = extension in IMAGES | VIDEOS
    others = (
        ()
        if known or default != "jpg"
        else tuple(root / relative.with_name(f"{relative.name}.{e}") for e in IMAGE_ENDS)
    )
    return SourceRow(
        split,
        name,
        captions,
        root / relative,
        relative.as_posix(),
        extension=extension if known else default,
        others=others,
    )


def _not_utf8(values: list[str | None]) -> bool:
    return any(
        value is not None and not value.isascii() and any("\udc80" <= c <= "\udcff" for c in value)
        for value in values
    )


def header(path: Path) -> list[str]:
    """Column names of a CSV or TSV file."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return next(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","), [])


def records(
    path: Path, needed: list[tuple[str, ...]]
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """(line, fields by column name, or what is wrong with the row). Columns are found by name;
    DataError where one of `needed` is missing."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            columns = reader.fieldnames or []
            missing = ["/".join(names) for names in needed if not set(names) & set(columns)]
            if missing:
                found = clean(", ".join(columns))[:200] or "an empty file"
                raise DataError(
                    f"{path}: column {', '.join(missing)} is missing; found: {found}. --format"
                    " names another format"
                )
            for record in reader:
                if None in record or any(value is None for value in record.values()):
                    yield (
                        reader.line_num,
                        f"line {reader.line_num} does not have the header's {len(columns)} fields",
                    )
                elif _not_utf8(list(record.values())):
                    yield (
                        reader.line_num,
                        (
                            f"line {reader.line_num} is not UTF-8 text; convert the file, for"
                            " example with iconv"
                        ),
                    )
                else:
                    yield reader.line_num, record
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read as CSV: {error}; repair or download it again"
        ) from error


def tab_lines(path: Path, fields: int) -> Iterator[tuple[int, list[str] | str]]:
    """(line, fields or what is wrong) of a tab-separated file without header or quoting."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                values = (
                    raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t")
                )
            except UnicodeDecodeError as error:
                yield number, f"line {number} is not UTF-8 text ({error.reason})"
                continue
            yield (
                number,
                (
                    values
                    if len(values) == fields
                    else f"line {number} has {len(values)} fields, not {fields}"
                ),
            )


def load_json(path: Path) -> Any:
    """A whole JSON file; DataError where it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged or no JSON ({error}); download it again") from error


def stream_json(path: Path) -> Iterator[tuple[str, Any]]:
    """(key, value) of a top-level object, or (number, item) of a top-level array, one at a time:
    the file may be larger than the memory."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text, position = file.read(CHUNK), 0

        def fail(why: str) -> DataError:
            return DataError(
                f"{path} is damaged or cut short near character {file.tell():,} ({why}); download"
                " it again"
            )

        def peek() -> str:
            """The next character that is no white space."""
            nonlocal text, position
            while True:
                while position < len(text) and text[position] in " \t\r\n":
                    position += 1
                if position < len(text):
                    return text[position]
                text, position = file.read(CHUNK), 0
                if not text:
                    raise fail("it ends early")

        def value() -> Any:
            nonlocal text, position
            peek()
            wanted = CHUNK
            while True:
                try:
                    found, end = decoder.raw_decode(text, position)
                    if end < len(text):  # else a number may go on
                        position = end
                        return found
                    error = "it ends early"
                except json.JSONDecodeError as problem:
                    error = problem.msg
                more = file.read(wanted)
                if not more:
                    raise fail(error)
                text, position, wanted = (
                    text[position:] + more,
                    0,
                    2 * wanted,
                )  # doubling: no value is parsed too often

        closing = {"{": "}", "[": "]"}.get(peek())
        if closing is None:
            raise fail("neither an object nor an array")
        position += 1
        number = 0
        while peek() != closing:
            if number:
                if peek() != ",":
                    raise fail("a comma is missing")
                position += 1
            name = str(number)
            if closing == "}":
                name = str(value())
                if peek() != ":":
                    raise fail("a colon is missing")
                position += 1
            yield name, value()
            number += 1


def _raise(error: OSError) -> None:
    raise error


class MediaFiles:
    """Videos of a folder by id (the file name up to its last dot), whatever the sub-folders; the
    first in sorted order counts."""

    def __init__(self, root: Path, needs: str) -> None:
        if not root.is_dir():
            raise DataError(f"no folder of videos at {root}; --videos DIR names it ({needs})")
        self.root = root
        self._paths: dict[str, str] = {}
        seen: set[str] = set()
        # links, since parts of a large set often lie on other disks; a folder that cannot be read
        # is no folder without videos
        for folder, folders, files in os.walk(root, onerror=_raise, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder above it
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            for name in sorted(files):
                stem, _, extension = name.rpartition(".")
                if extension.lower() in VIDEOS:
                    self._paths.setdefault(stem, os.path.relpath(os.path.join(folder, name), root))  # noqa: PTH118 - millions of them

    def row(self, split: str, name: str, narration: Narration) -> SourceRow:
        """The row of video `name`, marked where no file has that id."""
        relative = self._paths.get(name)
        if relative is None:
            return bad(
                split, name, self.root, name, f"no video {name}.* below {self.root}", "missing"
            )
        extension = relative.rpartition(".")[2].lower()
        return SourceRow(
            split,
            name,
            (),
            self.root / relative,
            relative,
            extension=extension,
            narration=narration,
        )


NAME_FIELDS = "{split}, {number} (line, from 0), {crc32}, {md5}, {basename}"


def image_of(template: str, split: str, number: int, url: str) -> Path:
    """Path below `root` of the image that was downloaded from `url`; DataError for a template with
    unknown fields."""
    encoded = url.encode("utf-8", "replace")
    values = {
        "split": split,
        "number": number,
        "crc32": zlib.crc32(encoded),
        "md5": md5(encoded, usedforsecurity=False).hexdigest(),
        "basename": url.partition("?")[0].rpartition("/")[2],
    }
    try:
        return Path(template.format(**values))
    except (KeyError, ValueError, IndexError) as error:
        raise DataError(
            f"--names {template!r} is no template over {NAME_FIELDS}: {error!r}"
        ) from error
