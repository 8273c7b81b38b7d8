"""Videos and images as training wants them: small, quick to decode, few frames between two starting
points.

Sparse sampling decodes a whole GOP to use one frame of it, so GOPs are short and closed. The rate
is constant, the source's own on average. At a constant rate every frame comes out once, in its
place; at a variable one, frames are shown again where the source pauses, and left out where it has
more than the rate holds, so that each moment shows what it showed. Rotation is baked in, colours
become BT.601 in limited range, which is what DALI assumes whatever the file says, and there is no
audio.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from allinone.data.decoding.codecs import rotation_of

CODECS = ("h264", "hevc", "vp9", "mjpeg")
TICKS = 90_000
"""Clock of encoded files, ticks per second: every usual frame rate is exact in it."""
JPEG_QUALITY = 92
TURNS = {90: "transpose=clock", 180: "hflip,vflip", 270: "transpose=cclock"}


@dataclass(frozen=True)
class Encoding:
    """How files are encoded anew."""

    codec: str = "h264"
    """One of CODECS. DALI's CPU decoder reads vp9 and mjpeg, its GPU decoder all of them; h264 and
    hevc are tuned for quick decoding."""
    short_side: int | None = 256
    """Pixels of the shorter side; smaller videos keep their size. None: no video is scaled."""
    gop: int = 25
    """Frames from one keyframe to the next."""

    @property
    def extension(self) -> str:
        """Of the file; one that DALI's demuxer reads."""
        return "mp4"

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Even size with the short side wanted, never larger than the source's."""
        share = min(1.0, (self.short_side or min(width, height)) / min(width, height))
        return max(2, round(width * share / 2) * 2), max(2, round(height * share / 2) * 2)


def _encoder(encoding: Encoding) -> tuple[str, str, dict[str, str]]:
    """(encoder, pixel format, options). One thread each: clips are encoded side by side, and the
    bytes do not depend on the machine's cores."""
    gop = encoding.gop
    keys = f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0"
    return {
        "h264": (
            "libx264",
            "yuv420p",
            {
                "preset": "medium",
                "tune": "fastdecode",
                "crf": "23",
                "x264-params": keys,
                "threads": "1",
            },
        ),
        "hevc": (
            "libx265",
            "yuv420p",
            {
                "preset": "medium",
                "tune": "fastdecode",
                "crf": "26",
                "x265-params": f"{keys}:pools=none:frame-threads=1:log-level=none",
            },
        ),
        # no alternate reference frames: they are packets without a picture, and frames could not be
        # counted by packets
        "vp9": (
            "libvpx-vp9",
            "yuv420p",
            {
                "deadline": "good",
                "cpu-used": "4",
                "crf": "32",
                "b": "0",
                "auto-alt-ref": "0",
                "lag-in-frames": "0",
                "keyint_min": str(gop),
                "threads": "1",
            },
        ),
        "mjpeg": ("mjpeg", "yuvj420p", {"qmin": "3", "qmax": "3", "threads": "1"}),
    }[encoding.codec]


class ClipEncoder:
    """Takes decoded frames in order of display; `finish` gives the file. `rate` is the constant one
    to come, frames per second."""

    def __init__(self, encoding: Encoding, rate: float) -> None:
        self.frames = 0
        """Written so far."""
        self._encoding, self._rate = encoding, rate
        self._target = io.BytesIO()
        self._output: Any = None
        self._stream: Any = None
        self._graph: Any = None
        self._shape: tuple[Any, ...] = ()
        self._size = (0, 0)
        self._first = 0.0
        self._count = 0
        self._before: Any = None

    def add(self, frame: Any) -> None:
        """One frame of the source, to be shown from its time on."""
        if self._output is None:
            self._open(frame)
        moment = (
            float(frame.time) if frame.time is not None else self._first + self._count / self._rate
        )
        place = round((moment - self._first) * self._rate)
        self._count += 1
        if self._before is not None:
            self._show_until(place)
        if place >= self.frames:
            self._before = self._filter(frame)

    def _show_until(self, place: int) -> None:
        while self.frames < place:
            picture = self._before
            picture.pts, picture.time_base, picture.pict_type = (
                round(self.frames * TICKS / self._rate),
                Fraction(1, TICKS),
                0,
            )
            self._output.mux(self._stream.encode(picture))
            self.frames += 1

    def finish(self) -> bytes:
        """The file; empty where no frame came."""
        if self._output is not None:
            self._show_until(self.frames + 1)
            self._output.mux(self._stream.encode())
            self._output.close()
        return self._target.getvalue()

    def _open(self, frame: Any) -> None:
        import av

        name, pixel_format, options = _encoder(self._encoding)
        turned = rotation_of(frame) % 180 != 0
        width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
        self._size = self._encoding.scaled(width, height)
        self._first = float(frame.time or 0.0)
        self._output = av.open(self._target, "w", format=self._encoding.extension)
        self._stream = self._output.add_stream(name, rate=Fraction(25), options=options)
        context = self._stream.codec_context
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = pixel_format
        self._stream.time_base = context.time_base = Fraction(1, TICKS)
        context.gop_size = 1 if self._encoding.codec == "mjpeg" else self._encoding.gop
        context.colorspace = 6  # SMPTE 170M, which is BT.601
        context.color_range = 2 if self._encoding.codec == "mjpeg" else 1

    def _filter(self, frame: Any) -> Any:
        """Upright, scaled, in BT.601."""
        import av

        shape = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if shape != self._shape:  # a source may change its size in mid-stream
            full = self._encoding.codec == "mjpeg"
            width, height = self._size
            steps = [TURNS[rotation]] if (rotation := rotation_of(frame)) else []
            steps.append(
                f"scale={width}:{height}:flags=area:in_color_matrix=auto:out_color_matrix=bt601:out_range={'full' if full else 'limited'}"
            )
            steps.append(f"format={'yuvj420p' if full else 'yuv420p'}")
            graph = av.filter.Graph()
            last = graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=Fraction(1, TICKS),
            )
            for step in ",".join(steps).split(","):
                name, _, arguments = step.partition("=")
                following = graph.add(name, arguments)
                last.link_to(following)
                last = following
            last.link_to(graph.add("buffersink"))
            graph.configure()
            self._graph, self._shape = graph, shape
        frame.pts = self._count
        frame.time_base = Fraction(1, TICKS)
        self._graph.push(frame)
        return self._graph.pull()


def encode_image(content: bytes, short_side: int | None) -> bytes:
    """An image as JPEG with the short side wanted, upright by its EXIF tag; transparency over
    white. As it is where nothing is to be done. Pillow's errors (data.probe.UNREADABLE_IMAGE) where
    it cannot be read."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        small = not short_side or min(upright.size) <= short_side
        if small and image.format == "JPEG" and upright.size == image.size and image.mode == "RGB":
            return content
        if upright.mode in ("RGBA", "LA", "P", "PA"):
            layer = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        picture = upright.convert("RGB")
        if not small:
            width, height = Encoding(short_side=short_side).scaled(*picture.size)
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        target = io.BytesIO()
        picture.save(target, "JPEG", quality=JPEG_QUALITY)
        return target.getvalue()
