"""WebVid-2.5M and WebVid-10M: results_2M_train.csv and its like beside
videos/<page_dir>/<videoid>.mp4 (github.com/m-bain/webvid)."""

from __future__ import annotations

import re
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

CAPTION_COLUMNS = ("name", "caption", "text")


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".csv" and "videoid" in header(source) else []
    return sorted(source.glob("results_*.csv"))


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    """Columns by name, since a variant with another order is about. A row without page_dir has its
    file directly below videos/."""
    root = options.media or (source.parent if source.is_file() else source) / "videos"
    for path in _files(source) or [source]:
        match = re.fullmatch(r"results_[^_]+_(\w+)", path.stem)
        split = match[1] if match else path.stem
        for line, record in records(path, [("videoid",), CAPTION_COLUMNS]):
            if isinstance(record, str):
                yield bad(split, f"line-{line}", path, f"{path.name}:{line}", record)
                continue
            relative = Path(record.get("page_dir") or "") / f"{record['videoid'].strip()}.mp4"
            caption = next(record[column] for column in CAPTION_COLUMNS if column in record)
            yield media_row(
                split, record["videoid"].strip(), (caption,), root, relative, path, f"line-{line}"
            )


FORMAT = Format(
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
