"""What a preparing process does with one file: read, decode to the end, cut its captions into
windows. It can be killed at any moment."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from allinone.common.errors import LASTING
from allinone.common.processes import live_and_die_with_parent
from allinone.data.decoding.codecs import IMAGES
from allinone.data.prepare.encode import ClipEncoder, Encoding, encode_image
from allinone.data.prepare.probe import (
    CONSTANT_RATE_TOLERANCE,
    UNREADABLE_IMAGE,
    Limits,
    ProbeError,
    probe,
    probe_packets,
)
from allinone.data.sources import Line, Narration

MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp", b"GIF8": "gif"}
"""First bytes of image files. Downloaders name files by what they hoped for."""


@dataclass(frozen=True)
class ClipTask:
    """One file to be examined."""

    paths: tuple[Path, ...]
    """Where it may lie; the first that exists counts."""
    offset: int
    size: int | None
    extension: str
    narration: Narration | None = None
    encoding: Encoding | None = None
    target: Path | None = None
    """Where an encoded file is left until the tar takes it."""


@dataclass(frozen=True)
class Cut:
    """One caption of a long video: display-order numbers of its first and last frame, or why it is
    skipped."""

    caption: str
    first: int = 0
    last: int = 0
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Found:
    """A good file."""

    path: Path
    offset: int
    size: int | None
    extension: str
    columns: dict[str, Any]
    """Of the index's table of stored files."""
    cuts: tuple[Cut, ...] = ()


def frames_between(
    start_s: float, end_s: float, frames: int, rate: float, times: Sequence[float] | None
) -> tuple[int, int] | None:
    """(first, last) display-order number of the frames that are on screen in [start_s, end_s),
    seconds from the first frame; None beyond the end."""
    if times is not None:
        duration = times[-1] + (times[-1] - times[0]) / max(frames - 1, 1)
        first = bisect.bisect_right(times, start_s + 1e-6) - 1
        last = bisect.bisect_left(times, end_s - 1e-6) - 1
    else:
        duration = frames / rate if rate else 0.0
        near = CONSTANT_RATE_TOLERANCE
        first, last = math.floor(start_s * rate + near), math.ceil(end_s * rate - near) - 1
    if start_s >= duration or first >= frames:
        return None
    first = max(first, 0)
    return first, max(first, min(last, frames - 1))


def cut(lines: Sequence[Line], columns: dict[str, Any]) -> tuple[Cut, ...]:
    """Timed captions as windows of frames; what does not fit the video keeps its reason."""
    cuts = []
    for line in lines:
        text = " ".join(line.text.encode("utf-8", "replace").decode().replace("\0", "?").split())
        if line.reason is not None:
            cuts.append(Cut(text, reason=line.reason, detail=line.detail))
            continue
        if not text:
            cuts.append(Cut("", reason="no_caption", detail=f"no text at {line.start_s:g} s"))
            continue
        found = frames_between(
            line.start_s,
            line.end_s,
            columns["frames"],
            columns["frame_rate"],
            columns["frame_times"],
        )
        if found is None:
            detail = f"from {line.start_s:g} s on, the video ends at {columns['duration_s']:.1f} s"
            cuts.append(Cut(text, reason="beyond_end", detail=detail))
        else:
            cuts.append(Cut(text, *found))
    return tuple(cuts)


LARGEST = 8 << 30
"""Bytes that a member of a tar (USTAR) has less than."""


def examine(task: ClipTask, limits: Limits) -> Found:
    """Decode one file to its end; raises ProbeError for a bad one, OSError where it cannot be
    read."""
    path = next((path for path in task.paths if path.is_file()), task.paths[0])
    with path.open("rb") as file:
        file.seek(task.offset)
        content = file.read() if task.size is None else file.read(task.size)
    lines = _lines(task.narration)
    extension = task.extension
    if extension in IMAGES:
        extension = next(
            (kind for magic, kind in MAGIC.items() if content.startswith(magic)), extension
        )
    if task.encoding is None or task.target is None:
        columns, made = probe(content, extension, limits), None
    else:
        columns, made = encoded(content, extension, limits, task.encoding)
        extension = columns["container"]
    cuts = cut(lines, columns)
    if cuts and all(found.reason for found in cuts):
        raise ProbeError(
            str(cuts[0].reason),
            f"none of {len(cuts)} caption lines can be used, the first: {cuts[0].detail}",
        )
    if len(made or content) >= LARGEST:
        raise ProbeError(
            "too_large",
            f"{len(made or content):,} bytes, a member of a tar has less than {LARGEST:,}; encode"
            " it (--short-side)",
        )
    if made is None or task.target is None:
        return Found(path, task.offset, task.size, extension, columns, cuts)
    task.target.write_bytes(made)
    return Found(task.target, 0, None, extension, columns, cuts)


def _lines(narration: Narration | None) -> list[Line]:
    """Caption lines; ProbeError where none can be used, before hours go into the video."""
    if narration is None:
        return []
    lines = narration.lines(narration)
    if not lines:
        raise ProbeError("no_caption", "the video has no caption lines")
    if all(line.reason for line in lines):
        raise ProbeError(
            str(lines[0].reason),
            f"none of {len(lines)} caption lines can be used, the first: {lines[0].detail}",
        )
    return lines


def encoded(
    content: bytes, extension: str, limits: Limits, encoding: Encoding
) -> tuple[dict[str, Any], bytes | None]:
    """Columns of the file encoded anew, and its bytes, None where they are the source's own. The
    source is judged as without encoding; the result is decoded once more."""
    if extension in IMAGES:
        probe(content, extension, limits)
        try:
            image = encode_image(content, encoding.short_side)
        except UNREADABLE_IMAGE as error:
            raise ProbeError("undecodable", f"{type(error).__name__}: {error}") from error
        return probe(image, "jpg", limits), None if image == content else image
    encoder = ClipEncoder(encoding, _rate(content, extension, limits))
    probe(content, extension, limits, encoder.add)
    video = encoder.finish()
    after = probe(video, encoding.extension, replace(limits, min_frames=1))
    if after["frames"] != encoder.frames:
        raise ProbeError("encoding_failed", f"{encoder.frames} frames became {after['frames']}")
    return after, video


def _rate(content: bytes, extension: str, limits: Limits) -> float:
    """Frames per second on average: by the times of the packets, or, where those do not tell the
    frames, by decoding once more."""
    try:
        columns = probe_packets(content, extension, limits)
    except ProbeError:  # decoding judges
        columns = None
    return float((columns or probe(content, extension, limits))["frame_rate"]) or 25.0


def worker(pipe: Connection, limits: Limits) -> None:
    """Main function of a process of data.probe.ProbePool."""
    import av

    live_and_die_with_parent()
    av.logging.set_level(av.logging.PANIC)
    while (task := pipe.recv()) is not None:
        try:
            pipe.send((None, examine(task, limits)))
        except FileNotFoundError:
            pipe.send(("missing", f"no file {task.paths[0]}"))
        except OSError as error:
            lasting = isinstance(error, av.error.FFmpegError) or error.errno in LASTING
            pipe.send(("unreadable", str(error)) if lasting else (None, error))
        except ProbeError as error:
            pipe.send((error.reason, error.detail))
