"""A user's own list: a CSV or TSV file with the columns path, caption and, optionally, split.

Paths are absolute or relative to the list's folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from allinone.data.sources.media import PLAIN, media_row
from allinone.data.sources.reading import CAPTION_COLUMNS, column_of, csv_header, csv_records
from allinone.data.sources.schema import ReadOptions, SourceFormat, SourceRow, bad_row

PATH_COLUMNS = ("path", "video", "file")


def _files(source: Path) -> list[Path]:
    if not source.is_file() or source.suffix not in (".csv", ".tsv") or not csv_header(source):
        return []
    return [source]


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    root = options.media or source.parent
    for line, record in csv_records(source, [PATH_COLUMNS, CAPTION_COLUMNS]):
        place = f"line-{line}"
        if isinstance(record, str):
            yield bad_row("train", place, source, f"{source.name}:{line}", record)
            continue
        path = column_of(record, PATH_COLUMNS)
        captions = (column_of(record, CAPTION_COLUMNS),)
        split = record.get("split") or "train"
        if PLAIN.fullmatch(path):
            yield media_row(split, path, captions, root, path, source, place)
            continue
        other = Path(path)
        name = other.as_posix() if other.name else ""
        yield media_row(split, name, captions, root, other, source, place, absolute=True)


FORMAT = SourceFormat(
    "csv",
    f"a CSV with the columns {'/'.join(PATH_COLUMNS)} and {'/'.join(CAPTION_COLUMNS)}",
    _files,
    _read,
)
