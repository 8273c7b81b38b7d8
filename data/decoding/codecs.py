"""Facts about codecs and image formats that preparing and loading share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})
VIDEOS = frozenset(
    {"mp4", "webm", "mkv", "avi", "mov", "gif", "m4v", "mpg", "mpeg", "wmv", "ts", "3gp"}
)
IMAGE_MAGIC = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"GIF8": "gif",
}
"""First bytes of image files → extension."""

CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
"""Codecs that DALI decodes on the CPU."""
GPU_CODECS = frozenset({"h264", "hevc", "vp9"})
"""Codecs that NVDEC decodes on every card since Turing; some cards also decode AV1."""
NVDEC_SHORTEST_SIDE = 144
"""Pixels; the largest of the codecs' minima in NVIDIA's NVDEC application note (HEVC's)."""


def image_extension(content: bytes, extension: str) -> str:
    """Return the extension that the first bytes of an image file imply.

    Downloaders guess names: many a `.jpg` of a web-scale data set is a PNG, a WebP or a GIF.

    Args:
        content: The file's content, or at least its first four bytes.
        extension: The extension of the file's name, lower case, without a dot.

    Returns:
        `extension` itself for videos and for images whose first bytes are unknown.
    """
    if extension not in IMAGES:
        return extension
    kinds = (kind for magic, kind in IMAGE_MAGIC.items() if content.startswith(magic))
    return next(kinds, extension)


def dali_reads(row: Mapping[str, Any], codecs: frozenset[str]) -> bool:
    """Return whether DALI's decoder reproduces the clip of an index row exactly.

    That takes 8-bit 4:2:0 frames that are stored upright: DALI ignores the display matrix.
    """
    # only NVDEC has a minimum size
    large = not codecs >= GPU_CODECS or min(row["width"], row["height"]) >= NVDEC_SHORTEST_SIDE
    return (
        row["codec"] in codecs
        and row["pixel_format"] in ("yuv420p", "yuvj420p")
        and not row["rotation"]
        and large
    )


def codec_of(stream: Any) -> str:
    """Return the name of a stream's codec rather than of its decoder: av1, not libdav1d."""
    return str(stream.codec_context.codec.canonical_name)


def rotation_of(frame: Any) -> int:
    """Return the clockwise rotation in degrees (0, 90, 180, 270) that turns a frame upright."""
    return -round(getattr(frame, "rotation", 0) or 0) % 360


def idr_packet(codec: str, packet: Any) -> bool:
    """Return whether decoding from this packet gives exactly the frames of a full decode.

    For H.264 and HEVC only IDR pictures qualify: leading frames after other keyframes may refer to
    frames before them.
    """
    if not packet.is_keyframe:
        return False
    if codec not in ("h264", "hevc"):
        return True
    return any(_idr(codec, header) for header in nal_headers(bytes(packet)))


def _idr(codec: str, header: int) -> bool:
    # H.264: low 5 bits, nal_unit_type 5; HEVC: bits 1 to 6, IDR_W_RADL (19) and IDR_N_LP (20).
    # Not CRA (21): its leading pictures may refer to frames before it.
    return header & 31 == 5 if codec == "h264" else (header >> 1) & 63 in (19, 20)


def nal_headers(data: bytes) -> list[int]:
    """Return the first byte of every NAL unit, length-prefixed (mp4) or with start codes (annex B).

    The length prefix of a unit of 256 to 511 bytes looks like a start code, so the data counts as
    length-prefixed if and only if the lengths lead exactly to its end.
    """
    headers, position = [], 0
    while position + 4 < len(data):
        headers.append(data[position + 4])
        position += 4 + int.from_bytes(data[position : position + 4], "big")
    if position == len(data):
        return headers
    return [part[0] for part in data.split(b"\0\0\1")[1:] if part]
