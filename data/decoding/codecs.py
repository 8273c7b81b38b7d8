"""Facts about codecs and image formats that preparing and loading share."""

from __future__ import annotations

import itertools
import math
import operator
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

IMAGES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "tif", "tiff", "avif", "jp2", "j2k"}
)
"""Extensions of image files. A GIF may be either: images.is_image decides by its content."""
VIDEOS = frozenset(
    {"mp4", "webm", "mkv", "avi", "mov", "gif", "m4v", "mpg", "mpeg", "wmv", "ts", "3gp"}
    | {
        "3g2",
        "asf",
        "divx",
        "f4v",
        "flv",
        "m1v",
        "m2ts",
        "m2v",
        "mjpeg",
        "mjpg",
        "mts",
        "mxf",
        "ogm",
        "ogv",
        "vob",
    }
)
IMAGE_LIKE_VIDEOS = frozenset({"gif", "mjpeg", "mjpg"})
"""Videos that begin as images do; the last two are motion JPEG without a container."""
IMAGE_MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG", "png"),
    (8, b"WEBP", "webp"),
    (0, b"BM", "bmp"),
    (0, b"GIF8", "gif"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"II+\0", "tiff"),  # with 64-bit offsets
    (0, b"MM\0+", "tiff"),
    (4, b"ftypavif", "avif"),
    (4, b"ftypavis", "avif"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (0, b"\xff\x4f\xff\x51", "j2k"),
)
"""(offset, bytes there, extension) of the image formats that are read."""
OTHER_MAGIC = (
    (4, b"ftypheic", "a HEIC image"),
    (4, b"ftypheix", "a HEIC image"),
    (4, b"ftypmif1", "a HEIF image"),
    (4, b"ftypmsf1", "a HEIF image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"qoif", "a QOI image"),
    (0, b"v/1\x01", "an OpenEXR image"),
)
"""(offset, bytes there, what it is) of formats that are not read."""
VIDEO_MAGIC = (
    (4, b"ftyp", "mp4"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
    (8, b"AVI ", "avi"),
    (0, b"FLV\1", "flv"),
    (0, b"OggS", "ogv"),
    (0, b"\0\0\1\xba", "mpg"),
)
"""(offset, bytes there, extension) of video containers."""
MAGIC_BYTES = 64
"""Bytes that the recognition of a format needs."""

DEFAULT_STREAM, ATTACHED_PICTURE = 1, 1024
"""FFmpeg's AV_DISPOSITION_DEFAULT and AV_DISPOSITION_ATTACHED_PIC."""

TS_SEEK_S = 1.0
"""Seconds before a keyframe that a seek in an MPEG transport stream goes to."""

CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
"""Codecs that DALI decodes on the CPU."""
GPU_CODECS = frozenset({"h264", "hevc", "vp9"})
"""Codecs that NVDEC decodes on every card since Turing; some cards also decode AV1."""
NVDEC_SHORTEST_SIDE = 144
"""Pixels; the largest of the codecs' minima in NVIDIA's NVDEC application note (HEVC's)."""


def _match(table: Iterable[tuple[int, bytes, str]], head: bytes) -> str | None:
    return next((name for at, magic, name in table if head[at:].startswith(magic)), None)


def image_kind(head: bytes) -> str | None:
    """Return the extension of an image by its first MAGIC_BYTES bytes; None if it is none."""
    kind = _match(IMAGE_MAGIC, head)
    # some writers name AVIF only among the compatible brands of HEIF's container
    if kind is None and head[4:12] in (b"ftypmif1", b"ftypmsf1"):
        brands = head[16 : int.from_bytes(head[:4], "big")]
        return "avif" if b"avif" in brands or b"avis" in brands else None
    return None if kind == "webp" and not head.startswith(b"RIFF") else kind


def video_kind(head: bytes) -> str | None:
    """Return the extension of a video container by its first MAGIC_BYTES bytes."""
    return _match(VIDEO_MAGIC, head)


def unread_kind(head: bytes) -> str | None:
    """Return what a file of a known format that is not read is, such as "a PDF document"."""
    return _match(OTHER_MAGIC, head)


def image_extension(content: bytes, extension: str) -> str:
    """Return the extension that the first bytes of an image file imply.

    Downloaders guess names: many a `.jpg` of a web-scale data set is a PNG, a WebP or a GIF, and
    some files have no extension.

    Args:
        content: The file's content, or at least its first MAGIC_BYTES bytes.
        extension: The extension of the file's name, lower case, without a dot.

    Returns:
        `extension` itself for videos and for images whose first bytes are unknown.
    """
    if extension in VIDEOS - {"gif"}:
        return extension
    return image_kind(content[:MAGIC_BYTES]) or extension


def dali_reads(row: Mapping[str, Any], codecs: frozenset[str]) -> bool:
    """Return whether DALI's decoder reproduces the clip of an index row exactly.

    That takes 8-bit 4:2:0 frames that are stored upright: DALI ignores the display matrix. Of AVI
    files, which store no presentation times, only those without references between frames. And
    every frame needs a time of its own: DALI finds frames by their times.
    """
    # only NVDEC has a minimum size
    large = not codecs >= GPU_CODECS or min(row["width"], row["height"]) >= NVDEC_SHORTEST_SIDE
    return (
        row["codec"] in codecs
        and row["pixel_format"] in ("yuv420p", "yuvj420p")
        and not row["rotation"]
        and large
        and (row.get("container") != "avi" or row["codec"] == "mjpeg")
        and _ascending(row.get("frame_times"))
    )


def _ascending(times: Sequence[float] | None) -> bool:
    return times is None or all(map(operator.lt, times, itertools.islice(times, 1, None)))


class PixelLimitError(ValueError):
    """A picture has more pixels than --max-pixels."""


def require_pixels(width: int, height: int, limit: int) -> None:
    """Raise PixelLimitError for a picture that is too large to be decoded safely.

    A few megabytes of video may stand for gigabytes of frames.

    Args:
        width: Pixels; 0 if unknown.
        height: Pixels.
        limit: Most pixels; 0: any number.
    """
    if limit and width * height > limit:
        raise PixelLimitError(
            f"{width} x {height} pixels, more than --max-pixels {limit}; scale it down, or raise"
            " the limit if there is memory for several such frames per reader"
        )


def codec_of(stream: Any) -> str:
    """Return the name of a stream's codec rather than of its decoder: av1, not libdav1d."""
    return str(stream.codec_context.codec.canonical_name)


def video_stream(container: Any) -> Any:
    """Return the video stream that the ffmpeg program shows of an opened file; None if it has none.

    The largest picture wins, a default stream counts as 5,000,000 pixels larger, and cover art
    (attached pictures) comes last (map_auto_video in ffmpeg_mux_init.c). Of equals the first.
    """

    def rank(stream: Any) -> tuple[bool, int]:
        context = stream.codec_context
        # a stream without a decoder has no codec context; the program takes it only if alone
        if context is None:
            return False, -1
        default = bool(stream.disposition & DEFAULT_STREAM)
        pixels = (context.width or 0) * (context.height or 0)
        return not is_cover_art(stream), pixels + 5_000_000 * default

    return max(container.streams.video, key=rank, default=None)


def is_cover_art(stream: Any) -> bool:
    """Whether a stream is a picture about the file, such as an album's cover, not its content."""
    return bool(stream.disposition & ATTACHED_PICTURE)


def times_are_of_frames(container: Any, stream: Any) -> bool:
    """Return whether the times of a stream's packets are those at which their frames are shown.

    AVI stores no presentation times. FFmpeg numbers its packets in decoding order, which is another
    one with B-frames. An MPEG program stream has one time for several frames, and after a seek
    FFmpeg gives it to the wrong one (FFmpeg of PyAV 18.1).
    """
    name = container.format.name
    return name != "mpeg" and not (name == "avi" and stream.codec_context.has_b_frames)


def seek_to_start(container: Any, stream: Any, ticks: int) -> None:
    """Seek to a keyframe, or to before it where a seek does not lead to keyframes.

    Args:
        container: The opened file.
        stream: Its video stream.
        ticks: When the keyframe is shown, in the stream's clock, from the stream's start.
    """
    if container.format.name == "mpegts":
        # FFmpeg seeks by decoding times there, which are up to some frames before those of display
        ticks -= round(TS_SEEK_S / stream.time_base)
    begin = stream.start_time or 0
    container.seek(max(begin, begin + ticks), stream=stream)


def rotation_of(frame: Any) -> int:
    """Return how a frame is turned upright.

    Returns:
        Clockwise rotation in degrees (0, 90, 180, 270), of other angles the nearest; 360 more if the rotated frame must then be
        mirrored left to right.
    """
    angle = getattr(frame, "rotation", 0) or 0
    matrix = _display_matrix(frame)
    if matrix is None or matrix[0] * matrix[4] - matrix[1] * matrix[3] >= 0:
        return -round(angle / 90) * 90 % 360
    # x' = a x + c y, y' = b x + d y: with the mirror undone (a → -a) a rotation is left
    return 360 + round(math.degrees(math.atan2(matrix[1], -matrix[0])) / 90) * 90 % 360


def has_alpha(pixel_format: Any) -> bool:
    """Whether a PyAV pixel format has transparency."""
    return any(component.is_alpha for component in pixel_format.components)


def over_white(frame: Any, **conversion: str) -> Any:
    """Return a frame with transparent pixels over white, as images are shown.

    What is below transparent pixels is usually black, and never meant to be seen.

    Args:
        frame: A frame of a format with transparency.
        **conversion: For PyAV's `VideoFrame.reformat`: how YUV becomes RGB.

    Returns:
        A frame of RGB, 8 bits, without the frame's display matrix.
    """
    import av
    import numpy as np

    layers = frame.to_ndarray(format="rgba", **conversion).astype(np.uint16)
    alpha = layers[..., 3:]
    # rounded as Pillow's alpha_composite: (x + 127) / 255
    mixed = (layers[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    opaque = av.VideoFrame.from_ndarray(mixed.astype(np.uint8), format="rgb24")
    opaque.pts, opaque.time_base = frame.pts, frame.time_base
    return opaque


def _display_matrix(frame: Any) -> tuple[int, ...] | None:
    """The matrix (a b u c d v x y w) of ISO 14496-12, if the frame has one that can be read."""
    try:
        side_data = getattr(frame, "side_data", None)
        found = side_data.get("DISPLAYMATRIX") if side_data else None
    except ValueError:  # PyAV 18.1 raises for side data that it does not know, such as EXIF
        return None
    return None if found is None else struct.unpack("9i", bytes(found))


def idr_packet(codec: str, packet: Any) -> bool:
    """Return whether decoding from this packet gives exactly the frames of a full decode.

    For H.264 and HEVC only IDR pictures qualify: leading frames after other keyframes may refer to
    frames before them.
    """
    return _starts(codec, packet, _idr)


def start_packet(codec: str, packet: Any) -> bool:
    """Return whether decoding from this packet gives the frames shown from it on exactly.

    Besides IDR pictures, HEVC's CRA and BLA pictures and H.264's recovery points qualify. Frames
    that follow them in the file and are shown before them (leading frames) may refer to earlier
    frames and are wrong or missing, and no frame that is shown later refers to those.
    """
    return _starts(codec, packet, _random_access)


def _starts(codec: str, packet: Any, of_unit: Callable[[str, bytes], bool]) -> bool:
    if not packet.is_keyframe:
        return False
    if codec not in ("h264", "hevc"):
        return True
    return any(of_unit(codec, unit) for unit in nal_units(bytes(packet)))


def _idr(codec: str, unit: bytes) -> bool:
    # H.264: low 5 bits, nal_unit_type 5; HEVC: bits 1 to 6, IDR_W_RADL (19) and IDR_N_LP (20).
    return unit[0] & 31 == 5 if codec == "h264" else (unit[0] >> 1) & 63 in (19, 20)


def _random_access(codec: str, unit: bytes) -> bool:
    if codec == "hevc":
        return 16 <= (unit[0] >> 1) & 63 <= 21  # BLA, IDR, CRA (ITU-T H.265, table 7-1)
    # An SEI message of type 6 (ITU-T H.264, D.1.8) whose first bits are recovery_frame_cnt 0, coded
    # as 1, and exact_match_flag 1. Other counts are intra refresh, where no picture is complete.
    recovery = unit[0] & 31 == 6 and unit[1:2] == b"\x06" and unit[3:4] >= b"\xc0"
    return recovery or _idr(codec, unit)


def nal_units(data: bytes) -> list[bytes]:
    """Return the first bytes of every NAL unit, length-prefixed (mp4) or with start codes.

    The length prefix of a unit of 256 to 511 bytes looks like a start code, so the data counts as
    length-prefixed if and only if the lengths lead exactly to its end.
    """
    units, position = [], 0
    while position + 4 < len(data):
        units.append(data[position + 4 : position + 8])
        position += 4 + int.from_bytes(data[position : position + 4], "big")
    if position == len(data):
        return units
    return [part[:4] for part in data.split(b"\0\0\1")[1:] if part]
