"""Reads the segment of a long stored video that some frames need.

An hour of video is not fetched from storage for three frames of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from allinone.data.decoding.codecs import (
    codec_of,
    idr_packet,
    seek_to_start,
    times_are_of_frames,
    video_stream,
)
from allinone.data.decoding.containers import ByteRange, open_media
from allinone.data.decoding.frames import DAMAGE, Timeline
from allinone.data.decoding.gop_trim import CONTAINERS, TrimmedStream, remux, trim

__all__ = ["ByteRange", "VideoSegment", "load_segment", "read_segment"]

BUFFER = 1 << 18
"""Bytes per read; network storage answers few large reads faster than many small ones."""


@dataclass(frozen=True)
class VideoSegment:
    """Consecutive frames of a stored video as a video of their own."""

    content: bytes
    first: int
    """Number in the stored video of the segment's first frame, a keyframe."""
    frames: int
    """Number of frames."""
    timeline: Timeline

    def numbers(self, wanted: Sequence[int]) -> list[int]:
        """Convert frame numbers of the stored video into frame numbers of this segment."""
        return [number - self.first for number in wanted]

    def trim(self, wanted: Sequence[int]) -> TrimmedStream:
        """Trim to what some frames (numbers of the stored video) need; raises DecodeError."""
        return trim(self.content, self.numbers(wanted), self.frames, self.timeline)


def load_segment(
    video: ByteRange,
    wanted: Sequence[int],
    frames: int,
    timeline: Timeline,
    read_all: Callable[[], bytes],
) -> VideoSegment:
    """Read the segment that some frames need, or the complete video if it cannot be cut.

    Args:
        video: The stored video.
        wanted: Display-order frame numbers.
        frames: Number of frames of the stored video.
        timeline: Of the stored video.
        read_all: Returns the complete video; called only if needed.

    Returns:
        The segment; the complete video as one of frame 0 on if it cannot be cut.
    """
    segment = read_segment(video, wanted, frames, timeline)
    return segment or VideoSegment(read_all(), 0, frames, timeline)


def read_segment(
    video: ByteRange, wanted: Sequence[int], frames: int, timeline: Timeline
) -> VideoSegment | None:
    """Read the GOPs that hold some frames, and those between them.

    Args:
        video: The stored video.
        wanted: Display-order frame numbers.
        frames: Number of frames of the stored video.
        timeline: Of the stored video.

    Returns:
        None if the complete video is needed: all GOPs are wanted, the container's index does not
        lead to them, or packets and frames do not pair one to one.
    """
    first = timeline.start(min(wanted))
    stop = min((key for key in timeline.keyframes if key > max(wanted)), default=frames)
    if first == 0 and stop == frames:
        return None
    try:
        with open_media(video, buffer=BUFFER) as container:
            stream = video_stream(container)
            if stream is None or not times_are_of_frames(container, stream):
                return None
            codec = codec_of(stream)
            if codec not in CONTAINERS:
                return None
            packets = _packets(container, stream, first, stop, timeline)
            if packets is None or not _cut_out(codec, packets, first):
                return None
            content = remux(packets, stream, CONTAINERS[codec])
    except DAMAGE:
        return None  # decoding the complete file decides whether it is damaged
    stop = first + len(packets)
    times = timeline.times
    if times is not None:
        times = [time - times[first] for time in times[first:stop]]
    keyframes = [key - first for key in timeline.keyframes if first <= key < stop]
    return VideoSegment(content, first, stop - first, Timeline(keyframes, times, timeline.rate))


def _packets(
    container: Any, stream: Any, first: int, stop: int, timeline: Timeline
) -> list[Any] | None:
    """Read the packets of a segment.

    Args:
        container: The opened video.
        stream: Its video stream.
        first: First frame of the segment, a keyframe.
        stop: The keyframe after the segment, or the number of frames.
        timeline: Of the video.

    Returns:
        The packets of frames first to stop - 1, each exactly once, in decoding order, and that of
        frame `stop` if leading frames refer to it; None if they are not all found.
    """
    base, begin = float(stream.time_base), stream.start_time or 0
    if first:
        seek_to_start(container, stream, timeline.seek_to(first, base))
    packets: list[Any] = []
    numbers: set[int] = set()
    missing = stop - first
    for packet in container.demux(stream):
        if not packet.size or packet.pts is None:  # PyAV's last packet has neither
            break
        number = timeline.number((packet.pts - begin) * base)
        # At a variable rate a seek may land one GOP early.
        if not packets and number is not None and number < first:
            continue
        # the first keyframe's leading frames, which are shown before it and not decodable without
        # what was cut off
        if packets and number is not None and number < first:
            continue
        if not missing:
            break
        # A hole or a repetition means that times and frames do not agree; a wrong frame would not
        # be noticed later, so the complete file is decoded instead.
        if number is None or not first <= number <= stop or number in numbers:
            return None
        packets.append(packet)
        numbers.add(number)
        missing -= number != stop
    return None if missing else packets


def _cut_out(codec: str, packets: list[Any], first: int) -> bool:
    """Whether packets decode without what was cut off before them.

    Args:
        codec: Of the packets.
        packets: In decoding order, from frame `first` on.
        first: Their first frame.
    """
    # Leading frames of H.264 may be references: without them, later frames would find others at
    # their places in the list of references.
    return first == 0 or codec != "h264" or idr_packet(codec, packets[0])
