"""HowTo100M (Miech et al., ICCV 2019): narrated YouTube videos, one clip per subtitle line.

Captions are either one CSV per video, <video_id>.csv with the columns start, end, text
(howto100m_captions.zip), or one file for all videos, raw_caption.json or caption.json: {video_id:
{"start": [...], "end": [...], "text": [...]}}. caption.json lacks the stop words, so where both are
there the raw one is read. Videos are <video_id>.mp4|webm|mkv, in any sub-folders of videos/.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allinone.common.errors import LASTING
from allinone.data.sources.base import (
    Format,
    Line,
    MediaFiles,
    Narration,
    ReadOptions,
    SourceRow,
    bad,
    header,
    stream_json,
)

SHORTEST_S = 4.0
"""Lines that are shorter are widened to this (MIL-NCE, Miech et al., CVPR 2020; All-in-one does the
same)."""
JSON_FILES = ("raw_caption.json", "caption.json")
CSV_FOLDERS = (".", "howto100m_csv", "captions", "howto100m_captions")
CSV_COLUMNS = {"start", "end", "text"}


def four_seconds(start_s: float, end_s: float) -> tuple[float, float]:
    """The window of a line: widened about its middle to four seconds, then both ends cut to whole
    seconds, as MIL-NCE's loader does. The text is not widened. The older loader's rule (10 s,
    neighbouring lines merged) is another one."""
    if end_s - start_s < SHORTEST_S:
        start_s = max(0.0, start_s - (SHORTEST_S - (end_s - start_s)) / 2)
        end_s = start_s + SHORTEST_S
    return float(int(start_s)), float(int(end_s))


def line_of(start: Any, end: Any, text: Any) -> Line:
    """One subtitle line as a window, or what is wrong with it."""
    try:
        begin, stop = float(start), float(end)
    except (TypeError, ValueError):
        return Line(
            0.0,
            0.0,
            str(text),
            "bad_window",
            f"start {start!r} or end {end!r} is no number of seconds",
        )
    if not (math.isfinite(begin) and math.isfinite(stop)) or begin < 0 or stop < begin:
        return Line(0.0, 0.0, str(text), "bad_window", f"from {begin:g} s to {stop:g} s")
    if not isinstance(text, str) or not text.strip() or text == "nan":
        return Line(begin, stop, "", "no_caption", "the line has no text")
    return Line(*four_seconds(begin, stop), text)


def csv_lines(narration: Narration) -> list[Line]:
    """Lines of one video's CSV in order of time. A damaged file is one bad line."""
    try:
        with narration.path.open(
            encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            reader = csv.DictReader(file)
            if not set(reader.fieldnames or ()) >= CSV_COLUMNS:
                found = ", ".join(reader.fieldnames or ()) or "an empty file"
                return [
                    Line(
                        0.0,
                        0.0,
                        "",
                        "bad_captions",
                        f"{narration.path.name}: needs start, end, text; found: {found}",
                    )
                ]
            lines = [line_of(record["start"], record["end"], record["text"]) for record in reader]
    except (OSError, csv.Error) as error:
        if isinstance(error, OSError) and error.errno not in LASTING:
            raise  # storage in trouble says nothing about the file
        return [Line(0.0, 0.0, "", "bad_captions", f"{narration.path.name}: {error}")]
    return sorted(lines, key=lambda line: line.start_s)


def json_lines(narration: Narration) -> list[Line]:
    """Lines of one video's record in order of time: three parallel lists."""
    record = json.loads(narration.text or "null")
    columns = (
        [record.get(name) for name in ("start", "end", "text")]
        if isinstance(record, dict)
        else [None]
    )
    lengths = [len(column) for column in columns if isinstance(column, list)]
    if len(lengths) != 3 or len(set(lengths)) != 1:
        return [
            Line(
                0.0,
                0.0,
                "",
                "bad_captions",
                f"start, end and text are no lists of one length: {lengths}",
            )
        ]
    return sorted(
        (line_of(*fields) for fields in zip(*columns, strict=True)), key=lambda line: line.start_s
    )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.name in JSON_FILES else []
    whole = [source / name for name in JSON_FILES if (source / name).is_file()][:1]
    return whole or next(
        (files for name in CSV_FOLDERS if (files := _csv_files(source / name))), []
    )


def _csv_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # one file with the right columns tells; the others are judged when they are read
    files = sorted(path for path in folder.glob("*.csv") if path.name != "HowTo100M_v1.csv")
    return files if any(set(header(path)) >= CSV_COLUMNS for path in files[:20]) else []


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    base = source.parent if source.is_file() else source
    videos = MediaFiles(options.media or base / "videos", "<video_id>.mp4, .webm or .mkv")
    for path in _files(source):
        if path.suffix == ".csv":
            yield videos.row("train", path.stem, Narration(csv_lines, path))
            continue
        for name, record in stream_json(path):
            row = videos.row("train", name, Narration(json_lines, path, json.dumps(record)))
            yield (
                row
                if record
                else bad("train", name, path, name, "the video has no caption lines", "no_caption")
            )


FORMAT = Format(
    "howto100m",
    "a folder with raw_caption.json, caption.json or one <video_id>.csv per video (start, end,"
    " text) beside videos/",
    _files,
    _read,
    # the videos per epoch that MIL-NCE counts (the paper says 1.22 M), and the paper's pairs
    whole={"videos": 1_238_911, "captions": 136_600_000},
    narrated=True,
)
