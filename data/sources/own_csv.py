"""A user's own list: a CSV or TSV with a path, a caption and, if wanted, a split. Paths start from
the list's folder, or are absolute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from allinone.data.sources.base import (
    Format,
    ReadOptions,
    SourceRow,
    bad,
    header,
    media_row,
    records,
)

CAPTION_COLUMNS, PATH_COLUMNS = ("name", "caption", "text"), ("path", "video", "file")


def _files(source: Path) -> list[Path]:
    if not source.is_file() or source.suffix not in (".csv", ".tsv") or not header(source):
        return []
    return [source]


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    root = options.media or source.parent
    for line, record in records(source, [PATH_COLUMNS, CAPTION_COLUMNS]):
        if isinstance(record, str):
            yield bad("train", f"line-{line}", source, f"{source.name}:{line}", record)
            continue
        relative = Path(next(record[column] for column in PATH_COLUMNS if column in record))
        caption = next(record[column] for column in CAPTION_COLUMNS if column in record)
        name = relative.as_posix() if relative.name else ""
        yield media_row(
            record.get("split") or "train",
            name,
            (caption,),
            root,
            relative,
            source,
            f"line-{line}",
            absolute=True,
        )


FORMAT = Format(
    "csv",
    f"a CSV with the columns {'/'.join(PATH_COLUMNS)} and {'/'.join(CAPTION_COLUMNS)}",
    _files,
    _read,
)
