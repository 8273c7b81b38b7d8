"""Re-encoding of videos and images for training: small and quick to decode.

Sparse sampling decodes a complete GOP to use one frame of it, so GOPs are short and closed. The
frame rate is constant: the source's average. At a constant source rate every frame occurs once; at
a variable one, frames are repeated during the source's pauses and dropped where it has more than
the rate allows, so that each moment shows what the source shows. Where the clock of a joined
recording jumps, the jump is closed. Frames whose size changes are scaled to the first one's size.
Rotation is applied to the pixels,
colours become BT.601 in limited range, which DALI assumes for every file, and audio is dropped.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from allinone.data.decoding.codecs import has_alpha, over_white, rotation_of

Codec = Literal["h264", "hevc", "vp9", "mjpeg"]
CODECS: tuple[str, ...] = get_args(Codec)
TICKS = 90_000
"""Clock of encoded files, ticks per second: every usual frame rate is exact in it."""
JPEG_QUALITY = 92
Clock = Literal["exact", "joinable", "none"]
"""Times of a source's frames: those of a container; of one that may be joined from several with
`cat`, where frames that are JUMP_S apart follow each other; of one where FFmpeg gives frames the
times of others, so that only the order counts (codecs.times_are_of_frames)."""
JUMP_S = 10.0
"""Seconds between two frames of an MPEG stream that are a jump of the clock, not a pause: ffmpeg's
-dts_delta_threshold."""
ROTATION_FILTERS = {90: "transpose=clock", 180: "hflip,vflip", 270: "transpose=cclock"}
BT601 = 6
"""FFmpeg's AVCOL_SPC_SMPTE170M, which is BT.601."""
LIMITED_RANGE, FULL_RANGE = 1, 2
"""FFmpeg's AVCOL_RANGE_MPEG and AVCOL_RANGE_JPEG."""


@dataclass(frozen=True)
class Encoding:
    """How files are re-encoded."""

    codec: str = "h264"
    """One of CODECS. DALI's CPU decoder reads vp9 and mjpeg, its GPU decoder all of them; h264 and
    hevc are tuned for quick decoding."""
    short_side: int | None = 256
    """Pixels of the shorter side; smaller videos keep their size. None: videos are not scaled."""
    gop: int = 25
    """Frames from one keyframe to the next."""

    @property
    def extension(self) -> str:
        """Extension and container of the file; DALI's demuxer must read it."""
        return "mp4"

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Even (width, height) with the requested short side, never larger than the source."""
        share = min(1.0, (self.short_side or min(width, height)) / min(width, height))
        return max(2, round(width * share / 2) * 2), max(2, round(height * share / 2) * 2)


def _encoder(encoding: Encoding) -> tuple[str, str, dict[str, str]]:
    """(encoder, pixel format, options).

    Encoders run single-threaded: clips are encoded in parallel processes, and the bytes must not
    depend on the machine's number of cores. cpu-independent: the assembly of x264's macroblock tree
    otherwise reads uninitialised memory (with MALLOC_PERTURB_ at 0, 85, 170 and 255, 12 of 12 files
    differed without it and none with it; FFmpeg of PyAV 18.1). x265 reads such memory too where a
    frame is at most 64 pixels wide, whatever its options: HEVC may differ between two runs.
    """
    gop = encoding.gop
    keys = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0"
    if encoding.codec == "mjpeg":
        return "mjpeg", "yuvj420p", {"qmin": "3", "qmax": "3", "threads": "1"}
    if encoding.codec == "vp9":
        options = {
            "deadline": "good",
            "cpu-used": "4",
            "crf": "32",
            "b": "0",
            # Alternate reference frames are packets without a picture: the number of packets would
            # no longer be the number of frames.
            "auto-alt-ref": "0",
            "lag-in-frames": "0",
            "keyint_min": str(gop),
            "threads": "1",
        }
        return "libvpx-vp9", "yuv420p", options
    quick = {"preset": "medium", "tune": "fastdecode"}
    if encoding.codec == "hevc":
        params = f"{keys}:pools=none:frame-threads=1:log-level=none"
        return "libx265", "yuv420p", {**quick, "crf": "26", "x265-params": params}
    params = f"{keys}:cpu-independent=1"
    return "libx264", "yuv420p", {**quick, "crf": "23", "x264-params": params, "threads": "1"}


class ClipEncoder:
    """Encodes decoded frames, given in display order; `finish` returns the file.

    Args:
        encoding: How to encode.
        rate: Constant frame rate of the result, frames per second.
        clock: The times of the source's frames.
    """

    def __init__(self, encoding: Encoding, rate: float, clock: Clock = "exact") -> None:
        self.frames = 0
        """Frames written so far."""
        self._encoding = encoding
        self._rate = rate
        self._clock = clock
        self._full_range = encoding.codec == "mjpeg"
        self._target = io.BytesIO()
        self._output: Any = None
        self._stream: Any = None
        self._graph: Any = None
        self._shape: tuple[Any, ...] = ()
        self._size = (0, 0)
        self._first_s = self._latest_s = 0.0
        self._received = 0
        self._pending: Any = None

    def add(self, frame: Any) -> None:
        """Add a frame of the source, which is shown from its time until the next one's."""
        if self._output is None:
            self._open(frame)
        # files without timestamps: assume the constant rate
        elapsed = self._received / self._rate
        if frame.time is not None and self._clock != "none":
            elapsed = self._elapsed(float(frame.time))
        position = round(elapsed * self._rate)
        self._received += 1
        if self._pending is not None:
            self._repeat_until(position)
        # a later frame of the same period replaces the pending one; one that is out of date is
        # dropped
        if position >= self.frames:
            self._pending = self._filter(frame)

    def _elapsed(self, time_s: float) -> float:
        """Seconds from the first frame to a frame, without jumps of the clock.

        Decoded frames are in the order of display: a time of two frames ago begins another
        recording. Smaller steps back are jitter.
        """
        step = time_s - self._latest_s
        longest_s = JUMP_S if self._clock == "joinable" else math.inf
        if step < -2 / self._rate or step > longest_s:
            self._first_s += step - 1 / self._rate
        self._latest_s = time_s
        return time_s - self._first_s

    def _repeat_until(self, position: int) -> None:
        """Write the pending frame until the file has `position` frames."""
        while self.frames < position:
            picture = self._pending
            picture.pts = round(self.frames * TICKS / self._rate)
            picture.time_base = Fraction(1, TICKS)
            picture.pict_type = 0  # the encoder decides, not the source
            self._output.mux(self._stream.encode(picture))
            self.frames += 1

    def finish(self) -> bytes:
        """Return the file; empty if no frame was added."""
        if self._output is not None:
            # the last frame has no successor: write it once
            self._repeat_until(self.frames + 1)
            self._output.mux(self._stream.encode())
            self._output.close()
        return self._target.getvalue()

    def _open(self, frame: Any) -> None:
        import av

        name, pixel_format, options = _encoder(self._encoding)
        width, height = frame.width, frame.height
        if rotation_of(frame) % 180:
            width, height = height, width
        self._size = self._encoding.scaled(width, height)
        self._first_s = self._latest_s = float(frame.time or 0.0)
        self._output = av.open(  # noqa: TID251
            self._target, "w", format=self._encoding.extension
        )
        # The rate is nominal: every frame has its own time, in TICKS.
        self._stream = self._output.add_stream(name, rate=Fraction(25), options=options)
        context = self._stream.codec_context
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = pixel_format
        self._stream.time_base = context.time_base = Fraction(1, TICKS)
        context.gop_size = 1 if self._encoding.codec == "mjpeg" else self._encoding.gop
        context.colorspace = BT601
        context.color_range = FULL_RANGE if self._full_range else LIMITED_RANGE

    def _filter(self, frame: Any) -> Any:
        """The frame upright, scaled, and in BT.601."""
        rotation = rotation_of(frame)
        if has_alpha(frame.format):
            frame = over_white(frame)
        facts = (frame.format.name, frame.colorspace, frame.color_range, rotation)
        shape = (frame.width, frame.height, *facts)
        if shape != self._shape:  # a source may change its size in mid-stream
            self._graph = self._filter_graph(frame, rotation)
            self._shape = shape
        # Only the order counts inside the graph; `_repeat_until` sets the real time.
        frame.pts = self._received
        frame.time_base = Fraction(1, TICKS)
        # All filters give one frame per frame, so `pull` never finds the graph empty.
        self._graph.push(frame)
        return self._graph.pull()

    def _filter_graph(self, frame: Any, rotation: int) -> Any:
        import av

        width, height = self._size
        colours = "in_color_matrix=auto:out_color_matrix=bt601"
        output_range = "full" if self._full_range else "limited"
        # area: averages all source pixels of a target pixel, so shrinking does not alias
        steps = [
            f"scale={width}:{height}:flags=area:{colours}:out_range={output_range}",
            f"format={'yuvj420p' if self._full_range else 'yuv420p'}",
        ]
        if rotation >= 360:  # mirrored after the rotation
            steps = ["hflip", *steps]
        if rotation % 360:
            steps = [*ROTATION_FILTERS[rotation % 360].split(","), *steps]
        graph = av.filter.Graph()
        last = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=Fraction(1, TICKS),
        )
        for step in steps:
            name, _, arguments = step.partition("=")
            following = graph.add(name, arguments)
            last.link_to(following)
            last = following
        last.link_to(graph.add("buffersink"))
        graph.configure()
        return graph


def encode_image(content: bytes, short_side: int | None) -> bytes:
    """Encode an image as JPEG: upright by its EXIF tag, scaled, transparency over white.

    Args:
        content: The file.
        short_side: Pixels of the shorter side, if the image is larger; None: not scaled.

    Returns:
        The JPEG; `content` itself if nothing has to be changed.

    Raises:
        OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError: The image cannot be
            read (images.UNREADABLE_IMAGE).
    """
    from PIL import Image

    from allinone.data.decoding.images import open_image, orientation, upright_rgb

    with open_image(content) as image:
        small = not short_side or min(image.size) <= short_side
        # a half turn stays: readers apply it, and folders of earlier versions have it
        if (
            small
            and image.format == "JPEG"
            and image.mode == "RGB"
            and orientation(image) in (1, 3)
        ):
            return content
        picture = upright_rgb(image)
        if not small:
            size = Encoding(short_side=short_side).scaled(*picture.size)
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        target = io.BytesIO()
        picture.save(target, "JPEG", quality=JPEG_QUALITY)
        return target.getvalue()
