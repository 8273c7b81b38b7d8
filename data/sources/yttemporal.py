"""YT-Temporal-180M (MERLOT, Zellers et al., NeurIPS 2021): yttemporal180m_NNNof100.jsonl.gz.

One record per video: {"info": {"id": ...}, "subtitles": [{"word": ..., "time": seconds}, ...],
"denoised": [{"noisyasr": ..., "cleanasr": ...}, ...]}.

The words of the speech recogniser have times, the denoised text reads better: each clean word gets
the time of the noisy word that it is aligned with. The alignment is a minimal edit script over
words. rapidfuzz computes it exactly and in C++ (3,000 words: 2 ms); MERLOT's banded dynamic time
warping is approximate, and Python's difflib is slow (100 ms) and not minimal. It runs once, during
preparation, in the process that decodes the video.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from allinone.common.json_text import parse_json
from allinone.data.sources.media import MediaFiles, media_folder
from allinone.data.sources.reading import bounded_lines
from allinone.data.sources.schema import (
    CaptionLine,
    Narration,
    ReadOptions,
    SourceFormat,
    SourceRow,
    bad_row,
)

LONGEST_RECORD = 1 << 26
"""Bytes of a record; those of hour-long videos have some million."""
SHORTEST_S, LONGEST_S = 10.0, 15.0
"""Length of a clip. The original draws a new window of 10 to 15 s each time; here the speech is cut
once into windows of that length, so that an epoch contains each word once."""
WIDENED_S = 4.0
"""Minimum length of the remainder at the end (the original widens to this)."""
LAST_WORD_S = 1.0
"""Duration of a word that no other word follows."""


def noisy_words(subtitles: Any) -> list[tuple[str, float]]:
    """(word, time in seconds) of the speech recogniser, in order of time.

    Remains of HTML entities (words that begin with & or end with ;) are dropped, as in MERLOT.
    """
    words = []
    for item in subtitles if isinstance(subtitles, list) else ():
        if not isinstance(item, dict):
            continue
        word, time = item.get("word"), item.get("time")
        if not isinstance(word, str) or not isinstance(time, int | float):
            continue
        if not math.isfinite(time) or time < 0:
            continue
        word = word.strip()
        if word and not word.startswith("&") and not word.endswith(";"):
            words.append((word, float(time)))
    return sorted(words, key=lambda pair: pair[1])  # stable: words of one time keep their order


def clean_words(denoised: Any) -> list[str]:
    """Words of all cleanasr texts, repaired by ftfy as in MERLOT."""
    import ftfy

    items = denoised if isinstance(denoised, list) else []
    texts = (item.get("cleanasr") for item in items if isinstance(item, dict))
    return ftfy.fix_text(" ".join(text for text in texts if isinstance(text, str))).split()


def _normalised(word: str) -> str:
    return re.sub(r"[^\w]", "", word.lower()) or word


def align(noisy: list[tuple[str, float]], clean: list[str]) -> list[tuple[str, float]]:
    """Give every clean word the time of its partner in a minimal edit script.

    Words are compared without case and punctuation. Where a run of words replaces another one,
    times are spread evenly; an inserted word gets the time of the noisy word before it.

    Args:
        noisy: (word, time in seconds), in order of time.
        clean: Words of the denoised text.

    Returns:
        (clean word, time in seconds); empty if there are no noisy words.
    """
    from rapidfuzz.distance import Levenshtein

    if not noisy:
        return []
    timed: list[tuple[str, float]] = []
    steps = Levenshtein.opcodes(
        [_normalised(word) for word, _ in noisy], [_normalised(word) for word in clean]
    )
    # "going to" for "gonna" is an insertion and a replacement: adjacent edits form one run
    for equal, group in itertools.groupby(steps, key=lambda step: step.tag == "equal"):
        run = list(group)
        first = run[0].src_start
        many = run[-1].src_end - first
        texts = clean[run[0].dest_start : run[-1].dest_end]
        for k, text in enumerate(texts):
            partner = first + (k if equal else k * many // len(texts)) if many else first - 1
            timed.append((text, noisy[max(partner, 0)][1]))
    return timed


def speech_windows(words: list[tuple[str, float]]) -> list[CaptionLine]:
    """Cut timed words into consecutive clips of 10 to 15 s.

    Each clip ends after the last sentence that ends in that span, or else at the longest pause. A
    silence ends a clip early.
    """
    lines: list[CaptionLine] = []
    first = 0
    ends = [time for _, time in words[1:]] + [words[-1][1] + LAST_WORD_S] if words else []
    while first < len(words):
        start = words[first][1]
        last = first
        while last + 1 < len(words) and ends[last + 1] - start <= LONGEST_S:
            last += 1
        choices = [k for k in range(first, last + 1) if words[k][1] - start >= SHORTEST_S]
        if last + 1 < len(words) and choices:
            sentence = [k for k in choices if words[k][0][-1] in ".?!"]
            last = sentence[-1] if sentence else max(choices, key=lambda k: ends[k] - words[k][1])
        end = max(min(ends[last], words[last][1] + LAST_WORD_S), start + WIDENED_S)
        text = " ".join(word for word, _ in words[first : last + 1])
        lines.append(CaptionLine(start, end, text))
        first = last + 1
    return lines


def record_lines(narration: Narration) -> list[CaptionLine]:
    """Clips of one record; without a denoised text, the recogniser's words are used."""
    record = parse_json(narration.text or "{}")
    if not isinstance(record, dict):
        record = {}
    noisy, clean = noisy_words(record.get("subtitles")), clean_words(record.get("denoised"))
    if not noisy:
        return [CaptionLine(0.0, 0.0, "", "no_caption", "the record has no timed words")]
    return speech_windows(align(noisy, clean) if clean else noisy)


def _files(source: Path) -> list[Path]:
    pattern = "*.jsonl.gz"
    if source.is_file():
        return [source] if source.match(pattern) else []
    return sorted(source.glob(pattern))


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    """Read all shards; one that is cut short gives its complete records and a bad row."""
    videos = MediaFiles(media_folder(source, options.media, "videos"), "<id>.mp4, .webm or .mkv")
    for path in _files(source):
        number = 0
        try:
            with gzip.open(path, "rb") as file:
                for number, raw in bounded_lines(file, LONGEST_RECORD):
                    if raw is None:
                        place = f"{path.name}:{number}"
                        detail = f"line {number} has more than {LONGEST_RECORD:,} bytes"
                        yield bad_row("train", place, path, place, detail)
                        continue
                    if number == 1:  # json does not accept a byte order mark in text
                        raw = raw.removeprefix(codecs.BOM_UTF8)
                    yield _row(videos, path, number, raw)
        # gzip raises EOFError for a file that is cut short, zlib.error or OSError for damage
        except (EOFError, OSError, zlib.error) as error:
            detail = f"{path.name} cannot be read beyond line {number} ({error}); download it again"
            yield bad_row("train", f"{path.name}-end", path, path.name, detail, "list_cut_short")


class _Info(msgspec.Struct):
    id: str


class _Record(msgspec.Struct):
    """The only part of a record that reading the list needs.

    msgspec skips the rest without creating objects for a thousand words.
    """

    info: _Info


_RECORDS = msgspec.json.Decoder(_Record)


def _name(raw: bytes) -> Any:
    """info.id of a record.

    Every task of an array reads the complete list, and json alone would take hours for 6 M records.
    """
    try:
        return _RECORDS.decode(raw).info.id
    except (msgspec.MsgspecError, RecursionError):
        # msgspec is stricter than json (NaN): json decides, and its error is the one reported
        return parse_json(raw)["info"]["id"]


def _row(videos: MediaFiles, path: Path, number: int, raw: bytes) -> SourceRow:
    """Convert one line.

    Args:
        videos: Finds the video by its id.
        path: The list.
        number: Number of the line, from 1.
        raw: The line.
    """
    place = f"{path.name}:{number}"
    try:
        # surrogatepass: clean_text replaces lone surrogates later, and the video is not lost
        name, text = _name(raw), raw.decode("utf-8", "surrogatepass")
    except (ValueError, KeyError, TypeError) as error:
        detail = f"line {number} is not a record with info.id ({type(error).__name__}: {error})"
        return bad_row("train", place, path, place, detail)
    if not isinstance(name, str):
        return bad_row("train", place, path, place, f"info.id is {name!r}, not a text")
    return videos.row("train", name, Narration(record_lines, path, text))


FORMAT = SourceFormat(
    "yttemporal",
    "a folder with yttemporal180m_*.jsonl.gz and videos/, or one such file",
    _files,
    _read,
    official_totals={"videos": 6_000_000},  # MERLOT's paper; its 180 M segments are not these
    narrated=True,
)
