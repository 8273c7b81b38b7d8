"""The types that every reader of an official format yields. Nothing here opens a file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from allinone.common.formatting import BIDIRECTIONAL, CONTROL

if TYPE_CHECKING:
    from allinone.data.sources.plain_rows import PlainRows

SPLIT = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A split is part of the names of its shards and may not contain separators."""


LONGEST_CAPTION = 1 << 17
"""Characters of a caption, as of a field of a CSV list; longer ones are something else."""


@dataclass(frozen=True)
class CaptionLine:
    """One timed caption of a long video."""

    start_s: float
    """Seconds from the video's first frame."""
    end_s: float
    text: str
    reason: str | None = None
    """Why the line is skipped; None if it is used."""
    detail: str | None = None


@dataclass(frozen=True)
class Narration:
    """The timed captions of one long video.

    They are parsed in the process that decodes the video, not in the one that reads the list.
    """

    lines: Callable[[Narration], list[CaptionLine]]
    """Parses the captions. A module-level function, so that it can be sent to a process."""
    path: Path
    """The file that holds the captions."""
    text: str | None = None
    """The record itself, if the reader has already read it."""


@dataclass(frozen=True)
class SourceRow:
    """One stored file of a source: a clip, an image, or a long video with a narration."""

    split: str
    id: str
    captions: tuple[str, ...]
    path: Path
    source: str
    """The path inside the source, shown in messages."""
    offset: int = 0
    """First byte of the file inside `path`."""
    size: int | None = None
    """Bytes; None: to the end of `path`."""
    extension: str = "mp4"
    """Of the name, lower case; empty if it says nothing: the content then decides."""
    reason: str | None = None
    """Why the row cannot be used; None if it can."""
    detail: str | None = None
    narration: Narration | None = None
    alternatives: tuple[Path, ...] = ()
    """Paths to try, in this order, if `path` does not exist. Readers do not check whether files
    exist, because a list may have millions of rows."""


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading a source."""

    media: Path | None = None
    """Folder of the videos or images; None: the format's official place, relative to the list."""
    names: str | None = None
    """Template of an image's path below `media`, for lists that hold URLs only."""
    exclude: frozenset[str] = field(default_factory=frozenset)
    """Ids to skip and count, for example the videos of a test set."""
    caption_fields: tuple[str, ...] = ()
    """Tars: fields of a sample's .json, or txt for its .txt, that hold captions; () takes the .txt,
    or the .json's `caption` if it is missing or empty."""


@dataclass(frozen=True)
class SourceFormat:
    """One official format: how to recognise and read it, and its official size."""

    name: str
    description: str
    """What a source of this format looks like, for messages."""
    files: Callable[[Path], list[Path]]
    """Returns the official files of a source in reading order; empty for other formats."""
    read: Callable[[Path, ReadOptions], Iterator[SourceRow]]
    official: dict[str, dict[str, tuple[int, bool]]] = field(default_factory=dict)
    """File name → split → (rows, whether the number is exact), from the data set's page or
    paper."""
    official_totals: dict[str, int] = field(default_factory=dict)
    """For sources whose lists vary: the approximate official number of "videos" and of
    "captions"."""
    narrated: bool = False
    """Whether videos last minutes to hours and are cut into clips by their captions."""
    read_blocks: Callable[[Path, ReadOptions], Iterator[SourceRow | PlainRows]] | None = None
    """Reads the same rows as `read`, in the same order, many at a time."""


def clean_text(text: str) -> str:
    """Return one line of valid Unicode.

    White space is collapsed, lone surrogates and control characters become question marks, and
    characters that only reorder the text around them are left out.
    """
    if not text.isascii():
        text = BIDIRECTIONAL.sub("", text.encode("utf-8", "replace").decode())
    return CONTROL.sub("?", " ".join(text.split()))


def has_text(text: str) -> bool:
    """Whether BERT's tokenizer finds something in a text.

    It drops control, format and unassigned characters and U+FFFD, and strips accents: a caption of
    zero-width spaces has no word to mask.
    """
    if text.isascii() and text.isprintable():
        return bool(text.strip())
    return any(
        character != "\ufffd" and category[0] not in "CZ" and category != "Mn"
        for character in text
        for category in (unicodedata.category(character),)
    )


def key_hash(split: str, name: str) -> int:
    """Hash a key to 64 bits, so that a set of millions of keys fits in memory."""
    key = f"{split}/{name}".encode("utf-8", "replace")
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")


def bad_row(
    split: str, name: str, path: Path, source: str, detail: str, reason: str = "bad_row"
) -> SourceRow:
    """Return a row that is counted and reported, but not read.

    Args:
        split: Split of the row.
        name: Id of the row, or a name for its place in the list.
        path: The file that lists it.
        source: The place shown in messages.
        detail: A sentence on what is wrong.
        reason: The short reason that bad clips are counted by.

    Returns:
        A row without captions and with a reason.
    """
    return SourceRow(split, name, (), path, source, reason=reason, detail=detail)
