"""When a video begins and ends by its container's header, and whether the file is complete."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

ANNOUNCING = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf"})
"""FFmpeg's names of the containers whose header states the duration. For others FFmpeg estimates
it."""
AV_TIME_BASE = 1e6
"""FFmpeg's clock of a container's duration and start, ticks per second."""
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
"""Ids of the two top elements of a Matroska or WebM file (RFC 9559)."""
HEAD_BYTES = 4096
"""Bytes in which a Matroska file's segment begins."""


def start_s_of(container: Any) -> float:
    """When an opened file begins, seconds; 0 if unknown."""
    return max(0, container.start_time or 0) / AV_TIME_BASE


def end_s_of(container: Any) -> float:
    """When an opened file ends by its header, in the seconds of its frames' times; 0 if unknown."""
    duration, start = (container.duration or 0) / AV_TIME_BASE, start_s_of(container)
    # FFmpeg's and other writers of Matroska state the end, not the length: a file that starts at
    # 100,000 s is not longer than a day
    return (
        duration if "matroska" in container.format.name and duration > start else start + duration
    )


def announced_span(container: Any, stream: Any) -> tuple[float, float] | None:
    """(start, end) in seconds that the header of an opened file states for a video stream.

    None if it states none, or if the file is complete by its own size: then nothing is missing,
    and the last frame is shown for the rest of the time, as in recordings of a still screen.
    """
    ends_early = _ends_early(container)
    if ends_early is False:
        return None
    base = float(stream.time_base or 0)
    if stream.duration:
        start = (stream.start_time or 0) * base
        return start, start + stream.duration * base
    # Matroska and WebM only state the duration of the file, which may be that of the sound
    if container.duration and (ends_early or len(container.streams) == 1):
        return start_s_of(container), end_s_of(container)
    return None


def _ends_early(container: Any) -> bool | None:
    """Whether an opened Matroska or AVI file is shorter than its outer element; None if unknown."""
    file = container.file.file if container.file is not None else None
    if file is None:
        with Path(container.name).open("rb") as opened:
            head, size = opened.read(HEAD_BYTES), opened.seek(0, io.SEEK_END)
    else:
        position = file.tell()
        file.seek(0)
        head, size = file.read(HEAD_BYTES), file.seek(0, io.SEEK_END)
        file.seek(position)
    if head.startswith(b"RIFF"):
        announced = int.from_bytes(head[4:8], "little")
        return announced + 8 > size if announced else None
    if head.startswith(EBML):
        return _segment_ends_early(head, size)
    return None


def _segment_ends_early(head: bytes, size: int) -> bool | None:
    """Whether a Matroska file is shorter than its segment says (RFC 8794, section 6).

    Args:
        head: The file's first bytes.
        size: Bytes of the file.

    Returns:
        None if the segment's size is unknown, as while recording.
    """
    length, after = _ebml_size(head, len(EBML))
    position = after + (length or 0)
    if head[position : position + 4] != SEGMENT:
        return None
    length, after = _ebml_size(head, position + 4)
    return None if length is None else after + length > size


def _ebml_size(data: bytes, position: int) -> tuple[int | None, int]:
    """(size of an EBML element or None if unknown, position of its content)."""
    first = data[position] if position < len(data) else 0
    width = 9 - first.bit_length()  # leading zero bits of the first byte give the width
    value = int.from_bytes(data[position : position + width], "big") & (1 << 7 * width) - 1
    return (None if value == (1 << 7 * width) - 1 else value), position + width
