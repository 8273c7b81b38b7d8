"""Opens media of unknown origin: the only place that hands a file to FFmpeg or Pillow.

FFmpeg chooses a demuxer by content, whatever the name of the file. Some of them open further files
(ffconcat, HLS, image sequences) or sockets (SDP). Pillow's EPS reader starts Ghostscript.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

VIDEO_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,asf,flv,ogg,ivf,obu,av1,h261,h263,h264,hevc,vc1,"
    "mjpeg,dv,mxf,gxf,nut,nuv,nsv,rm,wtv,ty,pva,gif,apng"
)
IMAGE_FORMATS = (
    "image2,jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,gif_pipe,tiff_pipe,j2k_pipe,jpegxl_pipe,"
    "jpegxl_anim,ppm_pipe,pgm_pipe,pbm_pipe,pam_pipe,qoi_pipe"
)
AUDIO_FORMATS = "mp3,wav,aac,flac,ac3,eac3,amr,aiff,au,caf"
"""Opened to report that the file has no pictures."""
FORMATS = f"{VIDEO_FORMATS},{IMAGE_FORMATS},{AUDIO_FORMATS}"
"""FFmpeg's names of demuxers that read one file and nothing else."""
PILLOW_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JPEG2000")

_OPTIONS = {
    "format_whitelist": FORMATS,
    "protocol_whitelist": "file",
    # image2, which FFmpeg selects for paths of images, otherwise takes %03d or * in a file's name
    # for a pattern and reads other files
    "pattern_type": "none",
}


def open_media(content: bytes | Path | io.IOBase, *, fast: bool = False, buffer: int = 0) -> Any:
    """Open a video or image for reading, with the demuxers of FORMATS only.

    Args:
        content: The encoded bytes, the path of a local file, or an open file object.
        fast: Skip FFmpeg's stream analysis, which decodes frames: 20 ms for a 720p file. Only ISO
            files state everything that is needed in their headers.
        buffer: Bytes per read of a file object; 0: PyAV's default.

    Returns:
        PyAV's input container; close it.

    Raises:
        av.error.FFmpegError, ValueError: The file cannot be read, or its format is not in FORMATS.
        OSError: The storage failed.
    """
    import av

    source: Any = content
    if isinstance(content, Path):
        source = f"file:{content}"  # "concat:a" would be a protocol of FFmpeg
    elif isinstance(content, bytes):
        source = io.BytesIO(content)
    options, arguments = dict(_OPTIONS), {}
    if fast:
        # 32 bytes is FFmpeg's smallest probesize; with skip_frame its analysis decodes none of the
        # few packets that it reads nevertheless.
        options["probesize"] = "32"
        arguments["stream_options"] = [{"skip_frame": "all"}]
    if buffer:
        arguments["buffer_size"] = buffer  # type: ignore[assignment]
    try:
        return av.open(  # type: ignore[call-overload]  # noqa: TID251
            source, "r", options=options, **arguments
        )
    except av.error.ArgumentError as error:
        raise ValueError(
            "not a video or image that is read; files that refer to other files or to the network"
            " (ffconcat, SDP, playlists) are never opened"
        ) from error


def open_image(content: bytes) -> Image:
    """Open an image with Pillow, in PILLOW_FORMATS only; raises probe.UNREADABLE_IMAGE."""
    from PIL import Image

    Image.init()  # registers all formats; without it Pillow does so only for its five usual ones
    formats = [name for name in PILLOW_FORMATS if name in Image.OPEN]  # AVIF may not be built in
    return Image.open(io.BytesIO(content), formats=formats)  # noqa: TID251
