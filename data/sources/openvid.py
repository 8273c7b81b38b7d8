"""OpenVid-1M (Nan et al., ICLR 2025): OpenVid-1M.csv and OpenVidHD.csv.

Columns video (a file name), caption, aesthetic score, motion score, temporal consistency score,
camera motion, frame, fps, seconds (huggingface.co/datasets/nkp37/OpenVid-1M). The videos of the zip
parts are unpacked into video/ next to the list, without folders (`unzip -j`). OpenVidHD lists a
part of the same videos: prepare one of the two.

Captions are long descriptions by a language model, often of more than 100 words: see
`allinone check --recipe`, which counts the tokens that a text limit cuts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from allinone.data.sources.media import media_folder, media_row
from allinone.data.sources.reading import csv_header, csv_records
from allinone.data.sources.schema import ReadOptions, SourceFormat, SourceRow, bad_row

FILES = ("OpenVid-1M.csv", "OpenVidHD.csv")
COLUMNS = ("video", "caption", "aesthetic score")
"""Columns that tell the list from a user's own."""


def _files(source: Path) -> list[Path]:
    paths = [source] if source.is_file() else [source / name for name in FILES]
    found = [path for path in paths if path.suffix == ".csv" and path.is_file()]
    # OpenVidHD is a part of OpenVid-1M: of a folder, only the first that is there
    return [path for path in found if set(COLUMNS) <= set(csv_header(path))][:1]


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    root = media_folder(source, options.media, "video")
    for path in _files(source) or [source]:
        for line, record in csv_records(path, [("video",), ("caption",)]):
            place = f"line-{line}"
            if isinstance(record, str):
                yield bad_row("train", place, path, f"{path.name}:{line}", record)
                continue
            name = record["video"].strip()
            yield media_row("train", name, (record["caption"],), root, name, path, place)


FORMAT = SourceFormat(
    "openvid",
    "OpenVid-1M.csv or OpenVidHD.csv with video/, or a folder with them",
    _files,
    _read,
    {"OpenVid-1M.csv": {"train": (1_000_000, False)}},
)
