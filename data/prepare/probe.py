"""What a media file contains, found by decoding all of it or by reading its packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from allinone.common.errors import AllInOneError
from allinone.common.validation import MAX_PIXELS
from allinone.data.decoding.codecs import (
    IMAGE_LIKE_VIDEOS,
    IMAGES,
    MAGIC_BYTES,
    VIDEOS,
    PixelLimitError,
    codec_of,
    image_kind,
    is_cover_art,
    rotation_of,
    start_packet,
    times_are_of_frames,
    unread_kind,
    video_kind,
    video_stream,
)
from allinone.data.decoding.containers import open_media
from allinone.data.decoding.images import (
    UNREADABLE_IMAGE,
    is_image,
    needs_pillow,
    open_image,
    upright_rgb,
)
from allinone.data.prepare.lengths import ANNOUNCING, announced_span, end_s_of, start_s_of

CONSTANT_RATE_TOLERANCE = 0.02
"""Largest deviation of a frame's time from its position at a constant rate, in frames, that still
counts as constant."""
ROUNDED_TICKS = 1.05
"""The same for files with a coarse clock (one millisecond in WebM and Matroska), where the times of
a constant rate are rounded: ticks of the clock."""
ROUNDED_FRAMES = 0.09
"""Upper limit of ROUNDED_TICKS, in frames: frames.Timeline tolerates a tenth of a frame."""
IMAGE_CODECS = {"JPEG": "mjpeg", "MPO": "mjpeg", "AVIF": "av1"}
"""Pillow's name of a format → FFmpeg's name of its codec, where it is not the lower-case name."""
PACKET_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})
"""Codecs of which a packet is a frame, in containers that store presentation times."""
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
    max_pixels: int = MAX_PIXELS
    """Most pixels of a frame; 0: any number."""


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
        sink: Called with every decoded frame, in display order. Without one, all frames must have
            one size and one pixel format: the file is stored as it is, decoders of DALI crash where
            they change, and a clip is one array.

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
    _check_kind(content, extension, limits)
    image = is_image(content, extension)
    columns = _image_columns(content, extension, limits) if image else None
    if columns is not None:
        return columns
    with _opened(content, limits) as container:
        return _decode(container, extension, limits, sink, image)


def _check_kind(content: bytes, extension: str, limits: Limits) -> None:
    """Reject files whose first bytes name a format that is not read, or not the name's.

    Args:
        content: The file.
        extension: What `codecs.image_extension` returns for it.
        limits: A user who accepts videos of one frame also accepts an image under their name.
    """
    head = content[:MAGIC_BYTES]
    if image_kind(head) is None and (found := unread_kind(head)):
        detail = f"{found}, which is not read; convert images to JPEG or PNG, videos to MP4"
        raise ProbeError("unknown_format", detail)
    image, video = image_kind(head), video_kind(head)
    if extension in IMAGES and image is None and video is not None:
        detail = f"a video ({video}) under an image's name, .{extension}"
        raise ProbeError("not_an_image", detail)
    if extension in VIDEOS - IMAGE_LIKE_VIDEOS and image is not None and limits.min_frames > 1:
        raise ProbeError("not_a_video", f"an image ({image}) under a video's name, .{extension}")


@contextmanager
def _opened(file: bytes | Path, limits: Limits) -> Iterator[Any]:
    """Open a container; PyAV's errors become ProbeError until it is closed."""
    import av

    opened = False
    try:
        with open_media(file, max_pixels=limits.max_pixels) as container:
            opened = True
            yield container
    except MemoryError:
        raise  # of this process, not of the file
    except PixelLimitError as error:
        raise ProbeError("too_many_pixels", str(error)) from error
    except (av.error.FFmpegError, ValueError, EOFError) as error:
        detail = str(error)
        if not opened and isinstance(file, bytes):
            head = file[:MAGIC_BYTES]
            if image_kind(head) is None and video_kind(head) is None:
                detail = f"no known format, begins with {head[:16]!r} ({detail})"
        raise ProbeError("undecodable", detail) from error


def _image_columns(content: bytes, extension: str, limits: Limits) -> dict[str, Any] | None:
    """Return the columns of an image that FFmpeg would show wrongly; None: it shows it rightly.

    Args:
        content: The file.
        extension: Its file name extension, without the dot.
        limits: Requirements that it must meet.

    Raises:
        ProbeError: The image is damaged, also where FFmpeg would fill the missing part with grey.
    """
    try:
        with open_image(content, limits.max_pixels) as image:
            if needs_pillow(image):
                codec = IMAGE_CODECS.get(str(image.format), str(image.format).lower())
                return _pillow_columns(upright_rgb(image).size, codec, extension)
            if image.format in ("JPEG", "MPO"):
                image.draft("L", (64, 64))  # reads the complete picture, but decodes it small
                image.load()
    except (PixelLimitError, Image.DecompressionBombError) as error:
        raise ProbeError("too_many_pixels", str(error)) from error
    except UNREADABLE_IMAGE as error:
        if isinstance(error, UnidentifiedImageError) and image_kind(content) not in (None, "jpg"):
            return None  # a variant of a format that FFmpeg may read
        detail = f"{type(error).__name__}: {error}"
        if image_kind(content[:MAGIC_BYTES]) is None:
            detail = f"no known image format, begins with {content[:16]!r}"
        raise ProbeError("undecodable", detail) from error
    return None


def _pillow_columns(size: tuple[int, int], codec: str, extension: str) -> dict[str, Any]:
    """Columns of an image that readers decode with Pillow, upright and in RGB.

    The pixel format keeps it from DALI. Frame rate and duration are those of FFmpeg's images.

    Args:
        size: (width, height) after rotation, pixels.
        codec: FFmpeg's name of the codec.
        extension: Name of the container.
    """
    width, height = size
    return {
        "codec": codec,
        "pixel_format": "rgb24",
        "container": extension,
        "media": "image",
        "width": width,
        "height": height,
        "rotation": 0,
        "frames": 1,
        "frame_rate": 25.0,
        "duration_s": 0.04,
        "frame_times": None,
        "keyframes": [0],
    }


def _decode(
    container: Any,
    extension: str,
    limits: Limits,
    sink: Callable[[Any], None] | None,
    image: bool,
) -> dict[str, Any]:
    """Decode an opened file completely.

    Args:
        container: The opened file.
        extension: Its file name extension, without the dot.
        limits: Requirements that it must meet.
        sink: Called with every decoded frame, in display order.
        image: Whether it is an image, which is its first picture.

    Returns:
        As `probe`; raises the same.
    """
    stream = _video_stream(container, limits)
    codec = codec_of(stream)
    times: list[float] = []
    starts: set[int] = set()
    first = None
    damaged = packets_shown = 0
    end_s: float | None = None
    shapes: dict[str, int] = {}
    # an unfinished demux generator leaks its packets unless it is closed (PyAV 18.1)
    with closing(container.demux(stream)) as packets:
        for packet in packets:
            if packet.pts is not None and start_packet(codec, packet):
                starts.add(packet.pts)
            packets_shown += bool(packet.size) and not packet.is_discard
            for frame in packet.decode():
                first = first or frame
                shapes.setdefault(_shape(frame), len(times))
                damaged += frame.is_corrupt
                # without a time (images, raw streams): FFmpeg's own default of 25 frames per second
                times.append(float(frame.time) if frame.time is not None else len(times) / 25.0)
                if frame.time is not None:
                    length = float((frame.duration or 0) * (frame.time_base or 0))
                    end_s = max(end_s or 0.0, float(frame.time) + length)
                if sink is not None:
                    sink(frame)
                if image:
                    break
            if image and first is not None:
                break
    if first is None:
        raise ProbeError("undecodable", "no frame decodes")
    if damaged:  # FFmpeg conceals what it cannot decode with grey or old blocks
        raise ProbeError("corrupt", f"{damaged} of {len(times)} frames decode with errors")
    if sink is None and len(shapes) > 1:
        (before, _), (after, number) = list(shapes.items())[:2]
        raise ProbeError(
            "frames_change",
            f"frames are {before}, from frame {number} on {after}; re-encode it (--short-side)",
        )
    if not times_are_of_frames(container, stream):
        times.sort()  # FFmpeg gives frames, in display order, the times of packets
    elif sink is None:
        _require_rising(times)
    if not image:
        _check_length(len(times), packets_shown, end_s, container, stream, limits)
    return _columns(times, starts, first, stream, extension, image)


def _require_rising(times: list[float]) -> None:
    """Raise ProbeError if the clock goes back: two frames would be found by one time."""
    for number, (before, after) in enumerate(pairwise(times), start=1):
        if after < before:
            raise ProbeError(
                "clock_goes_back",
                f"frame {number} is shown at {after:.2f} s, the frame before it at {before:.2f} s,"
                " as in joined recordings; re-encode it (--short-side)",
            )


def _shape(frame: Any) -> str:
    # yuvj420p is yuv420p in full range, which a stream may state late
    return f"{frame.width}x{frame.height} {frame.format.name.replace('yuvj', 'yuv')}"


def _video_stream(container: Any, limits: Limits) -> Any:
    stream = video_stream(container)
    if stream is None or is_cover_art(stream):
        if container.streams.audio:
            detail = "the file has sound and no pictures" + (" but cover art" if stream else "")
            raise ProbeError("no_video_track", detail)
        if stream is None:
            raise ProbeError("undecodable", "no track of the file can be read")
    stream.codec_context.thread_count = 1  # files are decoded in parallel processes
    duration = end_s_of(container) - start_s_of(container)
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
        # a file that begins without such a picture is still decoded from its beginning
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
    with _opened(content, limits) as container:
        return _read_packets(container, extension, limits)


def _read_packets(container: Any, extension: str, limits: Limits) -> dict[str, Any] | None:
    """Read the packets of an opened file; arguments, result and errors as for `probe_packets`."""
    stream = video_stream(container)
    if stream is None or codec_of(stream) not in PACKET_CODECS:
        return None
    if not times_are_of_frames(container, stream):
        return None
    times: list[int] = []
    starts: set[int] = set()
    first = None
    end, last_dts = 0, None
    with closing(container.demux(stream)) as packets:
        for packet in packets:
            if not packet.size:  # PyAV's last packet, which flushes the decoder
                continue
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                return None
            # joined recordings: in order of time, their frames would mix
            if last_dts is not None and packet.dts is not None and packet.dts < last_dts:
                return None
            last_dts = packet.dts
            times.append(packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
            if start_packet(codec_of(stream), packet):
                starts.add(packet.pts)
            # one frame, because containers do not state pixel format and rotation reliably
            first = first or next(iter(packet.decode()), None)
    # packets of equal times are not a frame each
    if first is None or len(set(times)) != len(times):
        return None
    end_s = float(end * (stream.time_base or 0))
    _check_length(len(times), len(times), end_s, container, stream, limits)
    seconds = [float(pts * (stream.time_base or 0)) for pts in sorted(times)]
    return _columns(seconds, starts, first, stream, extension, image=False)


def _check_length(
    decoded: int,
    stored: int,
    end_s: float | None,
    container: Any,
    stream: Any,
    limits: Limits,
) -> None:
    """Raise ProbeError for a video with too few frames, or one that ends before its header says.

    Frames are counted, never estimated: a duration times an average rate says nothing about a
    variable rate, and the table of an MP4 also counts the frames that its edit list hides.

    Args:
        decoded: Frames that decode.
        stored: Packets that are found and shown.
        end_s: When the last frame ends, seconds; None if the frames have no times.
        container: The opened file, for its duration.
        stream: The video stream, for its duration.
        limits: Requirements that it must meet.
    """
    if decoded < limits.min_frames:
        detail = f"{decoded} frame(s) decode, fewer than --min-frames {limits.min_frames}"
        raise ProbeError("too_few_frames", detail)
    name = container.format.name
    # 10 % tolerance: some containers announce more frames than they hold (dmlc/decord issue 373)
    if "mp4" in name and decoded < 0.9 * stored - 1:
        raise ProbeError("truncated", f"{decoded} of {stored} stored frames decode")
    announced = announced_span(container, stream) if name in ANNOUNCING else None
    if announced is None or end_s is None:
        return
    start, end = announced
    if end - end_s > 0.1 * (end - start) + (end_s - start) / decoded:
        detail = f"its frames end after {end_s - start:.2f} of {end - start:.2f} announced seconds"
        raise ProbeError("truncated", detail)
