"""GOP trimming: the packets that the wanted frames need, copied without decoding.

DALI's video decoders walk forward from the first packet of what they are given, and on a GPU every
byte is uploaded first. Trimming starts at IDR frames only (the index's keyframes): from other
keyframes on, leading frames may refer to what was cut off.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import av

from allinone.data.decoding.codecs import codec_of
from allinone.data.decoding.frames import DecodeError, Timeline

CONTAINERS = {
    "h264": "mp4",
    "hevc": "mp4",
    "av1": "mp4",
    "mpeg4": "mp4",
    "vp9": "mp4",
    "vp8": "webm",
    "mjpeg": "mp4",
}
"""Container of a trimmed stream, by codec: the ones that DALI's demuxer reads."""


@dataclass(frozen=True)
class Trimmed:
    """A cut stream, and where the wanted frames stand in it."""

    content: bytes
    frames: tuple[int, ...]
    """Display-order numbers inside `content`, one per wanted frame."""


def trim(content: bytes, wanted: Sequence[int], frames: int, timeline: Timeline) -> Trimmed:
    """Cut a video of `frames` frames to what the display-order numbers `wanted` need; raises
    DecodeError for a damaged file.

    The content comes back whole for other codecs than those of CONTAINERS, and where packets and
    frames do not pair one to one (invisible VP8 frames, edit lists): then a frame's number cannot
    be told without decoding.
    """
    try:
        with av.open(io.BytesIO(content), "r") as container:
            stream = container.streams.video[0]
            demuxing: Any = container.demux(stream)
            with closing(
                demuxing
            ) as demuxed:  # one that an error leaves half-way leaks if it is not closed (PyAV 18.1)
                packets = [packet for packet in demuxed if packet.size]
            codec = codec_of(stream)
            if (
                codec not in CONTAINERS
                or len(packets) != frames
                or any(packet.pts is None for packet in packets)
            ):
                return Trimmed(content, tuple(wanted))
            kept = _needed(packets, wanted, timeline)
            if len(kept) == len(packets):
                return Trimmed(content, tuple(wanted))
            place = {
                number: rank for rank, number in enumerate(sorted(number for number, _ in kept))
            }
            return Trimmed(
                remux([packet for _, packet in kept], stream, CONTAINERS[codec]),
                tuple(place[number] for number in wanted),
            )
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(str(error)) from error


def _needed(packets: list[Any], wanted: Sequence[int], timeline: Timeline) -> list[tuple[int, Any]]:
    """(frame number, packet) in decoding order: of every GOP with a wanted frame, the packets up to
    the last one of those."""
    number = {pts: rank for rank, pts in enumerate(sorted(packet.pts for packet in packets))}
    decoded = [number[packet.pts] for packet in packets]  # frame numbers in decoding order
    position = {frame: place for place, frame in enumerate(decoded)}
    keep: set[int] = set()
    for frame in set(wanted):
        keep.update(range(position[timeline.start(frame)], position[frame] + 1))
    return [(decoded[place], packets[place]) for place in sorted(keep)]


def remux(packets: list[Any], stream: Any, kind: str) -> bytes:
    """A video of these packets, in decoding order, in a container of this kind; its first frame is
    shown at 0."""
    target = io.BytesIO()
    shown = sorted(packet.pts for packet in packets)
    # Matroska has no decoding times: they are made anew, rising, and never after the time of
    # showing
    delay = max(time - packet.pts for time, packet in zip(shown, packets, strict=True))
    with av.open(target, "w", format=kind) as output:
        # for AV1, PyAV would look for an encoder by the name of the decoder, and there is none
        copy = output.add_stream_from_template(stream, opaque=codec_of(stream) == "av1")
        for time, packet in zip(shown, packets, strict=True):
            packet.pts, packet.dts, packet.stream = (
                packet.pts - shown[0],
                time - shown[0] - delay,
                copy,
            )
            output.mux(packet)
    return target.getvalue()
