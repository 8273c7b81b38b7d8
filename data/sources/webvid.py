"""WebVid-2.5M and WebVid-10M: results_2M_train.csv and similar lists.

Videos are videos/<page_dir>/<videoid>.mp4 in the list's folder (github.com/m-bain/webvid).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from allinone.data.sources.media import PLAIN, media_folder, media_row
from allinone.data.sources.reading import CAPTION_COLUMNS, column_of, csv_header, csv_records
from allinone.data.sources.schema import SPLIT, ReadOptions, SourceFormat, SourceRow, bad_row

if TYPE_CHECKING:
    from allinone.data.sources.plain_csv import CsvBlock
    from allinone.data.sources.plain_rows import PlainRows

NEEDED = [("videoid",), CAPTION_COLUMNS]


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".csv" and "videoid" in csv_header(source) else []
    return sorted(source.glob("results_*.csv"))


def _lists(source: Path) -> Iterator[tuple[Path, str]]:
    for path in _files(source) or [source]:
        match = re.fullmatch(r"results_[^_]+_(\w+)", path.stem)
        yield path, match[1] if match else path.stem


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    root = media_folder(source, options.media, "videos")
    for path, split in _lists(source):
        for line, record in csv_records(path, NEEDED):
            yield _row(split, line, record, root, path)


def _row(split: str, line: int, record: dict[str, str] | str, root: Path, path: Path) -> SourceRow:
    """One row of a list; a row without page_dir has its file directly in videos/.

    Args:
        split: Split of the list.
        line: Line number.
        record: Fields by name, because their order differs between copies of the lists, or what is
            wrong with the row.
        root: Folder of the videos.
        path: The list.
    """
    place = f"line-{line}"
    if isinstance(record, str):
        return bad_row(split, place, path, f"{path.name}:{line}", record)
    name = record["videoid"].strip()
    folder = record.get("page_dir") or "."
    relative: Path | str = f"{folder}/{name}.mp4".removeprefix("./")
    if not PLAIN.fullmatch(str(relative)):
        relative = Path(folder) / f"{name}.mp4"
    captions = (column_of(record, CAPTION_COLUMNS),)
    return media_row(split, name, captions, root, relative, path, place)


def _read_blocks(source: Path, options: ReadOptions) -> Iterator[SourceRow | PlainRows]:
    """The rows of `_read`, most of them in blocks."""
    import pyarrow.compute as pc  # with the next two, what --help must not wait for

    from allinone.data.sources.plain_csv import csv_blocks
    from allinone.data.sources.plain_rows import PlainRows

    root = media_folder(source, options.media, "videos")
    for path, split in _lists(source):
        if not SPLIT.fullmatch(split):  # all rows are bad
            yield from (_row(split, *record, root, path) for record in csv_records(path, NEEDED))
            continue
        for block in csv_blocks(path, NEEDED, ["videoid", "page_dir", *CAPTION_COLUMNS]):
            if isinstance(block, tuple):
                yield _row(split, *block, root, path)
                continue
            columns = block.columns
            caption = next(columns[name] for name in CAPTION_COLUMNS if name in columns)
            parts = [columns["videoid"], ".mp4"]
            if "page_dir" in columns:
                parts = [columns["page_dir"], "/", *parts]
            yield PlainRows(
                split,
                root,
                "mp4",
                columns["videoid"],
                caption,
                pc.binary_join_element_wise(*parts, ""),
                partial(_row_of_block, split, block, root, path),
            )


def _row_of_block(split: str, block: CsvBlock, root: Path, path: Path, position: int) -> SourceRow:
    record = {name: column[position].as_py() for name, column in block.columns.items()}
    return _row(split, int(block.lines[position]), record, root, path)


FORMAT = SourceFormat(
    "webvid",
    "a folder with results_*_<split>.csv and videos/, or one such CSV",
    _files,
    _read,
    {
        "results_2M_train.csv": {"train": (2_500_000, False)},
        "results_2M_val.csv": {"val": (5000, True)},
        "results_10M_train.csv": {"train": (10_727_607, True)},
        "results_10M_val.csv": {"val": (5000, True)},
    },
    read_blocks=_read_blocks,
)
