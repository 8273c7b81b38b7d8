"""Facts about codecs and frames that preparing and loading share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IMAGES = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})
VIDEOS = frozenset(
    {"mp4", "webm", "mkv", "avi", "mov", "gif", "m4v", "mpg", "mpeg", "wmv", "ts", "3gp"}
)


CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})
GPU_CODECS = frozenset({"h264", "hevc", "vp9"})
"""What NVDEC of every card since Turing decodes; some decode AV1, too."""
NVDEC_SHORTEST_SIDE = 144
"""Pixels; the largest of the codecs' minima in NVIDIA's NVDEC application note (HEVC, 144 x
144)."""


def dali_reads(row: Mapping[str, Any], codecs: frozenset[str]) -> bool:
    """Whether DALI's decoder reads the clip of an index row exactly: 8-bit 4:2:0 and stored upright
    (DALI does not turn frames)."""
    large = not codecs >= GPU_CODECS or min(row["width"], row["height"]) >= NVDEC_SHORTEST_SIDE
    return (
        row["codec"] in codecs
        and row["pixel_format"] in ("yuv420p", "yuvj420p")
        and not row["rotation"]
        and large
    )


def codec_of(stream: Any) -> str:
    """Name of a stream's codec, not of the decoder that reads it: av1, though libdav1d decodes
    it."""
    return str(stream.codec_context.codec.canonical_name)


def rotation_of(frame: Any) -> int:
    """Degrees clockwise by which a decoded frame must be turned to stand upright, from its display
    matrix: 0, 90, 180 or 270."""
    return -round(getattr(frame, "rotation", 0) or 0) % 360


def idr_packet(codec: str, packet: Any) -> bool:
    """Whether decoding may start at this packet and give exactly the frames of a full decode: IDR
    pictures only for H.264 and HEVC, since after other keyframes leading frames may refer to what
    came before."""
    if not packet.is_keyframe:
        return False
    if codec not in ("h264", "hevc"):
        return True
    return any(_idr(codec, kind) for kind in _nal_kinds(codec, bytes(packet)))


def _idr(codec: str, header: int) -> bool:
    return header & 31 == 5 if codec == "h264" else (header >> 1) & 63 in (19, 20)


def _nal_kinds(codec: str, data: bytes) -> list[int]:
    """First byte of every NAL unit, in length-prefixed (mp4) or start-code (annex B) form. The
    prefix of a unit of 256 to 511 bytes looks like a start code: what counts is whether the lengths
    lead exactly to the end."""
    kinds, position = [], 0
    while position + 4 < len(data):
        kinds.append(data[position + 4])
        position += 4 + int.from_bytes(data[position : position + 4], "big")
    if position == len(data):
        return kinds
    return [part[0] for part in data.split(b"\0\0\1")[1:] if part]
