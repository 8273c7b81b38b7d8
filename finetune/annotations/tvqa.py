"""TVQA (Lei et al. 2018): five options per question.

Subtitles and the annotated time span are optional.

No videos are released: the media are folders of frames at 3 per second,
`<show>_frames/<vid_name>/00001.jpg`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allinone.finetune.annotations.common import (
    TRAIN_PARTS,
    Builder,
    RowError,
    check_split,
    find,
    index_of,
    json_lines,
    text_of,
    train_part,
)
from allinone.finetune.annotations.schema import AnnotationError, ChoiceItem, Media, Split

SPLITS = (*TRAIN_PARTS, "val", "test")
FILES = {"train": "tvqa_train.jsonl", "val": "tvqa_val.jsonl", "test": "tvqa_test_public.jsonl"}
SIZES = {"train": 122_039, "val": 15_253, "test": 7_623}
FRAMES_PER_SECOND = 3.0
SHOWS = ("castle", "friends", "grey", "house", "met")
"""Prefixes of `vid_name`. The Big Bang Theory has none: its names start with the season."""
FALLBACK_SPAN_S = (10.0, 30.0)
"""Span that TVQA's own code uses if `ts` is nan, seconds."""
_SOURCE = "tvqa_qa_release.tar.gz of TVQA's site (tvqa.cs.unc.edu)"
_SUBTITLES_SOURCE = (
    "tvqa_subtitles.tar.gz of TVQA's site, unpacked, or tvqa_preprocessed_subtitles.jsonl"
)


@dataclass(frozen=True)
class SubtitleLine:
    """One line of subtitles, times in seconds."""

    start_s: float
    end_s: float
    text: str


def load(folder: Path, split: str, *, subtitles: bool = False, timestamps: bool = True) -> Split:
    """Read one split.

    The four combinations of the options are four protocols; state which of them a number uses. The
    labels of test are hidden (server).

    Args:
        folder: Holds the files.
        split: One of SPLITS.
        subtitles: Put the subtitles into `context`.
        timestamps: Show the annotated span only, with the subtitles that overlap it.
    """
    check_split(split, SPLITS, "TVQA")
    half = split if split in FILES else "train"
    builder = Builder(split)
    path = builder.use(find(folder, [FILES[half], f"tvqa_qa_release/{FILES[half]}"], _SOURCE))
    records = list(json_lines(path, builder))
    lines = _Subtitles(folder, builder) if subtitles else None
    make = _item(lines, timestamps=timestamps, labelled=half != "test")
    builder.read(records, make)
    builder.official("questions", len(builder.items), SIZES[half])
    without = sum(
        math.isnan(sum(_span(record)))
        for _, record in records
        if "ts" in record and _readable(record)
    )
    if timestamps and without:
        builder.note(
            f"the time span is nan: {without:,}, replaced by 10 to 30 s as TVQA's own code does"
        )
    if lines and lines.missing:
        builder.note(
            f"clips without subtitles: {len(lines.missing):,}"
            f" ({', '.join(sorted(lines.missing)[:5])})"
        )
    if half == "train":
        return builder.split(train_part(list(builder.items.values()), split))
    return builder.split()


def _item(
    lines: _Subtitles | None, *, timestamps: bool, labelled: bool
) -> Callable[[dict[str, Any]], ChoiceItem]:
    def make(record: dict[str, Any]) -> ChoiceItem:
        name = text_of(record, "vid_name")
        start, end = _span(record) if timestamps else (None, None)
        # showing the complete clip instead would be another protocol
        if start is not None and end is not None and math.isnan(start + end):
            start, end = FALLBACK_SPAN_S
        return ChoiceItem(
            text_of(record, "qid"),
            Media(name, f"{show(name)}_frames/{name}", start, end),
            text_of(record, "q"),
            tuple(text_of(record, f"a{number}") for number in range(5)),
            index_of(record, "answer_idx", 5) if labelled else None,
            lines.context(name, start, end) if lines else "",
        )

    return make


def show(vid_name: str) -> str:
    """Return the show's short name, which the folder of its frames starts with.

    friends_s01e02_seg02_clip_05 → friends, s05e02_seg02_clip_12 → bbt.
    """
    # the folder of The Big Bang Theory is bbt_frames, but its names have no prefix
    prefix = vid_name.partition("_")[0]
    if prefix in SHOWS:
        return prefix
    if re.fullmatch(r"s\d\de\d\d", prefix):
        return "bbt"
    raise RowError("'vid_name' does not start with a known show")


def _span(record: dict[str, Any]) -> tuple[float, float]:
    """Read `ts`, "1.21-8.49" in seconds, either of which may be nan.

    Raises:
        RowError: It has another form, or ends before it starts.
    """
    # 3 of the 7,623 spans of test_public are nan
    match = re.fullmatch(r"([\d.]+|nan)-([\d.]+|nan)", text_of(record, "ts"))
    if match is None:
        raise RowError("'ts' is not start-end in seconds")
    try:
        start, end = float(match[1]), float(match[2])
    except ValueError:
        raise RowError("'ts' is not start-end in seconds") from None
    # a comparison with nan is False: such a span passes, and `_item` replaces it
    if end < start:
        raise RowError("'ts' ends before it starts")
    return start, end


def _readable(record: dict[str, Any]) -> bool:
    try:
        _span(record)
    except RowError:
        return False
    return True


class _Subtitles:
    """Subtitles of all clips: one .srt or one JSON line per clip. Clips without any are counted."""

    def __init__(self, folder: Path, builder: Builder) -> None:
        self.missing: set[str] = set()
        self._lines: dict[str, Sequence[SubtitleLine]] = {}
        self._folder: Path | None = next(
            (path for path in (folder / "tvqa_subtitles", folder) if any(path.glob("*.srt"))), None
        )
        if self._folder:
            builder.files.append(str(self._folder))
            return
        name = "tvqa_preprocessed_subtitles.jsonl"
        path = builder.use(find(folder, [name, f"tvqa_subtitles/{name}"], _SUBTITLES_SOURCE))
        for _, record in json_lines(path, builder):
            try:
                self._lines[record["vid_name"]] = [
                    SubtitleLine(line["start"], line["end"], line["text"]) for line in record["sub"]
                ]
            except (KeyError, TypeError) as error:
                raise AnnotationError(
                    f'{path}: expected {{"vid_name": …, "sub": [{{"start", "end", "text"}}]}} per'
                    f" line ({error!r})"
                ) from error

    def context(self, name: str, start_s: float | None, end_s: float | None) -> str:
        """The clip's lines that overlap the span, joined by spaces."""
        # one file per clip, 21,793 in all: read when a question needs it
        if name not in self._lines and self._folder and (self._folder / f"{name}.srt").is_file():
            self._lines[name] = parse_srt(
                (self._folder / f"{name}.srt").read_text(encoding="utf-8-sig", errors="replace")
            )
        if name not in self._lines:
            self.missing.add(name)
        lines = self._lines.get(name, ())
        begin = -math.inf if start_s is None else start_s
        stop = math.inf if end_s is None else end_s
        # closed intervals: a line that only touches the span counts
        return " ".join(line.text for line in lines if line.start_s <= stop and line.end_s >= begin)


def parse_srt(text: str) -> list[SubtitleLine]:
    """Parse SubRip; blocks without a time are ignored.

    A block is a number, `00:00:01,210 --> 00:00:08,490` and text lines; blank lines separate
    blocks.
    """
    lines = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        match = re.search(
            r"(\d+):(\d+):(\d+)[,.](\d+)\s*-->\s*(\d+):(\d+):(\d+)[,.](\d+)[^\n]*\n?(.*)",
            block,
            re.DOTALL,
        )
        if match:
            numbers = [int(match[group]) for group in range(1, 9)]
            spoken = " ".join(match[9].split())
            if spoken:
                lines.append(SubtitleLine(_seconds(numbers[:4]), _seconds(numbers[4:]), spoken))
    return lines


def _seconds(parts: Sequence[int]) -> float:
    hours, minutes, seconds, milliseconds = parts
    return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000
