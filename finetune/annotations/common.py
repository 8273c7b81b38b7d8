"""What all readers share: finding files, tolerant rows, counting what is left out, holding out a
validation part."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from allinone.common.errors import AllInOneError
from allinone.data.decoding.codecs import IMAGES, VIDEOS
from allinone.finetune.annotations.schema import AnnotationError, Item, Split

TRAIN_PARTS = ("train", "held-out", "train-full")
"""Parts of an official training set without a validation set of its own: what to train on, what to
tune on, and both together."""
HELD_OUT_SHARE = 0.05
SUFFIXES = VIDEOS | IMAGES | {"mts", "m2ts", "3g2"}
"""Suffixes of media files, lower case. Anything else after a dot belongs to the name (LSMDC's time
codes end in .678)."""
_EXAMPLES = 5

AnyItem = TypeVar("AnyItem", bound=Item)


class RowError(AllInOneError, ValueError):
    """One row does not fit the format. The message is the same for all rows with this fault, so
    that they can be counted."""


def check_split(split: str, valid: Sequence[str], benchmark: str) -> None:
    """AnnotationError with the valid names where `split` is none of them."""
    if split not in valid:
        raise AnnotationError(
            f"{benchmark} has no split {split!r}; choose one of: {', '.join(valid)}"
        )


def find(folder: Path, names: Sequence[str], source: str) -> Path:
    """The first of `names` (relative to `folder`, alternatives in order of preference) that exists;
    `source` says where to get it."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    wanted = names[0] if len(names) == 1 else f"any of {', '.join(names)}"
    raise AnnotationError(
        f"{folder} lacks {wanted}. Source: {source}. Give the folder that holds it"
    )


def read_text(path: Path) -> str:
    """The whole file as UTF-8, a byte order mark removed. Raises AnnotationError where it is
    something else."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{path} is not UTF-8 text ({error}); convert it, for example with iconv"
        ) from error


def read_json(path: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """A whole JSON file whose top level must be a `kind`."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, kind):
        raise AnnotationError(
            f"{path} holds a JSON {type(content).__name__}, expected a {kind.__name__}: is it"
            " another benchmark's file?"
        )
    return content


class Builder:
    """Gathers the items of one split. What is left out is counted by reason and named by file and
    line in the notes, never dropped silently."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.items: dict[str, Item] = {}
        self.files: list[str] = []
        self._notes: list[str] = []
        self._left_out: dict[str, list[str]] = {}

    def use(self, path: Path) -> Path:
        """Record an annotation file that the split is read from."""
        self.files.append(str(path))
        return path

    def note(self, text: str) -> None:
        """Something that a user should know."""
        self._notes.append(text)

    def add(self, item: Item, where: str) -> None:
        """Take an item; of two with the same id, the first stays."""
        known = self.items.setdefault(item.id, item)
        if known is not item:
            same = "the same" if known == item else "other"
            self.leave_out(f"the id stands twice with {same} content, the first is kept", where)

    def leave_out(self, reason: str, where: str) -> None:
        """Count a row that does not become an item."""
        self._left_out.setdefault(reason, []).append(where)

    @contextmanager
    def row(self, where: str) -> Iterator[None]:
        """Leave out the row where its body raises RowError."""
        try:
            yield
        except RowError as error:
            self.leave_out(str(error), where)

    def read(
        self, rows: Iterable[tuple[str, dict[str, Any]]], make: Callable[[dict[str, Any]], Item]
    ) -> None:
        """One item per row."""
        for where, record in rows:
            with self.row(where):
                self.add(make(record), where)

    def official(self, what: str, found: int, expected: int, *, verified: bool = True) -> None:
        """Note an official size against the found one. `verified`: the official size was counted in
        the files, not taken from hearsay."""
        mark = "" if verified else " (not verified by us)"
        if found == expected:
            self.note(f"{what}: {found:,}, the official number{mark}")
        else:
            self.note(
                f"{what}: {found:,} found, official {expected:,}{mark}: results are not comparable"
                " unless this is meant"
            )

    def split(
        self,
        items: Sequence[Item] | None = None,
        *,
        classes: tuple[str, ...] = (),
        answer_space: tuple[str, ...] = (),
    ) -> Split:
        """The finished split, of all gathered items unless a part is given. AnnotationError where
        nothing is left."""
        chosen = list(self.items.values()) if items is None else list(items)
        left_out = [_left_out(reason, places) for reason, places in self._left_out.items()]
        if not chosen:
            files = ", ".join(self.files) or "the files"
            raise AnnotationError(
                f"split {self.name!r}: no usable row in {files};"
                f" {'; '.join(left_out) or 'they hold no rows for it'}"
            )
        return Split(
            self.name, chosen, tuple(self.files), classes, (*self._notes, *left_out), answer_space
        )


def _left_out(reason: str, places: Sequence[str]) -> str:
    more = f" and {len(places) - _EXAMPLES:,} more" if len(places) > _EXAMPLES else ""
    return f"left out, {reason}: {len(places):,} ({', '.join(places[:_EXAMPLES])}{more})"


def json_lines(path: Path, builder: Builder) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a file with one JSON object per line; broken lines are left out and
    counted."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                builder.leave_out("the line is no JSON", where)
                continue
            if isinstance(record, dict):
                yield where, record
            else:
                builder.leave_out("the line is no JSON object", where)


def json_rows(path: Path, builder: Builder) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a JSON array of objects or of JSON lines, whichever the file is."""
    if not read_text(path).lstrip().startswith("["):
        yield from json_lines(path, builder)
        return
    for number, record in enumerate(read_json(path, list)):
        where = f"{path.name}[{number}]"
        if isinstance(record, dict):
            yield where, record
        else:
            builder.leave_out("the entry is no JSON object", where)


def table(
    path: Path,
    builder: Builder,
    *,
    columns: Sequence[str],
    delimiter: str = "\t",
    header: bool = True,
    quoted: bool = False,
) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, fields by name) of a delimited file; with a header it must name all `columns`,
    without one the fields are named by them in order.

    `quoted`: double quotes enclose fields, as in RFC 4180. Else they are ordinary characters, and a
    line is a row.
    """
    text = read_text(path)
    if quoted:
        lines = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
        rows = ((lines.line_num, fields) for fields in lines)
    else:
        # Not str.splitlines: captions may hold U+2028 or a form feed, which are no line ends here.
        rows = (
            (number, line.removesuffix("\r").split(delimiter))
            for number, line in enumerate(text.split("\n"), 1)
        )
    names = list(columns)
    if header:
        names = [name.strip() for name in next(rows, (0, [""]))[1]]
        missing = [column for column in columns if column not in names]
        if missing:
            found = ", ".join(names).strip() or "an empty file"
            raise AnnotationError(
                f"{path}: column {', '.join(missing)} is missing in the header; found: {found}"
            )
    for number, fields in rows:
        where = f"{path.name}:{number}"
        if fields in ([], [""]):
            continue
        if len(fields) == len(names):
            yield where, dict(zip(names, fields, strict=True))
        else:
            builder.leave_out(f"the line does not have {len(names)} fields", where)


def text_of(record: dict[str, Any], name: str) -> str:
    """A field that must hold visible text; white space around it is removed, a number is spelled
    out. RowError else."""
    value = record.get(name)
    if value is None:
        raise RowError(f"{name!r} is missing")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"{name!r} is no text")
    if not (text := str(value).strip()):
        raise RowError(f"{name!r} is empty")
    return text


def index_of(record: dict[str, Any], name: str, size: int, *, base: int = 0) -> int:
    """A 0-based index below `size` from a field that counts from `base`; a number or its text.
    RowError else."""
    text = text_of(record, name)
    if not text.isdecimal():
        raise RowError(f"{name!r} is no whole number")
    if not base <= int(text) < base + size:
        raise RowError(f"{name!r} is outside {base} to {base + size - 1}")
    return int(text) - base


def texts_of(record: dict[str, Any], name: str, size: int | None = None) -> tuple[str, ...]:
    """A field that holds a list of texts, of a given length if one is given. RowError else."""
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RowError(f"{name!r} is no list of texts")
    if size is not None and len(value) != size:
        raise RowError(f"{name!r} does not have {size} entries")
    return tuple(text.strip() for text in value)


def stem(name: str) -> str:
    """A media file's name without a known suffix, in any case: x.MOV and x are the same video."""
    head, dot, suffix = name.rpartition(".")
    return head if dot and (suffix.lower() in SUFFIXES or not suffix) else name


QUESTION_WORDS = ("what", "who", "how", "where", "when")


def question_kind(question: str) -> str:
    """What MSR-VTT-QA and MSVD-QA call the type of a question: its first word, one of
    QUESTION_WORDS; else empty."""
    word = question.split(maxsplit=1)[0].lower() if question.strip() else ""
    return word if word in QUESTION_WORDS else ""


def place_in_order(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the text: the same on every machine and in
    every run."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64


def train_part(
    items: Sequence[AnyItem],
    split: str,
    *,
    share: float = HELD_OUT_SHARE,
    group: Callable[[AnyItem], str] | None = None,
) -> list[AnyItem]:
    """The items of one of TRAIN_PARTS, split by the hash of the media id.

    `group`: media that must stay on one side (clips cut from one film share background and people).
    Whether an item is held out does not depend on the other items, except that at least one group
    always is. Raises AnnotationError where there is only one group.
    """
    if split == "train-full":
        return list(items)
    key = group or (lambda item: item.media.id)
    keys = {key(item) for item in items}
    if len(keys) == 1:
        raise AnnotationError(
            f"split {split!r} needs at least two different media to hold one out; use 'train-full'"
        )
    held = {name for name in keys if place_in_order(name) < share} or set(
        sorted(keys, key=place_in_order)[:1]
    )
    return [item for item in items if (key(item) in held) == (split == "held-out")]
