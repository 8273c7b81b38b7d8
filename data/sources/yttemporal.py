"""YT-Temporal-180M (MERLOT, Zellers et al., NeurIPS 2021): yttemporal180m_NNNof100.jsonl.gz, one
record per video: {"info": {"id": ...}, "subtitles": [{"word": ..., "time": seconds}, ...],
"denoised": [{"noisyasr": ..., "cleanasr": ...}, ...]}.

The recogniser's words carry times, the denoised text reads better; each clean word takes the time
of the noisy word it is aligned with. Alignment is rapidfuzz's: a minimal edit script over words,
exact where MERLOT's band of a dynamic time warp is not, in C++ (3,000 words: 2 ms; Python's difflib
100 ms, and its scripts are not minimal). It runs once, while preparing, in the process that decodes
the video.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from allinone.data.sources.base import (
    Format,
    Line,
    MediaFiles,
    Narration,
    ReadOptions,
    SourceRow,
    bad,
)

SHORTEST_S, LONGEST_S = 10.0, 15.0
"""Length of a clip. The original draws a window of 10 to 15 s anew each time; here the speech is
cut once into windows of that length, so that an epoch says each word once."""
WIDENED_S = 4.0
"""Least length of what is left at the end (the original widens to this)."""
LAST_WORD_S = 1.0
"""Time given to a word that no other follows."""


def noisy_words(subtitles: Any) -> list[tuple[str, float]]:
    """(word, time in seconds) in order of time, without the remains of HTML entities (words that
    begin with & or end with ;), as MERLOT drops them."""
    words = []
    for item in subtitles if isinstance(subtitles, list) else ():
        word, time = (
            (item.get("word"), item.get("time")) if isinstance(item, dict) else (None, None)
        )
        if (
            not isinstance(word, str)
            or not isinstance(time, int | float)
            or not math.isfinite(time)
            or time < 0
        ):
            continue
        word = word.strip()
        if word and not word.startswith("&") and not word.endswith(";"):
            words.append((word, float(time)))
    return sorted(words, key=lambda pair: pair[1])


def clean_words(denoised: Any) -> list[str]:
    """Words of all cleanasr texts, mended by ftfy as MERLOT does."""
    import ftfy

    parts = (
        [item.get("cleanasr") for item in denoised if isinstance(item, dict)]
        if isinstance(denoised, list)
        else []
    )
    return ftfy.fix_text(" ".join(part for part in parts if isinstance(part, str))).split()


def _bare(word: str) -> str:
    return re.sub(r"[^\w]", "", word.lower()) or word


def align(noisy: list[tuple[str, float]], clean: list[str]) -> list[tuple[str, float]]:
    """(clean word, time in seconds): of its partner in a minimal edit script over words without
    case and punctuation. Where a run of words replaces another one, times are spread evenly; an
    inserted word takes the time of the noisy word before it.
    """
    from rapidfuzz.distance import Levenshtein

    if not noisy:
        return []
    timed: list[tuple[str, float]] = []
    steps = Levenshtein.opcodes([_bare(word) for word, _ in noisy], [_bare(word) for word in clean])
    for equal, group in itertools.groupby(steps, key=lambda step: step.tag == "equal"):
        run = list(
            group
            # "going to" for "gonna" comes as an insertion and a replacement: together they are one
            # run
        )
        first, begin = run[0].src_start, run[0].dest_start
        many, texts = run[-1].src_end - first, clean[begin : run[-1].dest_end]
        for k, text in enumerate(texts):
            partner = first + (k if equal else k * many // len(texts)) if many else first - 1
            timed.append((text, noisy[max(partner, 0)][1]))
    return timed


def windows(words: list[tuple[str, float]]) -> list[Line]:
    """Consecutive clips of 10 to 15 s: each ends after a sentence where one ends in that span, else
    at its longest pause. A silence ends one early."""
    lines: list[Line] = []
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
        end = min(ends[last], words[last][1] + LAST_WORD_S)
        lines.append(
            Line(
                start,
                max(end, start + WIDENED_S),
                " ".join(word for word, _ in words[first : last + 1]),
            )
        )
        first = last + 1
    return lines


def record_lines(narration: Narration) -> list[Line]:
    """Clips of one record. Without a denoised text the recogniser's words are used."""
    record = json.loads(narration.text or "{}")
    noisy, clean = noisy_words(record.get("subtitles")), clean_words(record.get("denoised"))
    if not noisy:
        return [Line(0.0, 0.0, "", "no_caption", "the record has no timed words")]
    return windows(align(noisy, clean) if clean else noisy)


def _files(source: Path) -> list[Path]:
    pattern = "*.jsonl.gz"
    if source.is_file():
        return [source] if source.match(pattern) else []
    return sorted(source.glob(pattern))


def _read(source: Path, options: ReadOptions) -> Iterator[SourceRow]:
    """A shard that is cut short gives what it holds, and one bad row that names it."""
    base = source.parent if source.is_file() else source
    videos = MediaFiles(options.media or base / "videos", "<id>.mp4, .webm or .mkv")
    for path in _files(source):
        number = 0
        try:
            with gzip.open(path, "rb") as file:
                for number, raw in enumerate(file, start=1):
                    yield _row(videos, path, number, raw)
        except (EOFError, OSError, zlib.error) as error:
            detail = f"{path.name} cannot be read beyond line {number} ({error}); download it again"
            yield bad("train", f"{path.name}-end", path, path.name, detail, "list_cut_short")


class _Info(msgspec.Struct):
    id: str


class _Record(msgspec.Struct):
    """All of a record that reading the list needs; msgspec skips the rest without making objects of
    a thousand words."""

    info: _Info


_RECORDS = msgspec.json.Decoder(_Record)


def _name(raw: bytes) -> Any:
    """info.id of a record. Every part of an array reads the whole list: json alone takes hours for
    6 M records."""
    try:
        return _RECORDS.decode(raw).info.id
    except (
        msgspec.MsgspecError
    ):  # it is stricter than json (NaN), which has the last word, and says what is wrong
        return json.loads(raw)["info"]["id"]


def _row(videos: MediaFiles, path: Path, number: int, raw: bytes) -> SourceRow:
    place = f"{path.name}:{number}"
    try:
        name, text = _name(raw), raw.decode("utf-8", "surrogatepass")
    except (ValueError, KeyError, TypeError) as error:
        return bad(
            "train",
            place,
            path,
            place,
            f"line {number} is no record with info.id ({type(error).__name__}: {error})",
        )
    if not isinstance(name, str):
        return bad("train", place, path, place, f"info.id is {name!r}, not a text")
    return videos.row("train", name, Narration(record_lines, path, text))


FORMAT = Format(
    "yttemporal",
    "a folder with yttemporal180m_*.jsonl.gz beside videos/, or one such file",
    _files,
    _read,
    whole={"videos": 6_000_000},  # MERLOT's paper; its 180 M segments are not these windows
    narrated=True,
)
