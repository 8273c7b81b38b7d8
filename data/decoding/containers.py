"""Opens media of unknown origin: the only place that hands a file to FFmpeg.

FFmpeg chooses a demuxer by content, not by name. Some of them open further files
(ffconcat, HLS, image sequences) or sockets (SDP). Images: data/decoding/images.py.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

from allinone.data.decoding.codecs import require_pixels, video_stream

VIDEO_FORMATS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,asf,flv,ogg,ivf,obu,av1,h261,h263,h264,hevc,vc1,"
    "mjpeg,dv,mxf,gxf,nut,nuv,nsv,rm,wtv,ty,pva,gif,apng"
)
IMAGE_FORMATS = (
    "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,gif_pipe,tiff_pipe,j2k_pipe,jpegxl_pipe,"
    "jpegxl_anim,ppm_pipe,pgm_pipe,pbm_pipe,pam_pipe,qoi_pipe"
)
AUDIO_FORMATS = "mp3,wav,aac,flac,ac3,eac3,amr,aiff,au,caf"
"""Opened to report that the file has no pictures."""
FORMATS = f"{VIDEO_FORMATS},{IMAGE_FORMATS},{AUDIO_FORMATS}"
"""FFmpeg's names of demuxers that read one file and nothing else."""

_OPTIONS = {
    "format_whitelist": FORMATS,
    "protocol_whitelist": "none",  # files are read by Python
}


class ByteRange(io.RawIOBase):
    """A range of an open file as a file object with a position of its own.

    Args:
        descriptor: File descriptor; must stay open while this object is used.
        offset: First byte of the range.
        size: Bytes of the range.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._offset = offset
        self._size = size
        self._position = 0
        self.bytes_read = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        wanted = left if size < 0 else min(size, left)
        content = self._read_at(self._offset + self._position, wanted)
        self._position += len(content)
        self.bytes_read += len(content)
        return content

    def _read_at(self, offset: int, size: int) -> bytes:
        # pread has no position to share: other threads read the same shard by this descriptor
        return os.pread(self._descriptor, size, offset)


class _LocalFile(ByteRange):
    """A file that is read in Python, so that read errors and damage are distinguished.

    FFmpeg reports EIO for a storage that fails and for many a file that is cut short. PyAV raises
    what this object raises.
    """

    def __init__(self, path: Path) -> None:
        # O_NONBLOCK: opening a FIFO would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        facts = os.fstat(descriptor)
        super().__init__(descriptor, 0, facts.st_size)
        if not stat.S_ISREG(facts.st_mode):
            self.close()
            raise OSError(errno.EISDIR, "Not a regular file", str(path))

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def open_media(
    content: bytes | Path | io.IOBase, *, fast: bool = False, buffer: int = 0, max_pixels: int = 0
) -> Any:
    """Open a video or image for reading, with the demuxers of FORMATS only.

    Args:
        content: The encoded bytes, the path of a local file, or an open file object.
        fast: Skip FFmpeg's stream analysis, which decodes frames: 20 ms for a 720p file. Only ISO
            files state everything that is needed in their headers.
        buffer: Bytes per read of a file object; 0: PyAV's default.
        max_pixels: Most pixels of a frame, also of one whose size differs from the header's; 0: any
            number.

    Returns:
        PyAV's input container; close it.

    Raises:
        av.error.FFmpegError, ValueError: The file cannot be read, or its format is not in FORMATS.
        PixelLimitError: A picture of its video stream is too large.
        OSError: The storage failed.
    """
    import av

    source: Any = content
    if isinstance(content, Path):
        source = _LocalFile(content)
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
        container = av.open(  # type: ignore[call-overload]  # noqa: TID251
            source, "r", options=options, **arguments
        )
    except av.error.ArgumentError as error:
        raise ValueError(
            "not a video or image that is read; files that refer to other files or to the network"
            " (ffconcat, SDP, playlists) are never opened"
        ) from error
    try:
        _check_stream(container, max_pixels)
    except ValueError:
        container.close()
        raise
    return container


def _check_stream(container: Any, limit: int) -> None:
    """Check an opened file's video stream; see `open_media`."""
    stream = video_stream(container)
    if stream is None:
        return
    context = stream.codec_context
    if context is None:
        raise ValueError("there is no decoder for its video track")
    if not limit:
        return
    require_pixels(context.width or 0, context.height or 0, limit)
    context.options = {**context.options, "max_pixels": str(limit)}
