"""HowTo100M (Miech et al., ICCV 2019): narrated YouTube videos, one clip per subtitle line.

Captions are either one CSV per video, <video_id>.csv with the columns start, end, text
(howto100m_captions.zip), or one file for all videos, raw_caption.json or caption.json: {video_id:
{"start": [...], "end": [...], "text": [...]}}. caption.json lacks the stop words, so the raw file
is preferred. Videos are <video_id>.mp4|webm|mkv, in any sub-folders of videos/.

Frames: the original code decodes a line at 2 fps from a random start and takes T consecutive
frames, which show (T - 1) / 2 seconds. Here, as for every data set, each of T equal parts of the
line gives one random frame, so that the frames cover what the line describes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allinone.common.errors import OF_THE_NAME, DataError
from allinone.common.json_text import parse_json
from allinone.data.sources.media import MediaFiles, media_folder
from allinone.data.sources.reading import csv_header, csv_records, listed_files, stream_json
from allinone.data.sources.schema import (
    CaptionLine,
    Narration,
    ReadOptions,
    SourceFormat,
    SourceRow,
    bad_row,
)

SHORTEST_S = 4.0
"""Shorter lines are widened to this (MIL-NCE, Miech et al., CVPR 2020; All-in-one does the
same)."""
JSON_FILES = ("raw_caption.json", "caption.json")
CSV_FOLDERS = (".", "howto100m_csv", "captions", "howto100m_captions")
CSV_COLUMNS = {"start", "end", "text"}


def widen_to_four_seconds(start_s: float, end_s: float) -> tuple[float, float]:
    """Window of a subtitle line, as in MIL-NCE's loader; its text stays the same.

    The line is widened about its middle to four seconds, then both ends are truncated to full
    seconds. (The older loader of HowTo100M has another rule: 10 s, with neighbouring lines merged.)

    Args:
        start_s: Seconds from the first frame.
        end_s: Seconds from the first frame.

    Returns:
        (start, end) in seconds.
    """
    if end_s - start_s < SHORTEST_S:
        start_s = max(0.0, start_s - (SHORTEST_S - (end_s - start_s)) / 2)
        end_s = start_s + SHORTEST_S
    return float(int(start_s)), float(int(end_s))


def caption_line(start: Any, end: Any, text: Any) -> CaptionLine:
    """Convert one subtitle line.

    Args:
        start: Seconds, as a number or text.
        end: Seconds, as a number or text.
        text: The caption.

    Returns:
        The line's window, or the line with the reason why it cannot be used.
    """
    try:
        begin, stop = float(start), float(end)
    except (TypeError, ValueError, OverflowError):
        detail = f"start {str(start)[:40]!r} or end {str(end)[:40]!r} is not a number of seconds"
        return CaptionLine(0.0, 0.0, str(text), "bad_window", detail)
    if not (math.isfinite(begin) and math.isfinite(stop)) or begin < 0 or stop < begin:
        detail = f"from {begin:g} s to {stop:g} s"
        return CaptionLine(0.0, 0.0, str(text), "bad_window", detail)
    # "nan" is what a missing text of pandas becomes as a string
    if not isinstance(text, str) or not text.strip() or text == "nan":
        return CaptionLine(begin, stop, "", "no_caption", "the line has no text")
    return CaptionLine(*widen_to_four_seconds(begin, stop), text)


def _bad_captions(detail: str) -> list[CaptionLine]:
    return [CaptionLine(0.0, 0.0, "", "bad_captions", detail)]


def _by_time(lines: Iterator[CaptionLine]) -> list[CaptionLine]:
    return sorted(lines, key=lambda line: line.start_s)


def csv_lines(narration: Narration) -> list[CaptionLine]:
    """Lines of one video's CSV in order of time; a damaged file is one bad line."""
    name = narration.path.name
    try:
        records = csv_records(narration.path, [("start",), ("end",), ("text",)])
        return _by_time(_csv_line(name, record) for _, record in records)
    except DataError as error:  # a column is missing
        return _bad_captions(str(error))
    except OSError as error:
        if error.errno not in OF_THE_NAME:
            raise  # a storage failure says nothing about the file
        return _bad_captions(f"{name}: {error}")


def _csv_line(name: str, record: dict[str, str] | str) -> CaptionLine:
    if isinstance(record, str):
        return _bad_captions(f"{name}: {record}")[0]
    return caption_line(record["start"], record["end"], record["text"])


def json_lines(narration: Narration) -> list[CaptionLine]:
    """Lines of one video's record, three parallel lists, in order of time."""
    record = parse_json(narration.text or "null")
    columns: list[Any] = [None]
    if isinstance(record, dict):
        columns = [record.get(name) for name in ("start", "end", "text")]
    lengths = [len(column) for column in columns if isinstance(column, list)]
    if len(lengths) != 3 or len(set(lengths)) != 1:
        return _bad_captions(f"start, end and text are not lists of one length: {lengths}")
    return _by_time(caption_line(*fields) for fields in zip(*columns, strict=True))


def _files(source: Path) -> list[Path]:
    found = listed_files(source, JSON_FILES)[:1]
    if found or source.is_file():
        return found
    return next((files for name in CSV_FOLDERS if (files := _csv_files(source / name))), [])


def _csv_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # One file with the right columns identifies the folder; the others are checked when read.
    # HowTo100M_v1.csv lists the videos and their categories; it has no captions.
    files = sorted(path for path in folder.glob("*.csv") if path.name != "HowTo100M_v1.csv")
    return files if any(set(csv_header(path)) >= CSV_COLUMNS for path in files[:20]) else []


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    videos = MediaFiles(
        media_folder(source, options.media, "videos"), "<video_id>.mp4, .webm or .mkv"
    )
    for path in _files(source):
        if path.suffix == ".csv":
            yield videos.row("train", path.stem, Narration(csv_lines, path))
            continue
        # one video at a time: the file of all 1.2 M videos may not fit in memory
        for name, record in stream_json(path):
            if record:
                yield videos.row("train", name, Narration(json_lines, path, json.dumps(record)))
            else:
                detail = "the video has no caption lines"
                yield bad_row("train", name, path, name, detail, "no_caption")


FORMAT = SourceFormat(
    "howto100m",
    "a folder with videos/ and raw_caption.json, caption.json or one <video_id>.csv per video"
    " (start, end, text)",
    _files,
    _read,
    # videos: as MIL-NCE counts them per epoch (the paper says 1.22 M); captions: the paper's pairs
    official_totals={"videos": 1_238_911, "captions": 136_600_000},
    narrated=True,
)
