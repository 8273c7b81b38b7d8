"""Decodes chosen frames of a clip with PyAV.

Seeks to the last keyframe from which decoding is exact, skips frames that no other frame refers to,
and stops after the last wanted frame.
"""

from __future__ import annotations

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

from allinone.common.errors import LASTING, AllInOneError
from allinone.common.validation import MAX_PIXELS
from allinone.data.decoding.codecs import (
    has_alpha,
    over_white,
    rotation_of,
    seek_to_start,
    times_are_of_frames,
    video_stream,
)
from allinone.data.decoding.containers import open_media
from allinone.data.decoding.images import UNREADABLE_IMAGE, picture_unlike_ffmpeg
from allinone.data.decoding.timeout import call_with_timeout

_local = threading.local()
OVERTIME_S = 5.0
"""Seconds after a decode's time limit in which it can still notice the limit and stop by itself."""
ISO_MEDIA = b"ftyp"
"""Bytes 4 to 8 of mp4, mov and 3gp files."""
DAMAGE = (av.error.FFmpegError, ValueError, IndexError)
"""What PyAV raises for a damaged file; IndexError: it has no video stream."""
_TOO_SLOW = "not decoded within --clip-timeout-s"


class DecodeError(AllInOneError):
    """This clip cannot be decoded."""


class _InterlacedError(Exception):
    """A frame may lack its second field, because decoding stopped at the packet of its first."""


@dataclass(frozen=True)
class _Limit:
    deadline: float
    """Value of time.monotonic after which a decode has failed."""
    pixels: int
    """Most pixels of a frame; 0: any number."""

    def check_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise DecodeError(_TOO_SLOW)


@dataclass(frozen=True)
class Timeline:
    """When frames are shown: frame number ↔ seconds from the first frame."""

    keyframes: Sequence[int] = (0,)
    """Frame numbers where decoding may start."""
    times: Sequence[float] | None = None
    """Seconds of each frame; None at a constant rate."""
    rate: float = 0.0
    """Frames per second; 0 if unknown."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Timeline:
        """Build from a stored file's row in the index, or from the columns of a probe."""
        return cls(row["keyframes"], row["frame_times"], row["frame_rate"])

    def second(self, number: int) -> float:
        """Return when frame `number` is shown."""
        return self.times[number] if self.times is not None else number / self.rate

    def number(self, second: float) -> int | None:
        """Return the frame shown at `second`, to a tenth of a frame's duration; None if there is
        none."""
        # A tenth: more than probe.ROUNDED_FRAMES (0.09), so every time that was accepted as a
        # constant rate finds its frame.
        if self.times is None:
            number = round(second * self.rate)
            return number if abs(second * self.rate - number) < 0.1 else None
        place = bisect_left(self.times, second)
        for number in (place - 1, place):
            if not 0 <= number < len(self.times):
                continue
            other = number + 1 if number + 1 < len(self.times) else number - 1
            gap = 1.0
            if 0 <= other < len(self.times):
                gap = abs(self.times[other] - self.times[number])
            if abs(self.times[number] - second) <= 0.1 * gap:
                return number
        return None

    def seek_to(self, number: int, tick_s: float) -> int:
        """Return the ticks of `tick_s` seconds from the first frame that a seek to a keyframe uses.

        At a constant rate the keyframe's computed time may be rounded down to before the frame.
        Two ticks later the frame has started for certain, unless two ticks are a large part of a
        frame.
        """
        ticks = round(self.second(number) / tick_s)
        return ticks + min(2, int(0.4 / (self.rate * tick_s))) if self.times is None else ticks

    def start(self, number: int) -> int:
        """Return the last keyframe at or before frame `number`."""
        return max((key for key in self.keyframes if key <= number), default=0)


def decode_frames(
    content: bytes | Path,
    wanted: Sequence[int],
    timeline: Timeline | None = None,
    *,
    timeout_s: float = 30.0,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decode frames of a video or image.

    Args:
        content: The encoded bytes, or the path of a file of which only the needed parts are read.
        wanted: Display-order frame numbers, T of them, in any order and with repetitions.
        timeline: Allows seeking; without it, decoding starts at the first frame.
        timeout_s: Time limit in seconds, checked between frames. A decoder that hangs within a
            frame is abandoned OVERTIME_S later.
        max_pixels: Most pixels of a frame; 0: any number.

    Returns:
        RGB frames uint8 [T, H, W, 3], upright, converted by BT.601 as DALI does.

    Raises:
        DecodeError: The clip is damaged, lacks a wanted frame, or takes too long.
    """
    try:
        return call_with_timeout(
            timeout_s + OVERTIME_S,
            lambda: _decode(
                content, wanted, timeline, _Limit(time.monotonic() + timeout_s, max_pixels)
            ),
        )
    except TimeoutError as error:
        if error.errno is not None:  # ETIMEDOUT of a network file system has the same class
            raise
        raise DecodeError("hangs in the decoder; given up after --clip-timeout-s") from error


def _decode(
    content: bytes | Path, wanted: Sequence[int], timeline: Timeline | None, limit: _Limit
) -> NDArray[np.uint8]:
    """As `decode_frames`, in the thread that may be abandoned."""
    targets = sorted(set(wanted))
    try:
        picture = picture_unlike_ffmpeg(content, limit.pixels)
        # folders prepared by earlier versions count further pictures, which belong to no sample
        found = None if picture is None else dict.fromkeys(targets, picture)
        if found is None and timeline is not None and (timeline.times is not None or timeline.rate):
            try:
                found = _sparse(content, targets, timeline, limit)
            except _InterlacedError:
                found = _sparse(content, targets, timeline, limit, complete=True)
        if found is None:  # seeking missed (it does in MPEG-TS): decode from the start and count
            found = _from_start(content, targets, limit)
    except MemoryError:
        raise  # av.error.MemoryError is one: it says nothing about the clip
    except (*DAMAGE, *UNREADABLE_IMAGE) as error:
        # FFmpeg and Pillow have no error of the storage: files are read by Python
        if (
            isinstance(error, OSError)
            and not isinstance(error, av.error.FFmpegError)
            and error.errno not in LASTING
        ):
            raise  # the clip may be good
        raise DecodeError(str(error)) from error
    missing = [number for number in targets if number not in found]
    if missing:
        raise DecodeError(f"frame {missing[0]} does not decode")
    if len({frame.shape for frame in found.values()}) > 1:
        raise DecodeError(
            "the frame size changes in mid-stream; tools/prepare.py --short-side re-encodes it to"
            " one size"
        )
    return np.stack([found[number] for number in wanted])


def _sparse(
    content: bytes | Path,
    targets: list[int],
    timeline: Timeline,
    limit: _Limit,
    *,
    complete: bool = False,
) -> dict[int, NDArray[np.uint8]] | None:
    """Find frames by their time.

    Args:
        content: As for `decode_frames`.
        targets: Frame numbers, ascending.
        timeline: Of the file.
        limit: Time and pixels above which DecodeError is raised.
        complete: As for `_walk`.

    Returns:
        Frames uint8 [H, W, 3] by number; None if the file's times do not lead to every target.
    """
    found: dict[int, NDArray[np.uint8]] = {}
    with _open(content, limit.pixels) as container:
        stream = _video(container)
        if not times_are_of_frames(container, stream):
            return None
        stream.codec_context.thread_count = 1  # parallelism comes from the reader processes
        base, begin = float(stream.time_base or 0), stream.start_time or 0

        def number_of(pts: int) -> int | None:
            return timeline.number((pts - begin) * base)

        for start, group in _groups(targets, timeline):
            if start:
                seek_to_start(container, stream, timeline.seek_to(start, base))
            if not _walk(container, stream, start, set(group), number_of, found, limit, complete):
                return None
    return found


def _video(container: Any) -> Any:
    stream = video_stream(container)
    if stream is None:
        raise DecodeError("no video stream")
    return stream


def _open(content: bytes | Path, max_pixels: int) -> Any:
    """Open without FFmpeg's stream analysis where that is possible."""
    fast = _head(content)[4:8] == ISO_MEDIA
    return open_media(content, fast=fast, max_pixels=max_pixels)


def _head(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content[:8]
    if not content.is_file():  # decoding opens it again and reports the reason
        return b""
    with content.open("rb") as file:
        return file.read(8)


def _groups(targets: list[int], timeline: Timeline) -> list[tuple[int, list[int]]]:
    """Group targets by the keyframe that decoding starts from; each group costs one seek."""
    groups: dict[int, list[int]] = {}
    for target in targets:
        groups.setdefault(timeline.start(target), []).append(target)
    return sorted(groups.items())


def _walk(
    container: Any,
    stream: Any,
    start: int,
    targets: set[int],
    number_of: Any,
    found: dict[int, NDArray[np.uint8]],
    limit: _Limit,
    complete: bool,
) -> bool:
    """Decode forward until all targets are in `found`.

    Args:
        container: The opened file, positioned at or before the first target's keyframe.
        stream: Its video stream.
        start: The keyframe to begin with; packets before it are not decoded.
        targets: Frame numbers to find.
        number_of: Presentation time in ticks → frame number, None between frames.
        found: Receives frames uint8 [H, W, 3] by number.
        limit: Time and pixels above which DecodeError is raised.
        complete: Decode every packet until the decoder gives the targets by itself: the two fields
            of an interlaced frame may be two packets, of which the second has no time.

    Returns:
        False if a target cannot be found by its time.

    Raises:
        _InterlacedError: A target is interlaced, and `complete` is False.
    """
    context = stream.codec_context
    begun = not start
    missing = set(targets)  # targets whose packets have not been read yet
    # A demuxing generator that is left half-way and not closed leaks memory (PyAV 18.1).
    with closing(container.demux(stream)) as packets:
        for packet in packets:
            last = packet.pts is None
            number = None if last else number_of(packet.pts)
            begun = begun or number == start
            if not begun and not last:
                continue
            # Frames that no other frame refers to are decoded only if wanted: 1.5 times faster for
            # three frames of 720p H.264 with GOPs of 2 to 5 s, bit-identical.
            context.skip_frame = "DEFAULT" if complete or last or number in targets else "NONREF"
            frames = packet.decode()
            missing.discard(number)
            if not complete and not missing and not last:
                # Everything the targets depend on is decoded. Flush the decoder now instead of
                # feeding it the frames that are shown before the targets but stored after them.
                frames, last = [*frames, *context.decode(None)], True
            for frame in frames:
                number = None if frame.pts is None else number_of(frame.pts)
                if number in targets and number not in found:
                    if frame.interlaced_frame and not complete:
                        raise _InterlacedError
                    found[number] = _upright(frame)
            if last or (complete and targets <= found.keys()):
                return targets <= found.keys()
            limit.check_time()
    return False


def _from_start(
    content: bytes | Path, targets: list[int], limit: _Limit
) -> dict[int, NDArray[np.uint8]]:
    """Find frames by counting, without any times; frames beyond the end are absent.

    Args:
        content: As for `decode_frames`.
        targets: Frame numbers, ascending.
        limit: Time and pixels above which DecodeError is raised.
    """
    found: dict[int, NDArray[np.uint8]] = {}
    with open_media(content, max_pixels=limit.pixels) as container:
        stream = _video(container)
        stream.codec_context.thread_count = 1
        decoding: Any = container.decode(stream)
        with closing(decoding) as frames:
            for number, frame in enumerate(frames):
                if number in targets:
                    found[number] = _upright(frame)
                    if number == targets[-1]:
                        break
                limit.check_time()
    return found


def _upright(frame: Any) -> NDArray[np.uint8]:
    # One converter per thread: creating one takes 1 ms, converting a 128 px frame 12 microseconds.
    if not hasattr(_local, "reformatter"):
        _local.reformatter = VideoReformatter()
    rotation = rotation_of(frame)
    if has_alpha(frame.format):
        frame = over_white(frame, src_colorspace="ITU601", dst_colorspace="ITU601")
    rgb = _local.reformatter.reformat(
        frame, format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601", threads=1
    )
    turns, mirrored = rotation // 90 % 4, rotation >= 360
    pixels = rgb.to_ndarray()
    if mirrored or turns:
        pixels = np.rot90(pixels, -turns)
        pixels = np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
    return pixels
