"""Small unusual videos for tests, made with PyAV.

The pixels of every frame encode its number, so that a test knows WHICH frame was decoded. A frame
is a grid of 4 x 4 cells, dark or bright: 12 bits of the number, then 4 check bits, which black and
white frames never satisfy, and wrongly rotated ones rarely (one in 16). `read_frame_number` needs
the complete frame, at any scale.

    path = write_video(tmp_path / "a.mp4", codec="libx264", frames=50, gop=12, open_gop=True)
    assert read_frame_number(rgb_frames(path)[17]) == 17
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

GRID = 4
DARK, BRIGHT = 40, 215
TICKS = 90000
"""Clock of files with given frame times, ticks per second."""


def _bits(number: int) -> list[int]:
    if not 0 <= number < 4096:
        raise ValueError(f"frame number {number} does not fit in 12 bits")
    check = (number + (number >> 4) + (number >> 8) + 5) & 15
    return [(number >> i) & 1 for i in range(12)] + [(check >> i) & 1 for i in range(4)]


def frame_array(number: int, width: int = 64, height: int = 64) -> NDArray[np.uint8]:
    """RGB image [height, width, 3] that encodes `number` (0..4095)."""
    cells = np.array(_bits(number), dtype=bool).reshape(GRID, GRID)
    rows = np.arange(height) * GRID // height
    columns = np.arange(width) * GRID // width
    luma = np.where(cells[rows[:, None], columns[None, :]], BRIGHT, DARK).astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=-1)


def read_frame_number(rgb: NDArray[np.generic]) -> int:
    """Number encoded by a frame [height, width, 3] of values 0..255.

    Raises ValueError if the check bits disagree.
    """
    gray = np.asarray(rgb, dtype=np.float64).mean(axis=-1)
    height, width = gray.shape
    bits = []
    for cell in range(GRID * GRID):
        row, column = divmod(cell, GRID)
        top, bottom = (row + 0.3) * height / GRID, (row + 0.7) * height / GRID
        left, right = (column + 0.3) * width / GRID, (column + 0.7) * width / GRID
        rows = slice(int(top), max(int(bottom), int(top) + 1))
        columns = slice(int(left), max(int(right), int(left) + 1))
        bits.append(int(gray[rows, columns].mean() > (DARK + BRIGHT) / 2))
    number = sum(bit << i for i, bit in enumerate(bits[:12]))
    if bits != _bits(number):
        raise ValueError(f"not a frame of these tests, or a damaged one: the cells read {bits}")
    return number


def rgb_frames(path: Path) -> list[NDArray[np.uint8]]:
    """All frames of a file in display order, as RGB [height, width, 3], not rotated."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@contextmanager
def _same_priority() -> Iterator[None]:
    """Restore the scheduling policy after encoding.

    If permitted, SVT-AV1 4.1 gives the calling thread, and all threads that it starts later, the
    highest real-time priority: one that spins would then block the machine.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_video(
    path: Path,
    *,
    frames: int = 24,
    codec: str = "libx264",
    rate: int = 12,
    width: int = 64,
    height: int = 64,
    gop: int = 12,
    open_gop: bool = False,
    b_frames: int = 2,
    pixel_format: str | None = None,
    times: Sequence[float] | None = None,
    audio: bool = False,
    first: int = 0,
    still: bool = False,
    x264: str = "",
) -> Path:
    """Write a video whose frame i encodes the number `first` + i.

    Args:
        path: The file; its suffix selects the container.
        frames: Number of frames.
        codec: FFmpeg's name of the encoder.
        rate: Frames per second.
        width: Pixels.
        height: Pixels.
        gop: Frames from keyframe to keyframe.
        open_gop: Make recovery-point I-frames (x264) or CRA pictures (x265), not IDR frames.
        b_frames: B-frames in a row, for x264 and x265.
        pixel_format: None: the usual one of the codec.
        times: Each frame's time in seconds, for a variable frame rate.
        audio: Add a sound track.
        first: Number of the first frame.
        still: Repeat the first frame.
        x264: Further parameters of x264.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = _codec_options(codec, gop, open_gop, b_frames, x264)
    formats = {"mjpeg": "yuvj420p", "gif": "rgb8", "png": "rgb24"}
    clock = Fraction(1, rate) if times is None else Fraction(1, TICKS)
    with _same_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = pixel_format or formats.get(codec, "yuv420p")
        stream.codec_context.time_base = clock
        if codec not in ("mjpeg", "gif", "png"):
            stream.codec_context.gop_size = gop
        sound = container.add_stream("aac", rate=16000) if audio else None
        for i in range(frames):
            if not still or i == 0:
                frame = av.VideoFrame.from_ndarray(
                    frame_array(first + i, width, height), format="rgb24"
                )
            frame.pts = i if times is None else round(times[i] * TICKS)
            frame.time_base = clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _write_sound(container, sound, max(1.0, frames / rate))
    return path


def _codec_options(
    codec: str, gop: int, open_gop: bool, b_frames: int, x264: str
) -> dict[str, str]:
    keys = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={b_frames}:open-gop={int(open_gop)}"
    if codec == "libx264":
        params = f"{keys}:b-pyramid=none:{x264}"
        return {"preset": "ultrafast", "x264-params": params, "threads": "1"}
    if codec == "libx265":
        params = f"{keys}:pools=none:frame-threads=1:log-level=none"
        return {"preset": "ultrafast", "x265-params": params}
    if codec == "mpeg4" and b_frames:
        return {"bf": str(b_frames)}
    if codec in ("libvpx", "libvpx-vp9"):
        return {
            "deadline": "realtime",
            "cpu-used": "8",
            "threads": "1",
            "keyint_min": str(gop),
            "lag-in-frames": "0",
        }
    return {}


def _write_sound(
    container: av.container.OutputContainer, stream: av.AudioStream, seconds: float
) -> None:
    samples = (np.sin(np.arange(int(16000 * seconds)) * 0.1) * 0.2).astype(np.float32)
    for start in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(
            samples[None, start : start + 1024], format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_audio_only(path: Path, seconds: float = 1.0) -> Path:
    """A file with a sound track and no pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        _write_sound(container, container.add_stream("aac", rate=16000), seconds)
    return path


Matrix = tuple[int, int, int, int]
"""(a, b, c, d) of a display matrix: a pixel (x, y) is shown at (a x + c y, b x + d y)."""


def write_oriented(path: Path, matrix: Matrix, **options: Any) -> Path:
    """An mp4 or mov with a display matrix.

    Args:
        path: The file.
        matrix: Of ISO 14496-12, without translation.
        options: As for `write_video`.

    Returns:
        `path`.
    """
    write_video(path, **options)
    a, b, c, d = (value << 16 for value in matrix)
    content = bytearray(path.read_bytes())
    # ISO 14496-12, box tkhd of version 0: the 3 x 3 matrix (a b u / c d v / x y w) begins 40 bytes
    # after the box's type
    start = content.index(b"tkhd") + 4 + 40
    if content[start - 40] != 0:
        raise AssertionError("the muxer wrote a tkhd box of version 1")
    struct.pack_into(">9i", content, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def write_rotated(path: Path, degrees: int, **options: int) -> Path:
    """An mp4 whose display matrix rotates its frames clockwise by 90, 180 or 270 degrees."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    return write_oriented(path, (cosine, sine, -sine, cosine), **options)


def write_long_by_metadata(path: Path, hours: float = 10.0) -> Path:
    """A webm of a few frames whose header claims `hours`, like a ten-hour video's header."""
    write_video(path, codec="libvpx", frames=4, gop=4)
    content = bytearray(path.read_bytes())
    # Matroska element Duration (id 44 89, size 8): a double in milliseconds
    position = content.index(b"\x44\x89\x88") + 3
    struct.pack_into(">d", content, position, hours * 3600e3)
    path.write_bytes(content)
    return path


def write_html(path: Path) -> Path:
    """An error page saved under a video's name, as downloaders do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "<!DOCTYPE html>\n<html><head><title>403"
        " Forbidden</title></head><body>Forbidden</body></html>\n" * 20
    )
    return path


def write_empty(path: Path) -> Path:
    """A zero-length file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def truncate(path: Path, share: float = 0.6) -> Path:
    """Cut a file to `share` of its length, as an interrupted download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def corrupt(
    path: Path, *, seed: int = 0, share: float = 0.02, start: float = 0.3, stop: float = 0.9
) -> Path:
    """Overwrite some bytes with random ones.

    Args:
        path: The file.
        seed: Determines the bytes.
        share: Share of the bytes between the two positions.
        start: Relative position in the file.
        stop: Relative position in the file.

    Returns:
        `path`.
    """
    content = bytearray(path.read_bytes())
    generator = np.random.default_rng(seed)
    low, high = int(len(content) * start), int(len(content) * stop)
    for position in generator.integers(low, high, size=max(1, int((high - low) * share))):
        content[position] = int(generator.integers(256))
    path.write_bytes(content)
    return path


def write_image(path: Path, number: int = 0, width: int = 64, height: int = 64) -> Path:
    """One image (jpg, png, webp by suffix) that encodes `number`."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame_array(number, width, height)).save(path, quality=95)
    return path


def vfr_times(frames: int) -> list[float]:
    """Strictly rising, clearly irregular times in seconds: steps of 40, 80, 200 and 50 ms."""
    steps = [0.04, 0.08, 0.2, 0.05]
    return [round(sum(steps[j % 4] for j in range(i)), 4) for i in range(frames)]


GOOD: dict[str, Callable[[Path], Path]] = {
    "h264_closed.mp4": lambda path: write_video(path, gop=8),
    "h264_open.mp4": lambda path: write_video(path, gop=8, open_gop=True),
    # x264's defaults: B-frames that others refer to, several references
    "h264_pyramid.mp4": lambda path: write_video(
        path, gop=12, b_frames=3, x264="b-pyramid=normal:ref=4:b-adapt=0:weightp=2"
    ),
    "h264_interlaced.mp4": lambda path: write_video(path, gop=8, x264="interlaced=1:tff=1"),
    "h264.mov": lambda path: write_video(path, gop=8, audio=True),
    "h264.ts": lambda path: write_video(path, gop=8),
    "hevc_closed.mp4": lambda path: write_video(path, codec="libx265", gop=8),
    "hevc_open.mp4": lambda path: write_video(path, codec="libx265", gop=8, open_gop=True),
    "vp9.webm": lambda path: write_video(path, codec="libvpx-vp9"),
    "vp9.mp4": lambda path: write_video(path, codec="libvpx-vp9"),
    "vp8.webm": lambda path: write_video(path, codec="libvpx"),
    "mjpeg.avi": lambda path: write_video(path, codec="mjpeg"),
    "mpeg4.avi": lambda path: write_video(path, codec="mpeg4"),
    "animated.gif": lambda path: write_video(path, codec="gif", rate=10),
    "av1.mp4": lambda path: write_video(path, codec="libsvtav1"),
    "av1.webm": lambda path: write_video(path, codec="libsvtav1"),
    "mpeg2.mpg": lambda path: write_video(path, codec="mpeg2video", rate=25),
    "hevc.mkv": lambda path: write_video(path, codec="libx265", gop=8),
    "h264.mkv": lambda path: write_video(path, gop=8),
    "ten_bit.mp4": lambda path: write_video(path, pixel_format="yuv420p10le"),
    "odd_size.webm": lambda path: write_video(path, codec="libvpx-vp9", width=63, height=45),
    "odd_size.mp4": lambda path: write_video(path, width=63, height=45, pixel_format="yuv444p"),
    "vfr.mp4": lambda path: write_video(path, times=vfr_times(24)),
    "rotated90.mp4": lambda path: write_rotated(path, 90, width=64, height=48),
    "with_sound.mp4": lambda path: write_video(path, audio=True),
}
"""Clips that must be prepared as good ones, by file name: 24 frames each."""

BAD: dict[str, tuple[Callable[[Path], Path], frozenset[str]]] = {
    "empty.mp4": (write_empty, frozenset({"empty_file"})),
    "page.mp4": (write_html, frozenset({"not_a_video"})),
    "sound.mp4": (write_audio_only, frozenset({"no_video_track"})),
    "one_frame.mp4": (lambda path: write_video(path, frames=1), frozenset({"too_few_frames"})),
    "ten_hours.webm": (write_long_by_metadata, frozenset({"too_long"})),
    "cut_vp9.webm": (
        lambda path: truncate(write_video(path, codec="libvpx-vp9", frames=48)),
        frozenset({"truncated"}),
    ),
    "cut_h264.mp4": (
        lambda path: truncate(write_video(path, frames=48)),
        frozenset({"undecodable", "truncated"}),
    ),
    "broken_h264.mp4": (
        lambda path: corrupt(write_video(path, frames=48), share=0.1),
        frozenset({"undecodable", "truncated"}),
    ),
    "broken_vp9.webm": (
        lambda path: corrupt(write_video(path, codec="libvpx-vp9", frames=48), share=0.1),
        frozenset({"undecodable", "truncated"}),
    ),
}
"""Clips that must be refused: writer and the acceptable reasons."""
