"""GOP trimming: copies the packets that the wanted frames need, without decoding.

DALI's video decoders walk forward from the first packet of their input, and on a GPU every byte is
uploaded first. Trimming starts at IDR frames only: after the index's other keyframes, DALI would
count leading frames, which may refer to frames that were cut off.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import av

from allinone.data.decoding.codecs import (
    codec_of,
    idr_packet,
    times_are_of_frames,
    video_stream,
)
from allinone.data.decoding.containers import open_media
from allinone.data.decoding.frames import DAMAGE, DecodeError, Timeline

CONTAINERS = {
    "h264": "mp4",
    "hevc": "mp4",
    "av1": "mp4",
    "mpeg4": "mp4",
    "vp9": "mp4",
    "vp8": "webm",
    "mjpeg": "mp4",
}
"""Codec → container of a trimmed stream; all of them are read by DALI's demuxer."""


@dataclass(frozen=True)
class TrimmedStream:
    """A trimmed video and the positions of the wanted frames in it."""

    content: bytes
    frames: tuple[int, ...]
    """Display-order numbers inside `content`, one per wanted frame."""


def trim(content: bytes, wanted: Sequence[int], frames: int, timeline: Timeline) -> TrimmedStream:
    """Cut a video down to the packets that some frames need.

    The content comes back unchanged if its codec is not among CONTAINERS, or if packets and frames
    do not pair one to one (invisible VP8 frames, edit lists, repeated times): the frame numbers of
    packets are then unknown without decoding.

    Args:
        content: The encoded video.
        wanted: Display-order frame numbers.
        frames: Number of frames of the video.
        timeline: Gives the keyframes where decoding may start.

    Returns:
        The video that is left, and the wanted frames' numbers in it.

    Raises:
        DecodeError: The file is damaged.
    """
    try:
        with open_media(content) as container:
            stream = video_stream(container)
            if stream is None:
                raise DecodeError("no video stream")
            demuxing: Any = container.demux(stream)
            # A demuxing generator that an error leaves half-way leaks unless closed (PyAV 18.1).
            with closing(demuxing) as demuxed:
                packets = [packet for packet in demuxed if packet.size]
            demuxed_packets = len(packets)
            codec = codec_of(stream)
            if frames == 1 and container.format.name == "jpeg_pipe":
                packets = packets[:1]  # further pictures of the file, such as a gain map
            # Packets before the start of an edit list are decoded, but not shown.
            shown = sum(not packet.is_discard for packet in packets)
            # Not paired: a packet's rank is not its frame's number, and nothing would notice that
            # the frames of the trimmed video are wrong.
            paired = shown == frames and all(packet.pts is not None for packet in packets)
            paired = paired and len({packet.pts for packet in packets}) == len(packets)
            paired = paired and times_are_of_frames(container, stream)
            if codec not in CONTAINERS or not paired:
                return TrimmedStream(content, tuple(wanted))
            kept = _needed(packets, wanted, _closed(packets, codec, timeline))
            # DALI would count packets that are not shown, and choose a stream by itself
            alone = shown == len(packets) and len(container.streams.video) == 1
            if len(kept) == demuxed_packets and alone:
                return TrimmedStream(content, tuple(wanted))
            ordered = sorted(number for number, _ in kept)
            position = {number: place for place, number in enumerate(ordered)}
            return TrimmedStream(
                remux([packet for _, packet in kept], stream, CONTAINERS[codec]),
                tuple(position[number] for number in wanted),
            )
    except MemoryError:
        raise  # of this process, not of the clip
    except DAMAGE as error:
        raise DecodeError(str(error)) from error


def _needed(packets: list[Any], wanted: Sequence[int], timeline: Timeline) -> list[tuple[int, Any]]:
    """Return what decoding some frames takes.

    Args:
        packets: All packets of the video in decoding order, one per frame, and those that an edit
            list hides.
        wanted: Display-order frame numbers.
        timeline: Gives the keyframes where decoding may start.

    Returns:
        (frame number, packet) in decoding order: of every GOP with a wanted frame, the packets up
        to its last wanted frame. Hidden packets have negative numbers.
    """
    # hidden packets at the end of an edit list sort behind all frames, so numbers stay right
    hidden = sum(packet.is_discard and packet.pts < _first_shown(packets) for packet in packets)
    number = {
        pts: rank - hidden for rank, pts in enumerate(sorted(packet.pts for packet in packets))
    }
    decoded = [number[packet.pts] for packet in packets]  # frame numbers in decoding order
    position = {frame: place for place, frame in enumerate(decoded)}
    keep: set[int] = set()
    for frame in set(wanted):
        # an edit list may start within a GOP: its keyframe is then the first hidden packet
        start = timeline.start(frame)
        keep.update(range(position[start] if start else 0, position[frame] + 1))
    return [(decoded[place], packets[place]) for place in sorted(keep)]


def _closed(packets: list[Any], codec: str, timeline: Timeline) -> Timeline:
    """The timeline with the keyframes from which every later packet decodes.

    Args:
        packets: All packets of the video; without edit lists, one per frame.
        codec: Of the packets.
        timeline: Of the video.
    """
    if codec not in ("h264", "hevc") or len(timeline.keyframes) < 2:
        return timeline
    shown = sorted((packet for packet in packets if not packet.is_discard), key=lambda p: p.pts)
    keys = [key for key in timeline.keyframes if key == 0 or idr_packet(codec, shown[key])]
    return replace(timeline, keyframes=keys)


def _first_shown(packets: list[Any]) -> int:
    return min(packet.pts for packet in packets if not packet.is_discard)


def remux(packets: list[Any], stream: Any, container_format: str) -> bytes:
    """Write packets, in decoding order, into a container of their own, starting at time 0.

    Args:
        packets: Packets of `stream`; their times and stream are overwritten.
        stream: The stream that they come from.
        container_format: FFmpeg's name of the container, such as mp4.

    Returns:
        The video file.
    """
    target = io.BytesIO()
    shown = sorted(packet.pts for packet in packets)
    # Matroska stores no decoding times. Generate ascending ones that never exceed the display time.
    delay = max(time - packet.pts for time, packet in zip(shown, packets, strict=True))
    with av.open(target, "w", format=container_format) as output:  # noqa: TID251
        # For AV1, PyAV would look for an encoder with the decoder's name, which does not exist.
        copy = output.add_stream_from_template(stream, opaque=codec_of(stream) == "av1")
        for time, packet in zip(shown, packets, strict=True):
            packet.pts -= shown[0]
            packet.dts = time - shown[0] - delay
            packet.stream = copy
            output.mux(packet)
    return target.getvalue()
