"""Helpers of all readers: find files, parse rows, count skipped rows, hold out validation data."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from allinone.common.errors import AllInOneError
from allinone.common.json_text import parse_json
from allinone.data.decoding.codecs import IMAGES, VIDEOS
from allinone.data.sources.reading import csv_rows
from allinone.finetune.annotations.schema import AnnotationError, Item, Split

TRAIN_PARTS = ("train", "held-out", "train-full")
"""Parts of an official training set that has no validation set: for training, for validation, and
both together."""
FOLD_SPLITS = (*TRAIN_PARTS, "test")
"""Splits of each fold of a benchmark with official folds."""
HELD_OUT_SHARE = 0.05
"""Share of the media that is held out for validation."""
SUFFIXES = VIDEOS | IMAGES | {"mts", "m2ts", "3g2"}
"""Suffixes of media files, lower case. Anything else after a dot is part of the name (LSMDC's time
codes end in .678)."""
_EXAMPLES = 5

AnyItem = TypeVar("AnyItem", bound=Item)


class RowError(AllInOneError, ValueError):
    """One row does not fit the format.

    The message is the same for all rows with the same fault, so that they can be counted.
    """


def check_split(split: str, valid: Sequence[str], benchmark: str) -> None:
    """Check the name of a split.

    Args:
        split: The name.
        valid: Splits that the benchmark has.
        benchmark: Its name, for the message.

    Raises:
        AnnotationError: There is no such split; the message names the valid ones.
    """
    if split not in valid:
        raise AnnotationError(
            f"{benchmark} has no split {split!r}; choose one of: {', '.join(valid)}"
        )


def check_fold(split: str, fold: int, benchmark: str) -> None:
    """Check split and fold of a benchmark with three official folds (HMDB51, UCF101).

    Args:
        split: Must be one of FOLD_SPLITS.
        fold: Must be 1, 2 or 3.
        benchmark: Its name, for the message.

    Raises:
        AnnotationError: There is no such split or fold.
    """
    check_split(split, FOLD_SPLITS, benchmark)
    if fold not in (1, 2, 3):
        raise AnnotationError(f"{benchmark} has no fold {fold}; choose one of: 1, 2, 3")


def find(folder: Path, names: Sequence[str], source: str) -> Path:
    """The first existing file of several alternatives.

    Args:
        folder: Folder that the user gave.
        names: Paths relative to the folder, in order of preference.
        source: Where to get the file, for the message.

    Raises:
        AnnotationError: None of them exists.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    wanted = names[0] if len(names) == 1 else f"any of {', '.join(names)}"
    raise AnnotationError(
        f"{folder} lacks {wanted}. Source: {source}. Give the folder that contains it"
    )


def read_text(path: Path) -> str:
    """Read a UTF-8 file without its byte order mark; AnnotationError if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{path} is not UTF-8 text ({error}); convert it, for example with iconv"
        ) from error


def read_json(path: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """The content of a JSON file; AnnotationError if its top level is not a `kind`."""
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise AnnotationError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, kind):
        raise AnnotationError(
            f"{path} holds a JSON {type(content).__name__}, expected a {kind.__name__}: is it"
            " another benchmark's file?"
        )
    return content


def json_records(path: Path, key: str) -> list[dict[str, Any]]:
    """The list of objects under a key of a JSON object; AnnotationError if there is none."""
    records = read_json(path, dict).get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise AnnotationError(
            f"{path} has no list {key!r} of objects: is it another benchmark's file?"
        )
    return records


def numbered_answers(path: Path) -> tuple[str, ...]:
    """The answers of ClipBERT's {answer: class number}, in the order of the numbers; empty if there
    is no such file."""
    if not path.is_file():
        return ()
    numbers = read_json(path, dict)
    return tuple(sorted(numbers, key=lambda answer: int(numbers[answer])))


class Builder:
    """Collects the items of one split; nothing is dropped silently.

    Rows that are left out are counted by reason, and notes name their file and line.
    """

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
        """Add a note for the user."""
        self._notes.append(text)

    def add(self, item: Item, where: str) -> None:
        """Add an item; of two items with the same id, the first is kept."""
        known = self.items.setdefault(item.id, item)
        if known is not item:
            content = "the same" if known == item else "different"
            self.leave_out(f"the id is repeated with {content} content, the first is kept", where)

    def leave_out(self, reason: str, where: str) -> None:
        """Count a row that does not become an item.

        Args:
            reason: Equal for all rows with the same fault.
            where: File and line.
        """
        self._left_out.setdefault(reason, []).append(where)

    def left_out(self) -> list[str]:
        """A line on each reason for which rows were left out, with their number and places."""
        return [_left_out(reason, places) for reason, places in self._left_out.items()]

    @contextmanager
    def row(self, where: str) -> Iterator[None]:
        """Leave out the row if the body raises RowError."""
        try:
            yield
        except RowError as error:
            self.leave_out(str(error), where)

    def read(
        self, rows: Iterable[tuple[str, dict[str, Any]]], make: Callable[[dict[str, Any]], Item]
    ) -> None:
        """Add one item per row of (where, record)."""
        for where, record in rows:
            with self.row(where):
                self.add(make(record), where)

    def official(self, what: str, found: int, expected: int, *, verified: bool = True) -> None:
        """Note whether the number of items equals the official number.

        Args:
            what: What is counted.
            found: The number in the files.
            expected: The official number.
            verified: The official number was counted in the official files by us.
        """
        mark = "" if verified else " (not verified by us)"
        if found == expected:
            self.note(f"{what}: {found:,}, the official number{mark}")
        else:
            self.note(
                f"{what}: {found:,} found, official {expected:,}{mark}: results are not comparable"
                " unless this is intended"
            )

    def split(
        self,
        items: Sequence[Item] | None = None,
        *,
        classes: tuple[str, ...] = (),
        answer_space: tuple[str, ...] = (),
        reference_answers: tuple[str, ...] = (),
        shared_captions: bool = False,
    ) -> Split:
        """The finished split.

        Args:
            items: Part of the collected items; None: all of them.
            classes: Names of the classes, for LabelItem.
            answer_space: Fixed answer vocabulary, if the benchmark ships one.
            reference_answers: See `Split.reference_answers`.
            shared_captions: See `Split.shared_captions`.

        Raises:
            AnnotationError: There are no items.
        """
        chosen = list(self.items.values()) if items is None else list(items)
        left_out = self.left_out()
        if not chosen:
            files = ", ".join(self.files) or "the files"
            raise AnnotationError(
                f"split {self.name!r}: no usable row in {files};"
                f" {'; '.join(left_out) or 'they contain no rows for it'}"
            )
        return Split(
            self.name,
            chosen,
            tuple(self.files),
            classes,
            (*self._notes, *left_out),
            answer_space,
            reference_answers,
            shared_captions,
        )


def _left_out(reason: str, places: Sequence[str]) -> str:
    more = f" and {len(places) - _EXAMPLES:,} more" if len(places) > _EXAMPLES else ""
    return f"left out, {reason}: {len(places):,} ({', '.join(places[:_EXAMPLES])}{more})"


def json_lines(path: Path, builder: Builder) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of JSON lines; broken lines are left out and counted."""
    # not str.splitlines: texts may contain U+2028, which does not end a JSON line
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path.name}:{number}"
            try:
                record = parse_json(line)
            except ValueError:
                builder.leave_out("the line is not JSON", where)
                continue
            if isinstance(record, dict):
                yield where, record
            else:
                builder.leave_out("the line is not a JSON object", where)


def json_rows(path: Path, builder: Builder) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, record) of a JSON array of objects or of JSON lines."""
    if not read_text(path).lstrip().startswith("["):
        yield from json_lines(path, builder)
        return
    for number, record in enumerate(read_json(path, list)):
        where = f"{path.name}[{number}]"
        if isinstance(record, dict):
            yield where, record
        else:
            builder.leave_out("the entry is not a JSON object", where)


def table(
    path: Path,
    builder: Builder,
    *,
    columns: Sequence[str],
    delimiter: str = "\t",
    header: bool = True,
    quoted: bool = False,
) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, fields by name) of a delimited file.

    Args:
        path: The file.
        builder: Counts the lines that are left out.
        columns: Names that a header must contain; without a header, the names of the fields in
            order.
        delimiter: Between fields.
        header: The first line names the fields.
        quoted: Double quotes enclose fields, as in RFC 4180. Otherwise they are ordinary
            characters, and every line is a row.

    Raises:
        AnnotationError: A column is missing in the header.
    """
    # "": a quoted caption keeps its line ends; "\n": otherwise "\r" and U+2028 end no line
    file = io.StringIO(read_text(path), newline="" if quoted else "\n")
    names, before = list(columns), 0
    if header:
        first = next(csv_rows(file, delimiter, quoted), None)
        names = [name.strip() for name in first.fields] if first else [""]
        before = first.line + first.lines - 1 if first else 0
        missing = [column for column in columns if column not in names]
        if missing:
            found = ", ".join(names).strip() or "an empty file"
            raise AnnotationError(
                f"{path}: column {', '.join(missing)} is missing in the header; found: {found}"
            )
    key = names.index(columns[0])
    for row in csv_rows(file, delimiter, quoted, key, len(names), before):
        where = f"{path.name}:{row.line}"
        if row.problem:
            builder.leave_out("a quote is not closed, or a field is too long", where)
        elif len(row.fields) == len(names):
            # fields are taken by name: TGIF-QA puts `type` where other tasks have five options
            yield where, dict(zip(names, row.fields, strict=True))
        else:
            builder.leave_out(f"the line does not have {len(names)} fields", where)


def text_of(record: dict[str, Any], name: str) -> str:
    """Read a field that must contain text, stripped; numbers are converted. RowError otherwise."""
    value = record.get(name)
    if value is None:
        raise RowError(f"{name!r} is missing")
    # bool is an int in Python, but `true` is not a label. Numbers are text in some releases (MSR-
    # VTT-QA's video_id is 12 or "video12")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"{name!r} is not text")
    if not (text := str(value).strip()):
        raise RowError(f"{name!r} is empty")
    return text


def index_of(record: dict[str, Any], name: str, size: int, *, base: int = 0) -> int:
    """A 0-based index from a field that holds a number or its text.

    Args:
        record: The row.
        name: The field.
        size: The index must be below it.
        base: Number from which the field counts.

    Raises:
        RowError: The field is not an integer in this range.
    """
    text = text_of(record, name)
    if not text.isdecimal():
        raise RowError(f"{name!r} is not an integer")
    if not base <= int(text) < base + size:
        raise RowError(f"{name!r} is outside {base} to {base + size - 1}")
    return int(text) - base


def texts_of(record: dict[str, Any], name: str, size: int | None = None) -> tuple[str, ...]:
    """The stripped texts of a field that holds a list.

    Args:
        record: The row.
        name: The field.
        size: Length that the list must have; None accepts any.

    Raises:
        RowError: The field is not a list of texts of this length.
    """
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RowError(f"{name!r} is not a list of texts")
    if size is not None and len(value) != size:
        raise RowError(f"{name!r} does not have {size} entries")
    return tuple(text.strip() for text in value)


def stem(name: str) -> str:
    """A media file's name without a known suffix of any case: x.MOV and x are the same video."""
    head, dot, suffix = name.rpartition(".")
    # an empty suffix counts: in DiDeMo 62 videos of val and test have two spellings
    return head if dot and (suffix.lower() in SUFFIXES or not suffix) else name


QUESTION_WORDS = ("what", "who", "how", "where", "when")


def question_kind(question: str) -> str:
    """The type of a question in MSR-VTT-QA and MSVD-QA: its first word; empty if not known."""
    word = question.split(maxsplit=1)[0].lower() if question.strip() else ""
    return word if word in QUESTION_WORDS else ""


def place_in_order(key: str) -> float:
    """Map a text to a number in [0, 1): the same on every machine and in every run."""
    # not hash(): Python draws its key in every process
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64


def train_part(
    items: Sequence[AnyItem],
    split: str,
    *,
    share: float = HELD_OUT_SHARE,
    group: Callable[[AnyItem], str] | None = None,
) -> list[AnyItem]:
    """The items of one of TRAIN_PARTS, split by the hash of the media id.

    Whether an item is held out does not depend on other items, except that at least one group is
    always held out.

    Args:
        items: The official training set.
        split: One of TRAIN_PARTS.
        share: Share that is held out.
        group: Item → name of a group that must stay on one side, for example because clips of one
            film share background and people. Default: the media id.

    Raises:
        AnnotationError: There is only one group.
    """
    if split == "train-full":
        return list(items)
    key = group or (lambda item: item.media.id)
    keys = {key(item) for item in items}
    if len(keys) == 1:
        raise AnnotationError(
            f"split {split!r} needs at least two different media to hold one out; use 'train-full'"
        )
    held = held_out(keys, share)
    return [item for item in items if (key(item) in held) == (split == "held-out")]


def held_out(names: Collection[str], share: float) -> set[str]:
    """The names whose hash is below `share`; at least one, also in a tiny set."""
    chosen = {name for name in names if place_in_order(name) < share}
    return chosen or set(sorted(names, key=place_in_order)[:1])
