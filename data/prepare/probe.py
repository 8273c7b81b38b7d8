"""What a media file contains, found by decoding all of it or by reading its packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from allinone.common.errors import AllInOneError
from allinone.data.decoding.codecs import IMAGES, codec_of, idr_packet, rotation_of
from allinone.data.decoding.containers import open_image, open_media

CONSTANT_RATE_TOLERANCE = 0.02
"""Largest deviation of a frame's time from its position at a constant rate, in frames, that still
counts as constant."""
ROUNDED_TICKS = 1.05
"""The same for files with a coarse clock (one millisecond in WebM and Matroska), where the times of
a constant rate are rounded: ticks of the clock."""
ROUNDED_FRAMES = 0.09
"""Upper limit of ROUNDED_TICKS, in frames: frames.Timeline tolerates a tenth of a frame."""
PACKET_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})
"""Codecs of which a packet is a frame, in containers that store presentation times."""
UNREADABLE_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that it cannot read or refuses to read."""
TEXT_STARTS = (b"<!doctype", b"<html", b"<?xml", b"{", b"<error")
"""First bytes of the error pages that downloaders save under a video's name."""


@dataclass(frozen=True)
class Limits:
    """Requirements that a clip must meet."""

    min_frames: int = 2
    """Fewest frames of a video."""
    max_duration_s: float = 3600.0
    """Longest duration, seconds."""
    timeout_s: float = 60.0
    """Time limit for decoding one file, seconds."""


class ProbeError(AllInOneError):
    """A clip is bad.

    Args:
        reason: The short reason that bad clips are counted by.
        detail: A sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def probe(
    content: bytes, extension: str, limits: Limits, sink: Callable[[Any], None] | None = None
) -> dict[str, Any]:
    """Decode a file completely.

    Args:
        content: The file.
        extension: Its file name extension, without the dot.
        limits: Requirements that it must meet.
        sink: Called with every decoded frame, in display order.

    Returns:
        The file's columns of the index: codec, size, rotation, frames, times, keyframes.

    Raises:
        ProbeError: The file is bad.
    """
    if not content:
        raise ProbeError("empty_file", "the file has no content")
    head = content[:256].lstrip().lower()
    if head.startswith(TEXT_STARTS):
        kind = "an image" if extension in IMAGES else "a video"
        detail = f"a text file, not {kind}: {head[:40].decode(errors='replace')!r}"
        raise ProbeError(f"not_{kind.replace(' ', '_')}", detail)
    if extension in ("jpg", "jpeg"):
        _check_jpeg(content)
    with _opened(content) as container:
        return _decode(container, extension, limits, sink)


@contextmanager
def _opened(file: bytes | Path) -> Iterator[Any]:
    """Open a container; PyAV's errors become ProbeError until it is closed."""
    import av

    try:
        with open_media(file) as container:
            yield container
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        raise ProbeError("undecodable", str(error)) from error


def _check_jpeg(content: bytes) -> None:
    """Reject truncated JPEGs: FFmpeg silently fills the missing part with grey, Pillow raises."""
    try:
        with open_image(content) as image:
            if image.format in ("JPEG", "MPO"):  # phones write MPO
                image.draft("L", (64, 64))  # reads the complete file, but decodes it small
                image.load()
    except UNREADABLE_IMAGE as error:
        raise ProbeError("undecodable", f"{type(error).__name__}: {error}") from error


def _decode(
    container: Any, extension: str, limits: Limits, sink: Callable[[Any], None] | None
) -> dict[str, Any]:
    """Decode an opened file completely; arguments, result and errors as for `probe`."""
    stream = _video_stream(container, limits)
    codec = codec_of(stream)
    times: list[float] = []
    starts: set[int] = set()
    first = None
    damaged = 0
    # an unfinished demux generator leaks its packets unless it is closed (PyAV 18.1)
    with closing(container.demux(stream)) as packets:
        for packet in packets:
            if packet.pts is not None and idr_packet(codec, packet):
                starts.add(packet.pts)
            for frame in packet.decode():
                first = first or frame
                damaged += frame.is_corrupt
                # without a time (images, raw streams): FFmpeg's own default of 25 frames per second
                times.append(float(frame.time) if frame.time is not None else len(times) / 25.0)
                if sink is not None:
                    sink(frame)
    if first is None:
        raise ProbeError("undecodable", "no frame decodes")
    if damaged:  # FFmpeg conceals what it cannot decode with grey or old blocks
        raise ProbeError("corrupt", f"{damaged} of {len(times)} frames decode with errors")
    image = extension in IMAGES
    if not image:
        _check_length(len(times), container, stream, limits)
    return _columns(times, starts, first, stream, extension, image)


def _video_stream(container: Any, limits: Limits) -> Any:
    if not container.streams.video:
        if container.streams.audio:
            raise ProbeError("no_video_track", "the file has sound and no pictures")
        raise ProbeError("undecodable", "no track of the file can be read")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # files are decoded in parallel processes
    duration = (container.duration or 0) / 1e6  # FFmpeg's AV_TIME_BASE is a microsecond
    # by the header, because decoding ten hours to find out would take as long as good files do
    if duration > limits.max_duration_s:
        detail = (
            f"{duration:.0f} s by its header, more than --max-duration-s"
            f" {limits.max_duration_s:.0f}"
        )
        raise ProbeError("too_long", detail)
    return stream


def _columns(
    times: list[float], starts: set[int], first: Any, stream: Any, extension: str, image: bool
) -> dict[str, Any]:
    """Return the columns of the index.

    Args:
        times: Seconds of all frames in display order.
        starts: Presentation times, in ticks of the stream's clock, where decoding may start.
        first: The first frame, for pixel format, size and rotation.
        stream: The video stream, for codec, clock and announced rate.
        extension: Name of the container.
        image: Whether the file is an image.
    """
    rotation = rotation_of(first)
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    # The announced average counts only without a measured one: a seek multiplies the error of the
    # rate by the frame number, so 0.1 % is a frame too far from frame 1,000 on.
    rate = float(stream.average_rate or 0)
    if len(times) > 1 and times[-1] > times[0]:
        rate = (len(times) - 1) / (times[-1] - times[0])
    base, tick = times[0], float(stream.time_base or 0)
    tolerance = max(CONSTANT_RATE_TOLERANCE, min(ROUNDED_TICKS * tick * rate, ROUNDED_FRAMES))
    constant = all(abs((t - base) * rate - k) <= tolerance for k, t in enumerate(times))
    # Seconds back to ticks: `starts` holds integers, which are safe keys. A keyframe that is not
    # shown, as before the start of an edit list, has no number and is dropped.
    by_time = {round(t / float(stream.time_base)): k for k, t in enumerate(times)}
    return {
        "codec": codec_of(stream),
        "pixel_format": first.format.name,
        "container": extension,
        "media": "image" if image else "video",
        "width": width,
        "height": height,
        "rotation": rotation,
        "frames": len(times),
        "frame_rate": rate,
        "duration_s": len(times) / rate if rate else 0.0,
        "frame_times": None if constant else [t - base for t in times],
        # a file that begins without an IDR picture (open GOP) is still decoded from its beginning
        "keyframes": sorted({by_time[pts] for pts in starts if pts in by_time} | {0}),
    }


def probe_packets(content: bytes | Path, extension: str, limits: Limits) -> dict[str, Any] | None:
    """Find the columns of `probe` from the packets and one decoded frame.

    This takes seconds for a video of hours; damage inside frames is not detected.

    Args:
        content: The file, or its path.
        extension: Its file name extension, without the dot.
        limits: Requirements that it must meet.

    Returns:
        The columns; None if packets do not correspond to frames, so that `probe` is needed.

    Raises:
        ProbeError: The file is bad.
    """
    with _opened(content) as container:
        return _read_packets(container, extension, limits)


def _read_packets(container: Any, extension: str, limits: Limits) -> dict[str, Any] | None:
    """Read the packets of an opened file; arguments, result and errors as for `probe_packets`."""
    streams = container.streams.video
    if not streams or codec_of(streams[0]) not in PACKET_CODECS:
        return None
    stream = streams[0]
    times: list[int] = []
    starts: set[int] = set()
    first = None
    with closing(container.demux(stream)) as packets:
        for packet in packets:
            if not packet.size:  # PyAV's last packet, which flushes the decoder
                continue
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                return None
            times.append(packet.pts)
            if idr_packet(codec_of(stream), packet):
                starts.add(packet.pts)
            # one frame, because containers do not state pixel format and rotation reliably
            first = first or next(iter(packet.decode()), None)
    # packets of equal times are not a frame each
    if first is None or len(set(times)) != len(times):
        return None
    _check_length(len(times), container, stream, limits)
    seconds = [float(pts * (stream.time_base or 0)) for pts in sorted(times)]
    return _columns(seconds, starts, first, stream, extension, image=False)


def _check_length(decoded: int, container: Any, stream: Any, limits: Limits) -> None:
    """Raise ProbeError for a video with too few frames, or fewer than it announces.

    Args:
        decoded: Frames that decode.
        container: The opened file, for its duration.
        stream: The video stream, for its duration and number of frames.
        limits: Requirements that it must meet.
    """
    if decoded < limits.min_frames:
        detail = f"{decoded} frame(s) decode, fewer than --min-frames {limits.min_frames}"
        raise ProbeError("too_few_frames", detail)
    announced = stream.frames
    seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if not seconds and len(container.streams) == 1:
        # Matroska and WebM only state the duration of the file, which may be that of the sound
        seconds = (container.duration or 0) / 1e6
    if not announced and stream.average_rate:
        announced = int(seconds * float(stream.average_rate)) - 1
    # 10 % tolerance: some containers announce more frames than they hold (dmlc/decord issue 373)
    if announced and decoded < 0.9 * announced - 1:
        raise ProbeError("truncated", f"{decoded} of {announced} announced frames decode")
