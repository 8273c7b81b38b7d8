"""The work of a preparing process on one file: read it, decode it completely, cut it into windows.

Such a process may be killed at any moment.
"""

from __future__ import annotations

import bisect
import itertools
import math
import stat
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import content_hash
from allinone.common.errors import OF_THE_NAME
from allinone.data.decoding.codecs import MAGIC_BYTES, image_extension, video_kind
from allinone.data.decoding.images import UNREADABLE_IMAGE, is_image
from allinone.data.prepare.encode import ClipEncoder, Clock, Encoding, encode_image
from allinone.data.prepare.pool import answer_tasks
from allinone.data.prepare.probe import (
    CONSTANT_RATE_TOLERANCE,
    Limits,
    ProbeError,
    probe,
    probe_packets,
)
from allinone.data.sources.schema import (
    LONGEST_CAPTION,
    CaptionLine,
    Narration,
    clean_text,
    has_text,
)

MAX_MEMBER_BYTES = 8 << 30
"""Exclusive upper limit for the size of a member of a USTAR archive: 11 octal digits, 8**11."""


TS_SYNC = b"\x47"
"""First byte of every packet of an MPEG transport stream (ISO 13818-1), in .m2ts files after four
bytes of time."""
PAUSE_S = 1.0
"""Seconds from one frame to the next that do not count for the frame rate, if they are also 20
times as long as usual."""
SPECIAL = {
    "d": "a folder",
    "p": "a pipe",
    "s": "a socket",
    "c": "a device",
    "b": "a device",
}
"""First letter of `ls -l` → what is not a file."""


@dataclass(frozen=True)
class ClipTask:
    """One file to examine."""

    paths: tuple[Path, ...]
    """Candidates; the first that exists is used."""
    offset: int
    """First byte of the file in `paths`."""
    size: int | None
    """Bytes; None: to the end."""
    extension: str
    """Of the name, lower case; empty if it says nothing: a video then counts as mp4."""
    narration: Narration | None = None
    encoding: Encoding | None = None
    target: Path | None = None
    """Where to write a re-encoded file until it is added to the tar."""


@dataclass(frozen=True)
class CaptionWindow:
    """One caption of a long video and its window, or why it is skipped."""

    caption: str
    first: int = 0
    """Display-order number of the window's first frame."""
    last: int = 0
    """The same of its last frame."""
    reason: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class ProbedFile:
    """A good file."""

    path: Path
    offset: int
    size: int | None
    extension: str
    columns: dict[str, Any]
    """Its columns of the index's table of stored files."""
    hash: str
    """Of the content that the columns describe (atomic_io.content_hash)."""
    windows: tuple[CaptionWindow, ...] = ()
    """Of a long video; empty for short clips and images."""


def frames_between(
    start_s: float, end_s: float, frames: int, rate: float, times: Sequence[float] | None
) -> tuple[int, int] | None:
    """Find the frames that are on screen in [start_s, end_s).

    Args:
        start_s: Seconds from the first frame.
        end_s: Seconds from the first frame.
        frames: Number of frames of the video.
        rate: Frames per second.
        times: Time of every frame in seconds; None at a constant rate.

    Returns:
        Display-order numbers of the first and the last frame; None beyond the end of the video.
    """
    # 1e-6 s: a caption's decimal seconds and a frame's ticks x time base may differ in their last
    # digits, which must not move the boundary to the neighbouring frame
    if times is not None:
        # the last frame has no successor: it counts as long as the average one
        duration = times[-1] + (times[-1] - times[0]) / max(frames - 1, 1)
        first = bisect.bisect_right(times, start_s + 1e-6) - 1
        last = bisect.bisect_left(times, end_s - 1e-6) - 1
    else:
        duration = frames / rate if rate else 0.0
        # at a constant rate, true times deviate from the computed ones by up to this tolerance
        near = CONSTANT_RATE_TOLERANCE
        first = math.floor(start_s * rate + near)
        last = math.ceil(end_s * rate - near) - 1
    if start_s >= duration or first >= frames:
        return None
    first = max(first, 0)
    return first, max(first, min(last, frames - 1))


def _window(line: CaptionLine, columns: dict[str, Any]) -> CaptionWindow:
    """A timed caption as a window of frames; one that does not fit the video has a reason."""
    text = clean_text(line.text)
    if len(text) > LONGEST_CAPTION:
        detail = f"a caption of {len(text):,} characters"
        return CaptionWindow("", reason="no_caption", detail=detail)
    if line.reason is not None:
        return CaptionWindow(text, reason=line.reason, detail=line.detail)
    if not has_text(text):
        return CaptionWindow("", reason="no_caption", detail=f"no text at {line.start_s:g} s")
    found = frames_between(
        line.start_s,
        line.end_s,
        columns["frames"],
        columns["frame_rate"],
        columns["frame_times"],
    )
    if found is None:
        detail = f"from {line.start_s:g} s on, the video ends at {columns['duration_s']:.1f} s"
        return CaptionWindow(text, reason="beyond_end", detail=detail)
    return CaptionWindow(text, *found)


def examine(task: ClipTask, limits: Limits) -> ProbedFile:
    """Decode one file completely, re-encode it if the task says so.

    Args:
        task: The file, and what to do with it.
        limits: Requirements that it must meet.

    Returns:
        The good file: the source's own, or the re-encoded one at `task.target`.

    Raises:
        ProbeError: The file is bad.
        OSError: It cannot be read, or the re-encoded file cannot be written.
    """
    path = find_file(task.paths)
    with path.open("rb") as file:
        file.seek(task.offset)
        content = file.read() if task.size is None else file.read(task.size)
    if task.size is not None and len(content) < task.size:
        # some formats, such as MPEG-TS and WebM, decode without their end
        raise ProbeError(
            "truncated", f"{path} ends after {len(content):,} of the {task.size:,} bytes"
        )
    lines = _lines(task.narration)
    extension = image_extension(content, task.extension) or "mp4"
    made: bytes | None = None
    if task.encoding is None or task.target is None:
        columns = probe(content, extension, limits)
    else:
        columns, made = reencode(content, extension, limits, task.encoding)
        extension = columns["container"]
    windows = tuple(_window(line, columns) for line in lines)
    _require_usable(windows)
    stored = len(made or content)
    if stored >= MAX_MEMBER_BYTES:
        raise ProbeError(
            "too_large",
            f"{stored:,} bytes, a member of a tar has less than {MAX_MEMBER_BYTES:,}; re-encode it"
            " (--short-side)",
        )
    digest = content_hash(made or content)
    if made is None or task.target is None:
        return ProbedFile(path, task.offset, task.size, extension, columns, digest, windows)
    # Not fsynced: the bytes are copied into the tar, which is, and a killed run makes them again.
    task.target.write_bytes(made)
    return ProbedFile(task.target, 0, None, extension, columns, digest, windows)


def find_file(paths: Sequence[Path]) -> Path:
    """Return the first of some paths that is a file.

    Paths are looked for here, in parallel: on network storage every look is a round trip, and the
    reader of a list of millions of rows is one process.

    Raises:
        ProbeError: The first path is something else, such as a folder or a socket.
        OSError: None of them is a file; the error of the first one.
    """
    first: Exception | None = None
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if error.errno not in OF_THE_NAME:
                raise
            first = first or error
            continue
        if stat.S_ISREG(mode):
            return path
        # not opened: a pipe would wait for a writer, and /dev/zero never ends
        kind = stat.filemode(mode)[0]
        detail = f"{path} is {SPECIAL.get(kind, 'not a file')}"
        first = first or ProbeError("unreadable", detail)
    raise first or FileNotFoundError(f"no file {paths[0]}")


def _lines(narration: Narration | None) -> list[CaptionLine]:
    """Caption lines; raises ProbeError if none can be used, before hours of video are decoded."""
    if narration is None:
        return []
    try:
        lines = narration.lines(narration)
    except ValueError as error:
        detail = f"the captions cannot be read ({str(error)[:200]})"
        raise ProbeError("bad_captions", detail) from error
    if not lines:
        raise ProbeError("no_caption", "the video has no caption lines")
    _require_usable(lines)
    return lines


def _require_usable(lines: Sequence[CaptionLine | CaptionWindow]) -> None:
    """ProbeError if there are lines and none of them can be used."""
    if lines and all(line.reason for line in lines):
        raise ProbeError(
            str(lines[0].reason),
            f"none of {len(lines)} caption lines can be used, the first: {lines[0].detail}",
        )


def reencode(
    content: bytes, extension: str, limits: Limits, encoding: Encoding
) -> tuple[dict[str, Any], bytes | None]:
    """Re-encode a file.

    The source must meet the same requirements as without encoding; the result is decoded again.

    Args:
        content: The source's file.
        extension: Its file name extension, without the dot.
        limits: Requirements that it must meet.
        encoding: How to encode.

    Returns:
        (columns of the index, bytes); the bytes are None if the source's own are kept.

    Raises:
        ProbeError: The source is bad, or the result differs from it.
    """
    if is_image(content, extension):
        probe(content, extension, limits)
        try:
            image = encode_image(content, encoding.short_side)
        except UNREADABLE_IMAGE as error:
            raise ProbeError("undecodable", f"{type(error).__name__}: {error}") from error
        return probe(image, "jpg", limits), None if image == content else image
    encoder = ClipEncoder(encoding, *_clock(content, extension, limits))
    # one decoding both checks the source and feeds the encoder
    probe(content, extension, limits, encoder.add)
    video = encoder.finish()
    # the number of frames may fall below --min-frames at the average rate of a variable one
    columns = probe(video, encoding.extension, replace(limits, min_frames=1))
    if columns["frames"] != encoder.frames:
        raise ProbeError("encoding_failed", f"{encoder.frames} frames became {columns['frames']}")
    return columns, video


def _clock(content: bytes, extension: str, limits: Limits) -> tuple[float, Clock]:
    """Find the constant rate at which a file is re-encoded.

    Args:
        content: The source's file.
        extension: Its file name extension, without the dot.
        limits: Requirements that it must meet.

    Returns:
        (frames per second, the container's clock).

    Raises:
        ProbeError: The file is bad, or its pauses are longer than `max_duration_s`.
    """
    try:
        columns = probe_packets(content, extension, limits)
    except ProbeError:  # decoding gives the reason
        columns = None
    # packets are not frames: decode; the encoder scales frames whose size changes
    columns = columns or probe(content, extension, limits, lambda frame: None)
    clock: Clock = "exact"
    if video_kind(content[:MAGIC_BYTES]) in ("avi", "mpg"):
        clock = "none"
    elif content[:1] == TS_SYNC or content[4:5] == TS_SYNC:
        clock = "joinable"
    times = columns["frame_times"]
    # 25 for files without times, to which `probe` gives 25 frames per second too
    rate = float(columns["frame_rate"]) or 25.0
    if times is None:
        return rate, clock
    rate, pauses_s = steady_rate(times, rate)
    seconds = len(times) / rate + (0.0 if clock == "joinable" else pauses_s)
    if seconds > limits.max_duration_s:
        raise ProbeError(
            "too_long",
            f"{seconds:.0f} s with the pauses between its frames, more than --max-duration-s"
            f" {limits.max_duration_s:.0f}",
        )
    return rate, clock


def steady_rate(times: Sequence[float], average: float) -> tuple[float, float]:
    """Average frame rate without pauses and jumps of the clock.

    A clock jumps where recordings were joined or a camera was started again. One frame that is far
    away would otherwise lower the average so much that nearly all frames are dropped.

    Args:
        times: Seconds of all frames.
        average: Average rate of all of them, which is returned if the clock does not jump.

    Returns:
        (frames per second, seconds of the pauses).
    """
    steps = [after - before for before, after in itertools.pairwise(times)]
    usual = statistics.median([step for step in steps if step > 0] or [1 / average])
    longest = max(PAUSE_S, 20 * usual)
    steady = [step for step in steps if -2 * usual < step <= longest]
    if len(steady) == len(steps) or sum(steady) <= 0:
        return average, 0.0
    return len(steady) / sum(steady), sum(step for step in steps if step > longest)


def worker(pipe: Connection, limits: Limits) -> None:
    """Main function of a process of ProbePool."""
    answer_tasks(pipe, partial(_answer, limits=limits))


def _answer(task: ClipTask, limits: Limits) -> tuple[str | None, ProbedFile | OSError | str]:
    """(None, the good file), (the reason why it is bad, detail), or (None, the storage's error)."""
    from av.error import FFmpegError

    try:
        return None, examine(task, limits)
    except FileNotFoundError:
        return "missing", f"no file {task.paths[0]}"
    except OSError as error:
        # other OSErrors are the storage's fault: the pool raises them, the clip may be good
        own = isinstance(error, FFmpegError) or error.errno in OF_THE_NAME
        return ("unreadable", str(error)) if own else (None, error)
    except ProbeError as error:
        return error.reason, error.detail
