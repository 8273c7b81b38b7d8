"""A user's own list: a CSV or TSV file with the columns path, caption and, optionally, split.

Paths are absolute or relative to the list's folder. Several rows with one path and split are the
captions of one file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from allinone.data.sources.media import PLAIN, media_row
from allinone.data.sources.reading import CAPTION_COLUMNS, column_of, csv_header, csv_records
from allinone.data.sources.schema import (
    ReadOptions,
    SourceFormat,
    SourceRow,
    bad_row,
    clean_text,
    has_text,
    key_hash,
)

PATH_COLUMNS = ("path", "video", "file")
_CHUNK = 512
"""Rows whose keys are looked up at a time."""


def _files(source: Path) -> list[Path]:
    if not source.is_file() or source.suffix not in (".csv", ".tsv") or not csv_header(source):
        return []
    return [source]


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    root = options.media or source.parent
    more = _more_captions(source)
    joined: dict[int, list[str]] = {}
    """Key of a file that was yielded → its captions whose rows are still to come."""
    for line, record in csv_records(source, [PATH_COLUMNS, CAPTION_COLUMNS]):
        place, where = f"line-{line}", f"{source.name}:{line}"
        if isinstance(record, str):
            yield bad_row("train", place, source, where, record)
            continue
        split, path, caption = _fields(record)
        key = key_hash(split, path)
        captions: tuple[str, ...] = (caption,)
        seen = key in joined
        if key in more and has_text(caption) and not seen:
            captions = tuple(dict.fromkeys((caption, *more[key])))
        row = _row(split, path, captions, root, source, place)
        if key not in more or row.reason is not None:
            yield row
        elif not has_text(caption):
            detail = f"{where}: the caption is missing or empty; other rows of this file have one"
            yield replace(row, id=place, reason="no_caption", detail=detail)
        elif not seen:
            joined[key] = list(captions[1:])
            yield row
        elif caption in joined[key]:
            joined[key].remove(caption)
        else:
            detail = f"{where}: an earlier row gives this file the same caption; delete one of them"
            yield replace(row, id=place, reason="duplicate", detail=detail)


def _fields(record: dict[str, str]) -> tuple[str, str, str]:
    """(split, path, caption without surplus white space)."""
    caption = clean_text(column_of(record, CAPTION_COLUMNS))
    return record.get("split") or "train", column_of(record, PATH_COLUMNS), caption


def _more_captions(source: Path) -> dict[int, list[str]]:
    """Key of a file with several rows → its captions, without that of the first row.

    The list is read once for them: keeping all rows of 10 million would take gigabytes.
    """
    from allinone.data.sources.keys import Keys  # imports numpy, which --help must not wait for

    keys, more = Keys(), dict[int, list[str]]()
    records = csv_records(source, [PATH_COLUMNS, CAPTION_COLUMNS])
    while chunk := list(itertools.islice(records, _CHUNK)):
        fields = [_fields(record) for _, record in chunk if not isinstance(record, str)]
        rows = [(key_hash(split, path), caption) for split, path, caption in fields]
        keys.expect([key for key, _ in rows])
        for key, caption in rows:
            if keys.add(key, "", "")[0]:
                more.setdefault(key, []).extend([caption] if has_text(caption) else [])
    return more


def _row(
    split: str, path: str, captions: tuple[str, ...], root: Path, source: Path, place: str
) -> SourceRow:
    if PLAIN.fullmatch(path):
        return media_row(split, path, captions, root, path, source, place)
    other = Path(path)
    name = other.as_posix() if other.name else ""
    return media_row(split, name, captions, root, other, source, place, absolute=True)


FORMAT = SourceFormat(
    "csv",
    f"a CSV with the columns {'/'.join(PATH_COLUMNS)} and {'/'.join(CAPTION_COLUMNS)}",
    _files,
    _read,
)
