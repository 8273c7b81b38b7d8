"""Lists of clips of YouTube videos with captions: Panda-70M and InternVid.

Panda-70M (Chen et al., CVPR 2024): CSV files with one video per row, videoID, url, timestamp,
caption, matching_score; timestamp and caption hold Python lists as text, [['0:00:26.559',
'0:00:31.264'], …] and ['a man …', …] (github.com/snap-research/Panda-70M, dataset_dataloading).

InternVid (Wang et al., ICLR 2024): JSON lines with one clip each, {"YoutubeID": …,
"Start_timestamp": "00:03:10.567", "End_timestamp": …, "Caption": …, "Aesthetic_Score": …,
"UMT_Score": …} (huggingface.co/datasets/OpenGVLab/InternVid-Full). Clips of a video need not follow
each other, so the lines are read twice: first for the place of each video's lines, 8 bytes a clip,
then video by video.

Videos are <id>.mp4|webm|mkv in any sub-folders of videos/, each stored once. What video2dataset cut
into clips has the form of its tars and is read as such (`webdataset`).
"""

from __future__ import annotations

import ast
import json
import math
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allinone.common.json_text import parse_json
from allinone.data.sources.media import MediaFiles, media_folder
from allinone.data.sources.reading import LONGEST_LINE, bounded_lines, csv_header, csv_records
from allinone.data.sources.schema import (
    CaptionLine,
    Narration,
    ReadOptions,
    SourceFormat,
    SourceRow,
    bad_row,
)

PANDA_COLUMNS = ("videoID", "timestamp", "caption")
INTERNVID_FIELDS = ("YoutubeID", "Start_timestamp", "End_timestamp", "Caption")
SPLITS = {"validation": "val", "testing": "test"}
"""Part of a Panda-70M file's name → split; any other file is train."""
_TIME = re.compile(r"(\d{1,3}):([0-5]?\d):([0-5]?\d(?:\.\d+)?)", re.ASCII)


def seconds(value: Any) -> float:
    """Seconds of a time, "0:00:26.559" or a number; NaN for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return math.nan
    return 3600.0 * int(match[1]) + 60.0 * int(match[2]) + float(match[3])


def clip_lines(narration: Narration) -> list[CaptionLine]:
    """Clips of one video, a JSON list of [start, end, caption], in order of time.

    The clips are those of the data set: none is widened.
    """
    clips = parse_json(narration.text or "[]")
    return sorted((_line(*clip) for clip in clips), key=lambda line: line.start_s)


def _line(start: Any, end: Any, text: Any) -> CaptionLine:
    begin, stop = seconds(start), seconds(end)
    # not `stop <= begin`: a comparison with NaN is False
    if not (0 <= begin < stop < math.inf):
        detail = f"from {str(start)[:40]!r} to {str(end)[:40]!r}"
        return CaptionLine(0.0, 0.0, str(text), "bad_window", detail)
    if not isinstance(text, str) or not text.strip():
        return CaptionLine(begin, stop, "", "no_caption", "the clip has no caption")
    return CaptionLine(begin, stop, text)


def _videos(source: Path, options: ReadOptions) -> MediaFiles:
    folder = media_folder(source, options.media, "videos")
    return MediaFiles(folder, "<YouTube id>.mp4, .webm or .mkv")


def _row(
    videos: MediaFiles, split: str, name: str, path: Path, clips: list[tuple[Any, Any, Any]]
) -> SourceRow:
    """The row of a video.

    Args:
        videos: The videos by id.
        split: Split of the row.
        name: Id of the video.
        path: The list.
        clips: (start, end, caption) of each clip.
    """
    return videos.row(split, name, Narration(clip_lines, path, json.dumps(clips)))


def _panda_files(source: Path) -> list[Path]:
    files = [source] if source.is_file() else sorted(source.glob("*.csv"))
    return [
        path
        for path in files
        if path.suffix == ".csv" and set(PANDA_COLUMNS) <= set(csv_header(path))
    ]


def _read_panda(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    videos = _videos(source, options)
    for path in _panda_files(source):
        split = next((name for part, name in SPLITS.items() if part in path.stem), "train")
        for line, record in csv_records(path, [(name,) for name in PANDA_COLUMNS]):
            place = f"{path.name}:{line}"
            clips = record if isinstance(record, str) else _panda_clips(record)
            if isinstance(clips, str):
                yield bad_row(split, f"line-{line}", path, place, clips)
            else:
                assert not isinstance(record, str)
                yield _row(videos, split, record["videoID"].strip(), path, clips)


def _panda_clips(record: dict[str, str]) -> list[tuple[Any, Any, Any]] | str:
    """The clips of a row, or what is wrong with it."""
    columns: list[list[Any]] = []
    for name in ("timestamp", "caption"):
        try:
            # literals only: nothing is called. Deep nesting raises one of the last two
            value = ast.literal_eval(record[name].strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return f"{name} is not a list as Python writes it"
        if not isinstance(value, list):
            return f"{name} is not a list"
        columns.append(value)
    times, captions = columns
    if not all(isinstance(span, list | tuple) and len(span) == 2 for span in times):
        return "timestamp is not a list of [start, end]"
    if len(times) != len(captions):
        return f"{len(times)} times, but {len(captions)} captions"
    return [(*span, text) for span, text in zip(times, captions, strict=True)]


def _internvid_files(source: Path) -> list[Path]:
    files = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
    return [path for path in files if path.suffix == ".jsonl" and _is_internvid(path)]


def _is_internvid(path: Path) -> bool:
    with path.open("rb") as file:
        return isinstance(_clip(file.readline(LONGEST_LINE)), dict)


def _clip(line: bytes) -> dict[str, Any] | str:
    """The record of a line, or what is wrong with it."""
    try:
        record = parse_json(line.decode("utf-8-sig"))
    except ValueError:
        return "the line is not JSON in UTF-8"
    if not isinstance(record, dict):
        return "the line is not a JSON object"
    missing = [name for name in INTERNVID_FIELDS if not isinstance(record.get(name), str)]
    return f"no text in {', '.join(missing)}" if missing else record


def _read_internvid(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    videos = _videos(source, options)
    for path in _internvid_files(source):
        places: dict[str, array[int]] = {}
        with path.open("rb") as file:
            start = 0
            for number, line in bounded_lines(file, LONGEST_LINE):
                if line is None:
                    record: dict[str, Any] | str = (
                        f"line {number} has more than {LONGEST_LINE:,} bytes"
                    )
                else:
                    record = _clip(line)
                if isinstance(record, dict):
                    places.setdefault(record["YoutubeID"].strip(), array("q")).append(start)
                elif line is None or not line.isspace():
                    place = f"{path.name}:{number}"
                    yield bad_row("train", f"line-{number}", path, place, record)
                start = file.tell()
            for name, starts in places.items():
                clips = []
                for begin in starts:
                    file.seek(begin)
                    record = _clip(file.readline(LONGEST_LINE))
                    if isinstance(record, dict):  # else the file has changed since
                        times = record["Start_timestamp"], record["End_timestamp"]
                        clips.append((*times, record["Caption"]))
                yield _row(videos, "train", name, path, clips)


PANDA_FORMAT = SourceFormat(
    "panda70m",
    "a CSV of Panda-70M (videoID, timestamp, caption), or a folder with such files and videos/",
    _panda_files,
    _read_panda,
    official_totals={"videos": 3_779_763, "captions": 70_723_513},
    narrated=True,
)
INTERNVID_FORMAT = SourceFormat(
    "internvid",
    "JSON lines of InternVid (YoutubeID, Start_timestamp, End_timestamp, Caption), or a folder"
    " with such files and videos/",
    _internvid_files,
    _read_internvid,
    narrated=True,
)
