"""WebVid-2.5M and WebVid-10M: results_2M_train.csv and similar lists.

Videos are videos/<page_dir>/<videoid>.mp4 in the list's folder (github.com/m-bain/webvid).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from allinone.data.sources.media import PLAIN, media_folder, media_row
from allinone.data.sources.reading import CAPTION_COLUMNS, column_of, csv_header, csv_records
from allinone.data.sources.schema import ReadOptions, SourceFormat, SourceRow, bad_row


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".csv" and "videoid" in csv_header(source) else []
    return sorted(source.glob("results_*.csv"))


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    """Read columns by name, because their order differs between copies of the lists.

    A row without page_dir has its file directly in videos/.
    """
    root = media_folder(source, options.media, "videos")
    for path in _files(source) or [source]:
        match = re.fullmatch(r"results_[^_]+_(\w+)", path.stem)
        split = match[1] if match else path.stem
        for line, record in csv_records(path, [("videoid",), CAPTION_COLUMNS]):
            place = f"line-{line}"
            if isinstance(record, str):
                yield bad_row(split, place, path, f"{path.name}:{line}", record)
                continue
            name = record["videoid"].strip()
            folder = record.get("page_dir") or "."
            relative: Path | str = f"{folder}/{name}.mp4".removeprefix("./")
            if not PLAIN.fullmatch(str(relative)):
                relative = Path(folder) / f"{name}.mp4"
            captions = (column_of(record, CAPTION_COLUMNS),)
            yield media_row(split, name, captions, root, relative, path, place)


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
)
