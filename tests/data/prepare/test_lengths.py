"""Frames are counted as they are shown; a clip is truncated only if its end is missing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest

from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.decoding.gop_trim import trim
from allinone.data.decoding.segment import ByteRange, read_segment
from allinone.data.prepare.probe import Limits, ProbeError, probe, probe_packets
from tests.data.helpers import prepare_source
from tests.data.media import read_frame_number, write_video

STILL_SCREEN = [
    *(k / 30 for k in range(60)),
    *(2 + k / 2 for k in range(1, 21)),
    *(12 + k / 30 for k in range(1, 31)),
]
"""A screen recording, seconds: motion, then a frame every half second, then motion again."""


def set_edit_list(path: Path, start: int, frames: int) -> Path:
    """Show only a part of an mp4 of 12 frames per second, as `ffmpeg -ss -t -c copy` leaves it.

    Args:
        path: A file with B-frames, so that FFmpeg has written an edit list.
        start: First frame that is shown.
        frames: Frames that are shown.

    Returns:
        `path`.
    """
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        ticks = round(1 / container.streams.video[0].time_base)
        delay = -min(packet.dts for packet in container.demux(video=0) if packet.dts is not None)
    clock_at = content.index(b"mvhd") + 4 + 12
    (clock,) = struct.unpack_from(">I", content, clock_at)
    # ISO 14496-12, box elst of version 0: version and flags, entries, duration, media time, rate
    entry = content.index(b"elst") + 4 + 8
    struct.pack_into(">II", content, entry, frames * clock // 12, start * ticks // 12 + delay)
    path.write_bytes(content)
    return path


def retime(source: Path, target: Path, shift_s: float = 0.0, **options: str) -> Path:
    """Copy the packets of a video into another container.

    Args:
        source: The video.
        target: Its suffix selects the container.
        shift_s: Added to all times.
        options: Of the muxer.

    Returns:
        `target`.
    """
    with av.open(str(source)) as container, av.open(str(target), "w", options=options) as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.size:
                ticks = round(Fraction(shift_s) / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = copy
                output.mux(packet)
    return target


def late(folder: Path, suffix: str) -> Path:
    source = write_video(folder / "s.mp4", frames=48)
    return retime(source, folder / f"late.{suffix}", 100_000.0, avoid_negative_ts="disabled")


def fragmented(folder: Path) -> Path:
    source = write_video(folder / "s.mp4", frames=48)
    return retime(source, folder / "f.mp4", movflags="frag_keyframe+empty_moov")


def without_duration(folder: Path) -> Path:
    """As browsers record: neither the segment's size nor the duration is known."""
    path = write_video(folder / "live.webm", codec="libvpx", times=STILL_SCREEN, frames=110)
    content = bytearray(path.read_bytes())
    at = content.index(b"\x18S\x80g") + 4
    content[at : at + 8] = b"\x01" + b"\xff" * 7
    at = content.index(b"\x44\x89\x88")  # the element Duration becomes a Void
    content[at : at + 3] = b"\xec\x40\x08"
    path.write_bytes(content)
    return path


def held(folder: Path) -> Path:
    """A recording whose last frame is shown for nine tenths of the time."""
    path = write_video(folder / "held.mkv", frames=12)
    content = bytearray(path.read_bytes())
    struct.pack_into(">d", content, content.index(b"\x44\x89\x88") + 3, 10_000.0)
    path.write_bytes(content)
    return path


def screen(codec: str, suffix: str) -> Callable[[Path], Path]:
    return lambda folder: write_video(
        folder / f"screen.{suffix}", codec=codec, times=STILL_SCREEN, frames=110, gop=30
    )


def cut(start: int, frames: int, suffix: str = "mp4") -> Callable[[Path], Path]:
    return lambda folder: set_edit_list(
        write_video(folder / f"cut.{suffix}", frames=132, gop=100), start, frames
    )


GOOD: dict[str, tuple[Callable[[Path], Path], int, int]] = {
    "edit list": (cut(25, 52), 25, 52),
    "edit list from a keyframe": (cut(100, 30), 100, 30),
    "edit list over a keyframe": (cut(80, 52), 80, 52),
    "edit list that ends early": (cut(0, 20), 0, 20),
    "edit list in mov": (cut(60, 20, "mov"), 60, 20),
    "variable rate, vp9 webm": (screen("libvpx-vp9", "webm"), 0, 110),
    "variable rate, vp8 webm": (screen("libvpx", "webm"), 0, 110),
    "variable rate, mkv": (screen("libx264", "mkv"), 0, 110),
    "variable rate, ts": (screen("libx264", "ts"), 0, 110),
    "variable rate, mp4": (screen("libx264", "mp4"), 0, 110),
    "variable rate, mov": (screen("libx265", "mov"), 0, 110),
    "without duration": (without_duration, 0, 110),
    "last frame held": (held, 0, 12),
    "late mkv": (lambda folder: late(folder, "mkv"), 0, 48),
    "late ts": (lambda folder: late(folder, "ts"), 0, 48),
    "late mov": (lambda folder: late(folder, "mov"), 0, 48),
    "B-frames in avi": (lambda folder: write_video(folder / "b.avi", frames=48), 0, 48),
    "MPEG-4 B-frames in avi": (
        lambda folder: write_video(folder / "b.avi", codec="mpeg4", frames=48, b_frames=2),
        0,
        48,
    ),
    "B-frames in flv": (lambda folder: write_video(folder / "b.flv", frames=48), 0, 48),
    "MPEG-1 program stream": (
        lambda folder: write_video(folder / "a.mpg", codec="mpeg1video", rate=25, frames=60),
        0,
        60,
    ),
    "MPEG-2 program stream": (
        lambda folder: write_video(folder / "a.vob", codec="mpeg2video", rate=25, frames=60),
        0,
        60,
    ),
    "fragments": (fragmented, 0, 48),
}
"""What → (writer, number of the first frame shown, frames shown)."""


@pytest.mark.parametrize("name", GOOD)
def test_every_shown_frame_is_counted_and_found(tmp_path: Path, name: str) -> None:
    make, first, frames = GOOD[name]
    path = make(tmp_path)
    content = path.read_bytes()
    columns = probe(content, path.suffix[1:], Limits())
    assert columns["frames"] == frames
    timeline = Timeline.of(columns)
    wanted = [0, 1, frames // 3, frames // 2, frames - 2, frames - 1]
    shown = [read_frame_number(frame) for frame in decode_frames(content, wanted, timeline)]
    assert shown == [first + number for number in wanted]
    # the trimmed stream holds the same frames where DALI would count them
    trimmed = trim(content, wanted, frames, timeline)
    with av.open(path) as container:
        hidden = any(packet.is_discard for packet in container.demux(video=0))
    if trimmed.content is not content or not hidden:
        found = decode_frames(trimmed.content, trimmed.frames)
        assert [read_frame_number(frame) for frame in found] == shown
    packets = probe_packets(content, path.suffix[1:], Limits())
    assert packets is None or packets == columns


@pytest.mark.parametrize("options", [{}, {"codec": "h264"}], ids=["copied", "encoded"])
def test_clips_of_real_recorders_are_prepared(tmp_path: Path, options: dict[str, str]) -> None:
    lines = ["path,caption"]
    for number, (make, _, _) in enumerate(GOOD.values()):
        path = make(tmp_path / str(number))
        lines.append(f"{path.relative_to(tmp_path)},a clip")
    (tmp_path / "my.csv").write_text("\n".join(lines))
    _, good, bad = prepare_source(tmp_path / "my.csv", tmp_path / "out", **options)
    assert bad == {}
    assert len(good) == len(GOOD)


def test_hidden_packets_are_trimmed_with_their_frames(tmp_path: Path) -> None:
    """DALI would count them: the start of the GOP goes along, and the numbers follow."""
    content = cut(25, 52)(tmp_path).read_bytes()
    timeline = Timeline.of(probe(content, "mp4", Limits()))
    trimmed = trim(content, [0, 30], 52, timeline)
    assert trimmed.content != content
    assert trimmed.frames == (25, 55)
    with av.open(tmp_path / "cut.mp4") as container:
        assert any(packet.is_discard for packet in container.demux(video=0))


def test_a_segment_of_a_late_file_is_read(tmp_path: Path) -> None:
    path = retime(
        write_video(tmp_path / "s.mp4", frames=96, gop=12),
        tmp_path / "late.mkv",
        100_000.0,
        avoid_negative_ts="disabled",
    )
    timeline = Timeline.of(probe(path.read_bytes(), "mkv", Limits()))
    with path.open("rb") as file:
        video = ByteRange(file.fileno(), 0, path.stat().st_size)
        segment = read_segment(video, [40, 45], 96, timeline)
    assert segment is not None
    shown = decode_frames(segment.content, segment.numbers([40, 45]), segment.timeline)
    assert [read_frame_number(frame) for frame in shown] == [40, 45]


def test_ten_hours_are_too_long_wherever_they_start(tmp_path: Path) -> None:
    path = late(tmp_path, "mkv")
    content = bytearray(path.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3
    struct.pack_into(">d", content, at, (100_000 + 36_000) * 1e3)
    with pytest.raises(ProbeError, match="36000 s by its header") as error:
        probe(bytes(content), "mkv", Limits())
    assert error.value.reason == "too_long"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
@pytest.mark.parametrize(
    ("codec", "suffix", "audio"),
    [
        ("libvpx", "webm", False),
        ("libvpx-vp9", "webm", False),
        ("libx264", "mkv", False),
        ("libx264", "mkv", True),
        ("mjpeg", "avi", False),
        ("mjpeg", "mov", False),
        ("libx264", "flv", False),
    ],
)
def test_an_interrupted_download_is_refused(
    tmp_path: Path, codec: str, suffix: str, audio: bool, share: float
) -> None:
    path = write_video(tmp_path / f"a.{suffix}", codec=codec, frames=60, audio=audio)
    content = path.read_bytes()
    assert probe(content, suffix, Limits())["frames"] == 60
    with pytest.raises(ProbeError) as error:
        probe(content[: int(share * len(content))], suffix, Limits())
    assert error.value.reason in ("truncated", "undecodable")


def test_a_cut_mp4_with_its_index_in_front_is_refused(tmp_path: Path) -> None:
    source = write_video(tmp_path / "s.mp4", frames=120)
    content = retime(source, tmp_path / "web.mp4", movflags="faststart").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    for share in (0.5, 0.8):
        with pytest.raises(ProbeError) as error:
            probe(content[: int(share * len(content))], "mp4", Limits())
        assert error.value.reason in ("truncated", "undecodable")
