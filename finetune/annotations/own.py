"""Annotations of your own: one table with a row per caption, question or label.

| task | columns |
| --- | --- |
| retrieval, caption | path, caption |
| qa | path, question, answer |
| choice | path, question, option_1, option_2, …, answer |
| labels | path, label |

Optional columns: split (train, val, test or a name of your own), start_s and end_s (seconds), id.
CSV, TSV, JSON lines or Parquet; paths are relative to the media folder, or absolute and inside it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

from allinone.common.errors import DataError
from allinone.data.config import standard_split
from allinone.data.sources.own_csv import PATH_COLUMNS
from allinone.data.sources.reading import table_records
from allinone.data.sources.schema import clean_text, has_text
from allinone.finetune.annotations.common import Builder, RowError, place_in_order, stem
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ChoiceItem,
    Item,
    LabelItem,
    Media,
    QAItem,
    RetrievalItem,
    Split,
)

NEEDED: dict[str, list[tuple[str, ...]]] = {
    "retrieval": [PATH_COLUMNS, ("caption", "text")],
    "caption": [PATH_COLUMNS, ("caption", "text")],
    "qa": [PATH_COLUMNS, ("question",), ("answer",)],
    "choice": [PATH_COLUMNS, ("question",), ("option_1",), ("option_2",), ("answer",)],
    "labels": [PATH_COLUMNS, ("label",)],
}
"""Task → columns that a row must have, each with its alternative names."""
CONTRADICTIONS = {
    "choice": "an earlier row gives another answer to this question, and it is kept: delete one",
    "labels": "an earlier row gives the clip another label, and it is kept: delete one, or name"
    " different parts of the file by start_s and end_s",
}
"""Task → why the second of two rows about one clip is left out."""
OPTIONAL = ("split", "start_s", "end_s", "id")
AnswerIs = Literal["either", "text", "number"]
_OPTION = re.compile(r"option_([1-9]\d*)")
_FEW_ROWS = 20
"""With fewer rows than this, no share of bad rows ends the run."""


@dataclass(frozen=True)
class ReadOptions:
    """How a table is read. Hashable: the three splits of a run are read once."""

    task: str
    """A key of NEEDED."""
    media: Path
    """Absolute paths must be inside it."""
    val_share: float
    """Share of the media that becomes the split val, if no row is in it."""
    test_share: float
    """The same for the split test."""
    hold_out: tuple[str, ...]
    """Which of val and test are made of train, if no row is in them."""
    by_segment: bool = False
    """Parts of one file count as different media."""
    answer_is: AnswerIs = "either"
    """What the column answer of a multiple choice holds."""
    max_bad_share: float = 0.01
    """Share of unusable rows above which the table is refused."""


@dataclass
class _Row:
    where: str
    split: str
    media: Media
    fields: Mapping[str, str]
    item: Item | None = None
    label: str = ""


@dataclass
class _Table:
    """Rows of a table, and the ones that were left out."""

    path: Path
    options: ReadOptions
    builder: Builder = field(default_factory=lambda: Builder("train"))
    rows: list[_Row] = field(default_factory=list)
    total: int = 0
    bad: int = 0

    def leave_out(self, reason: str, where: str) -> None:
        """Count a row that cannot be used."""
        self.bad += 1
        self.builder.leave_out(reason, where)


def read_splits(path: Path, options: ReadOptions) -> dict[str, Split]:
    """Read all splits of a table.

    Args:
        path: The table.
        options: How it is read.

    Returns:
        Name → split, train first. Classes are those of train.

    Raises:
        AnnotationError: The file is missing, lacks columns, has too many unusable rows, or the same
            media in two splits.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise AnnotationError(f"--annotations {path} cannot be read: {error.strerror}") from error
    if not path.is_file():
        raise AnnotationError(f"--annotations {path} is not a file; give your CSV")
    return _read_splits(path, options, (facts.st_size, facts.st_mtime_ns))


@lru_cache(maxsize=2)
def _read_splits(path: Path, options: ReadOptions, version: tuple[int, int]) -> dict[str, Split]:
    table = _Table(path, options)
    table.builder.use(path)
    _read_rows(table)
    if options.task == "choice":
        _same_number_of_options(table)
    _refuse_many_bad_rows(table)
    _hold_out(table)
    _refuse_shared_media(table)
    if options.task in ("retrieval", "caption"):
        _join_captions(table)
    return _splits(table)


def _read_rows(table: _Table) -> None:
    needed = NEEDED[table.options.task]
    unused: Counter[str] = Counter()
    known = {name for names in needed for name in names} | set(OPTIONAL)
    try:
        for line, record in table_records(table.path, needed):
            table.total += 1
            where = f"{table.path.name}:{line}"
            if isinstance(record, str):
                table.leave_out(re.sub(r"^line \d+ ?:? ?", "the line ", record), where)
                continue
            unused.update(
                name
                for name in record.keys() - known
                if not (table.options.task == "choice" and _OPTION.fullmatch(name))
            )
            try:
                table.rows.append(_row(record, where, table.options))
            except RowError as error:
                table.leave_out(str(error), where)
    except DataError as error:
        raise AnnotationError(
            f"{error}. --task {table.options.task} needs the columns"
            f" {', '.join(names[0] for names in needed)}"
        ) from error
    if unused:
        names = ", ".join(clean_text(name)[:40] or "(no name)" for name in sorted(unused)[:8])
        optional = ", ".join(OPTIONAL)
        table.builder.note(f"columns that are not used: {names}; optional columns are {optional}")


def _row(record: Mapping[str, str], where: str, options: ReadOptions) -> _Row:
    media = _media(record, options)
    row = _Row(where, standard_split(record.get("split", "")), media, record)
    name = record.get("id", "").strip()
    if options.task in ("retrieval", "caption"):
        row.item = RetrievalItem(name or _key(media), media, (_text(record, "caption", "text"),))
    elif options.task == "labels":
        row.label = _text(record, "label")
        row.item = LabelItem(name or _key(media), media, None)
    elif options.task == "qa":
        question, answer = _text(record, "question"), _text(record, "answer")
        name = name or _content_id(media, question, answer)
        row.item = QAItem(name, media, question, (answer,))
    else:
        # an empty question: the options describe the clip
        question, choices = clean_text(record.get("question", "")), _choices(record)
        name = name or _content_id(media, question, *choices)
        right = _answer(_text(record, "answer"), choices, options.answer_is)
        row.item = ChoiceItem(name, media, question, choices, right)
    return row


def _media(record: Mapping[str, str], options: ReadOptions) -> Media:
    text = next((record[name] for name in PATH_COLUMNS if name in record), "").strip()
    if not text:
        raise RowError("the path is empty")
    path = PurePosixPath(text)
    if path.is_absolute():
        try:
            path = path.relative_to(PurePosixPath(options.media))
        except ValueError:
            raise RowError("the path is absolute and not inside --media") from None
    if ".." in path.parts or "\0" in text or not path.name or "\ufffd" in clean_text(text):
        raise RowError("the path leaves --media or is no file name")
    start, end = _seconds(record, "start_s"), _seconds(record, "end_s")
    if start is not None and end is not None and end <= start:
        raise RowError("end_s is not after start_s")
    media = Media(stem(str(path)), str(path), start, end)
    return replace(media, id=_key(media)) if options.by_segment else media


def _key(media: Media) -> str:
    """The name of a part of a file: x.mp4, x.mp4#5-10."""
    if media.start_s is None and media.end_s is None:
        return media.path
    parts = ("" if value is None else f"{value:g}" for value in (media.start_s, media.end_s))
    return f"{media.path}#{'-'.join(parts)}"


def _content_id(media: Media, *texts: str) -> str:
    """An id that does not depend on other rows, so that the same row twice is found."""
    digest = int(place_in_order("\0".join(texts)) * 2**40)
    return f"{_key(media)}?{digest:010x}"


def _seconds(record: Mapping[str, str], name: str) -> float | None:
    text = record.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise RowError(f"{name} is not a number of seconds")
    return value


def _text(record: Mapping[str, str], *names: str) -> str:
    text = clean_text(next((record[name] for name in names if name in record), ""))
    if not has_text(text):
        raise RowError(f"{names[0]} is empty")
    return text


def _choices(record: Mapping[str, str]) -> tuple[str, ...]:
    numbered = {
        int(found[1]): clean_text(text)
        for name, text in record.items()
        if (found := _OPTION.fullmatch(name))
    }
    last = max((number for number, text in numbered.items() if has_text(text)), default=0)
    for number in range(1, last + 1):
        if not has_text(numbered.get(number, "")):
            raise RowError(f"option_{number} is empty")
    choices = tuple(numbered[number] for number in range(1, last + 1))
    if len(choices) < 2:
        raise RowError("there are fewer than two options")
    if len(set(choices)) < len(choices):
        raise RowError("two options are the same")
    return choices


def _answer(answer: str, choices: tuple[str, ...], answer_is: AnswerIs) -> int:
    """The index of the correct option, from its text or its number (from 1)."""
    by_text = choices.index(answer) if answer in choices else None
    by_number = None
    if answer.isascii() and answer.isdigit() and 1 <= int(answer) <= len(choices):
        by_number = int(answer) - 1
    if answer_is != "either":
        chosen = by_text if answer_is == "text" else by_number
    else:
        chosen = by_number if by_text is None else by_text
        if by_text is not None and by_number is not None and by_text != by_number:
            raise RowError(
                "the answer is the number of one option and the text of another; give --answer-is"
                " text or --answer-is number"
            )
    if chosen is None:
        what = {"either": "text or number", "text": "text", "number": "number"}[answer_is]
        raise RowError(f"the answer is not the {what} of an option")
    return chosen


def _same_number_of_options(table: _Table) -> None:
    """Leave out rows whose number of options differs from that of most rows."""

    def size(row: _Row) -> int:
        assert isinstance(row.item, ChoiceItem)
        return len(row.item.choices)

    counts = Counter(map(size, table.rows))
    usual = max(counts, key=lambda number: (counts[number], number), default=0)
    for row in table.rows:
        if size(row) != usual:
            table.leave_out(f"it has {size(row)} options, most rows have {usual}", row.where)
    table.rows = [row for row in table.rows if size(row) == usual]


def _refuse_many_bad_rows(table: _Table) -> None:
    limit = table.options.max_bad_share
    if not table.rows or (table.total >= _FEW_ROWS and table.bad > limit * table.total):
        reasons = "; ".join(table.builder.left_out()) or "it has no rows"
        raise AnnotationError(
            f"{table.path}: {table.bad:,} of {table.total:,} rows cannot be used, more than"
            f" --max-bad-share {limit:g}: {reasons}"
        )


def _hold_out(table: _Table) -> None:
    """Make the splits that are wanted and that no row is in, of the media of train.

    A medium's split depends on its own name alone, so that more rows do not move it; but at least
    one medium is held out.
    """
    options = table.options
    shares = {"test": options.test_share, "val": options.val_share}
    present = {row.split for row in table.rows}
    for split in ("test", "val"):
        if split in present or split not in options.hold_out:
            continue
        train = {row.media.id for row in table.rows if row.split == "train"}
        place = {name: place_in_order(f"{split} {name}") for name in train}
        held = {name for name in train if place[name] < shares[split]}
        held = held or set(sorted(train, key=place.__getitem__)[:1])
        if len(held) == len(train):
            raise AnnotationError(
                f"{table.path}: {len(train):,} media in train are too few to hold out the split"
                f" {split}; add media, or a column split, or give --{split}-split"
                + (" none" if split == "val" else "")
            )
        for row in table.rows:
            if row.split == "train" and row.media.id in held:
                row.split = split
        table.builder.note(
            f"split {split}: {len(held):,} of {len(train):,} media, chosen by their names"
            f" (--{split}-share {shares[split]:g})"
        )


def _refuse_shared_media(table: _Table) -> None:
    where: dict[str, _Row] = {}
    for row in table.rows:
        first = where.setdefault(row.media.id, row)
        if first.split != row.split:
            raise AnnotationError(
                f"{row.media.path} is in split {first.split!r} ({first.where}) and in split"
                f" {row.split!r} ({row.where}): a result would be of media seen in training. Put"
                " all rows of a file into one split, or leave the column split out"
                + ("" if table.options.by_segment else "; --by-segment splits parts of one file")
            )


def _join_captions(table: _Table) -> None:
    """One item per clip with all its captions."""
    joined: dict[str, _Row] = {}
    for row in table.rows:
        assert isinstance(row.item, RetrievalItem)
        first = joined.setdefault(_key(row.media), row)
        if first is row:
            continue
        assert isinstance(first.item, RetrievalItem)
        if row.item.captions[0] in first.item.captions:
            table.builder.leave_out("the caption is repeated", row.where)
        else:
            captions = (*first.item.captions, *row.item.captions)
            first.item = replace(first.item, captions=captions)
    table.rows = list(joined.values())


def _splits(table: _Table) -> dict[str, Split]:
    names = sorted({row.split for row in table.rows}, key=lambda name: (name != "train", name))
    classes = tuple(sorted({row.label for row in table.rows if row.split == "train"} - {""}))
    numbers = {label: number for number, label in enumerate(classes)}
    builders = {"train": table.builder, **{name: Builder(name) for name in names[1:]}}
    seen: dict[str, tuple[Item, str]] = {}
    for row in table.rows:
        item, builder = row.item, builders.setdefault(row.split, Builder(row.split))
        assert item is not None
        first, split = seen.setdefault(item.id, (item, row.split))
        if first is not item and split != row.split:
            builder.leave_out(f"the id is repeated, the one in split {split} is kept", row.where)
            continue
        if isinstance(item, LabelItem):
            if row.label not in numbers:
                builder.leave_out("the label is not in train, so no class has it", row.where)
                continue
            item = replace(item, label=numbers[row.label])
        known = builder.items.get(item.id)
        reason = CONTRADICTIONS.get(table.options.task)
        if reason and known is not None and known != item and known.media == item.media:
            builder.leave_out(reason, row.where)
            continue
        builder.add(item, row.where)
    found = {}
    for name in names:
        builders[name].files = [str(table.path)]
        found[name] = builders[name].split(classes=classes)
    return found


def texts_of_items(items: Iterator[Item]) -> Iterator[str]:
    """Every caption and question, for counting tokens."""
    for item in items:
        if isinstance(item, RetrievalItem):
            yield from item.captions
        elif isinstance(item, QAItem):
            yield item.question
        elif isinstance(item, ChoiceItem):
            yield " ".join((item.question, *item.choices, max(item.choices, key=len)))
