"""The part of a long stored video that some frames need, read without the rest: a video of an hour
is not fetched for three frames of it."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av

from allinone.data.decoding.codecs import codec_of
from allinone.data.decoding.frames import Timeline
from allinone.data.decoding.gop_trim import CONTAINERS, remux

BUFFER = 1 << 18
"""Bytes read at a time; storage over a network answers few large reads sooner than many small
ones."""


class ByteRange(io.RawIOBase):
    """A range of an open file as a file of its own. Shares no position with other readers."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        super().__init__()
        self._descriptor, self._offset, self._size, self._position = descriptor, offset, size, 0
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        content = os.pread(
            self._descriptor, left if size < 0 else min(size, left), self._offset + self._position
        )
        self._position += len(content)
        self.bytes_read += len(content)
        return content


@dataclass(frozen=True)
class Piece:
    """Consecutive frames of a stored video as a small video."""

    content: bytes
    first: int
    """Number in the stored video of its first frame, a keyframe."""
    frames: int
    timeline: Timeline


def read_piece(
    region: ByteRange, wanted: Sequence[int], frames: int, timeline: Timeline
) -> Piece | None:
    """The GOPs that hold the display-order numbers `wanted` of a video of `frames` frames, and
    those between them. None where the file's index does not lead there, or its packets are not one
    per frame: then the whole is to be read."""
    first = timeline.start(min(wanted))
    stop = min((key for key in timeline.keyframes if key > max(wanted)), default=frames)
    if first == 0 and stop == frames:
        return None
    try:
        with av.open(region, "r", buffer_size=BUFFER) as container:
            stream = container.streams.video[0]
            codec = codec_of(stream)
            if codec not in CONTAINERS:
                return None
            packets = _packets(container, stream, first, stop, timeline)
            if packets is None:
                return None
            content = remux(packets, stream, CONTAINERS[codec])
    except (
        av.error.FFmpegError,
        ValueError,
        IndexError,
    ):  # the whole file is judged by its own decoding
        return None
    times = (
        None
        if timeline.times is None
        else [time - timeline.times[first] for time in timeline.times[first:stop]]
    )
    keyframes = [key - first for key in timeline.keyframes if first <= key < stop]
    return Piece(content, first, stop - first, Timeline(keyframes, times, timeline.rate))


def _packets(
    container: Any, stream: Any, first: int, stop: int, timeline: Timeline
) -> list[Any] | None:
    """Packets of the frames first to stop - 1, each exactly once, or None."""
    base, begin = float(stream.time_base), stream.start_time or 0
    if first:
        container.seek(begin + timeline.seek_to(first, base), stream=stream)
    packets: list[Any] = []
    numbers: set[int] = set()
    for packet in container.demux(stream):
        if not packet.size or packet.pts is None:
            break
        number = timeline.number((packet.pts - begin) * base)
        if (
            not packets and number is not None and number < first
        ):  # at a variable rate a seek may end a GOP early
            continue
        if (
            number == stop
        ):  # a keyframe from which decoding may start: what is shown before it has come before it
            break
        if number is None or not first <= number < stop or number in numbers:
            return None
        packets.append(packet)
        numbers.add(number)
    return packets if len(numbers) == stop - first else None
