"""Chosen frames of a clip, by PyAV: seek to the last keyframe that is safe, skip what no other
frame refers to, stop after the last wanted frame."""

from __future__ import annotations

import io
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from allinone.common.errors import AllInOneError
from allinone.data.decoding.codecs import rotation_of
from allinone.data.decoding.timeout import within

_local = threading.local()
OVERTIME_S = 5.0
"""Seconds that a decode has, after its time limit, to look at the clock."""
ISO_MEDIA = b"ftyp"
"""Bytes 4 to 8 of mp4, mov and 3gp files."""


class DecodeError(AllInOneError):
    """This clip cannot be decoded."""


@dataclass(frozen=True)
class Timeline:
    """When frames are shown, from the index: frame number ↔ seconds from the first frame."""

    keyframes: Sequence[int] = (0,)
    """Frame numbers where decoding may start."""
    times: Sequence[float] | None = None
    """Seconds of each frame; None at a constant rate."""
    rate: float = 0.0
    """Frames per second; 0 where unknown."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Timeline:
        """Of a stored file's row in the index, or of what data.probe found."""
        return cls(row["keyframes"], row["frame_times"], row["frame_rate"])

    def second(self, number: int) -> float:
        """When frame `number` is shown."""
        return self.times[number] if self.times is not None else number / self.rate

    def number(self, second: float) -> int | None:
        """The frame shown at `second`, or None where none is (to a tenth of the gap to its
        neighbour)."""
        if self.times is None:
            number = round(second * self.rate)
            return number if abs(second * self.rate - number) < 0.1 else None
        place = bisect_left(self.times, second)
        for number in (place - 1, place):
            if 0 <= number < len(self.times):
                other = number + 1 if number + 1 < len(self.times) else number - 1
                gap = (
                    abs(self.times[other] - self.times[number])
                    if 0 <= other < len(self.times)
                    else 1.0
                )
                if abs(self.times[number] - second) <= 0.1 * gap:
                    return number
        return None

    def seek_to(self, number: int, tick_s: float) -> int:
        """Ticks from the first frame at which a seek finds frame `number`, a keyframe. Its own time
        may be rounded where the rate is constant: two ticks later it has begun for certain, unless
        those are much of a frame."""
        ticks = round(self.second(number) / tick_s)
        return ticks + min(2, int(0.4 / (self.rate * tick_s))) if self.times is None else ticks

    def start(self, number: int) -> int:
        """The last keyframe at or before frame `number`."""
        return max((k for k in self.keyframes if k <= number), default=0)


def decode_frames(
    content: bytes | Path,
    wanted: Sequence[int],
    timeline: Timeline | None = None,
    *,
    timeout_s: float = 30.0,
) -> NDArray[np.uint8]:
    """RGB frames uint8 [T, H, W, 3] with display-order numbers `wanted` of a file's content, or of
    a file that is not read as a whole; upright, in BT.601 as DALI converts.

    With a timeline only what the wanted frames need is decoded; without one, all that comes before
    them. Raises DecodeError, also where decoding takes longer than `timeout_s` (looked at between
    two frames), or hangs within a frame for OVERTIME_S longer.
    """
    try:
        return within(
            timeout_s + OVERTIME_S,
            lambda: _decode(content, wanted, timeline, time.monotonic() + timeout_s),
        )
    except TimeoutError as error:
        raise DecodeError("hangs in the decoder; given up after --clip-timeout-s") from error


def _decode(
    content: bytes | Path, wanted: Sequence[int], timeline: Timeline | None, deadline: float
) -> NDArray[np.uint8]:
    targets = sorted(set(wanted))
    try:
        found = None
        if timeline is not None and (timeline.times is not None or timeline.rate):
            found = _sparse(content, targets, timeline, deadline)
        if found is None:  # seeking went astray (mpeg-ts does that): from the beginning, counting
            found = _from_start(content, targets, deadline)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise DecodeError(str(error)) from error
    missing = [number for number in targets if number not in found]
    if missing:
        raise DecodeError(f"frame {missing[0]} does not decode")
    if len({frame.shape for frame in found.values()}) > 1:
        raise DecodeError(
            "the picture changes its size in mid-stream; tools/prepare.py --short-side makes it one"
            " size"
        )
    return np.stack([found[number] for number in wanted])


def _source(content: bytes | Path) -> Any:
    return str(content) if isinstance(content, Path) else io.BytesIO(content)


def _sparse(
    content: bytes | Path, targets: list[int], timeline: Timeline, deadline: float
) -> dict[int, NDArray[np.uint8]] | None:
    """Frames found by their time; None where the file's times do not lead to every target."""
    found: dict[int, NDArray[np.uint8]] = {}
    with _open(content) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # clips run side by side in processes
        base, begin = float(stream.time_base or 0), stream.start_time or 0
        for start, group in _groups(targets, timeline):
            if start:
                container.seek(begin + timeline.seek_to(start, base), stream=stream)
            if not _walk(
                container,
                stream,
                set(group),
                lambda pts: timeline.number((pts - begin) * base),
                found,
                deadline,
            ):
                return None
    return found


def _open(content: bytes | Path) -> Any:
    """The file, without what FFmpeg does to guess at a stream: it decodes frames for that, 20 ms of
    a 720p file. ISO files state what is needed."""
    if _head(content)[4:8] != ISO_MEDIA:
        return av.open(_source(content), "r")
    return av.open(
        _source(content), "r", options={"probesize": "32"}, stream_options=[{"skip_frame": "all"}]
    )  # type: ignore[call-overload]


def _head(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:8]
    try:
        with content.open("rb") as file:
            return file.read(8)
    except OSError:  # opening it for decoding tells why
        return b""


def _groups(targets: list[int], timeline: Timeline) -> list[tuple[int, list[int]]]:
    """Targets by the keyframe that decoding starts from; a target behind the next keyframe is worth
    a seek of its own."""
    groups: dict[int, list[int]] = {}
    for target in targets:
        groups.setdefault(timeline.start(target), []).append(target)
    return sorted(groups.items())


def _walk(
    container: Any,
    stream: Any,
    targets: set[int],
    number_of: Any,
    found: dict[int, NDArray[np.uint8]],
    deadline: float,
) -> bool:
    """Decode forward until all targets are found; False where one cannot be."""
    context = stream.codec_context
    missing = set(targets)  # whose packets have not come yet
    with closing(
        container.demux(stream)
    ) as packets:  # one that is left half-way and not closed leaks (PyAV 18.1)
        for packet in packets:
            last = packet.pts is None
            number = None if last else number_of(packet.pts)
            # frames that nothing refers to are not decoded unless wanted
            context.skip_frame = "DEFAULT" if last or number in targets else "NONREF"
            frames = packet.decode()
            missing.discard(number)
            if (
                not missing and not last
                # what the targets need has been decoded: they come out now, not behind the frames
                # shown before them
            ):
                frames, last = [*frames, *context.decode(None)], True
            for frame in frames:
                number = None if frame.pts is None else number_of(frame.pts)
                if (
                    number in targets and number not in found and not frame.interlaced_frame
                ):  # its second field may not have come
                    found[number] = _upright(frame)
            if last:
                return targets <= found.keys()
            if time.monotonic() > deadline:
                raise DecodeError("not decoded within --clip-timeout-s")
    return False


def _from_start(
    content: bytes | Path, targets: list[int], deadline: float
) -> dict[int, NDArray[np.uint8]]:
    found: dict[int, NDArray[np.uint8]] = {}
    with av.open(_source(content), "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        decoding: Any = container.decode(container.streams.video[0])
        with closing(decoding) as frames:
            for number, frame in enumerate(frames):
                if number in targets:
                    found[number] = _upright(frame)
                    if number == targets[-1]:
                        break
                if time.monotonic() > deadline:
                    raise DecodeError("not decoded within --clip-timeout-s")
    return found


def _upright(frame: Any) -> NDArray[np.uint8]:
    if not hasattr(_local, "reformatter"):
        _local.reformatter = VideoReformatter()
    # one converter per thread: making one costs a millisecond, converting a 128 px frame 12
    # microseconds
    rgb = _local.reformatter.reformat(
        frame, format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601", threads=1
    )
    turns = rotation_of(frame) // 90
    pixels = rgb.to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, -turns)) if turns else pixels
