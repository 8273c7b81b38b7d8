"""Of several video streams the one that the ffmpeg program shows is prepared and read."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from allinone.data.decoding.codecs import CPU_CODECS, GPU_CODECS, dali_reads
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.decoding.gop_trim import TrimmedStream, trim
from allinone.data.prepare.probe import Limits, ProbeError, probe
from tests.data.helpers import prepare_source
from tests.data.media import read_frame_number, write_audio_only, write_video

FRAMES = 24


def cover() -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (300, 300), (200, 20, 20)).save(target, "JPEG")
    return target.getvalue()


def film(folder: Path, side: int = 64, **options: object) -> Path:
    path = folder / f"film{side}.mp4"
    return write_video(path, frames=FRAMES, gop=8, width=side, height=side, **options)  # type: ignore[arg-type]


def still(folder: Path, side: int = 32) -> Path:
    """A second of one picture, whose numbers are not those of the film."""
    path = folder / f"still{side}.mp4"
    return write_video(path, frames=3, rate=1, width=side, height=side, first=900, still=True)


def join(target: Path, parts: Sequence[tuple[Path, Disposition]], with_cover: bool = False) -> Path:
    """Put the streams of several files into one.

    Args:
        target: Its suffix selects the container.
        parts: Files with their streams' disposition, in order.
        with_cover: Add an attached picture as the last stream.

    Returns:
        `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    opened = [av.open(str(path)) for path, _ in parts]
    with av.open(str(target), "w") as output:
        copies = []
        for container, (_, disposition) in zip(opened, parts, strict=True):
            copies.append(output.add_stream_from_template(container.streams[0]))
            copies[-1].disposition = disposition
        picture = None
        if with_cover:
            picture = output.add_stream("mjpeg", rate=25)
            picture.width = picture.height = 300
            picture.pix_fmt = "yuvj420p"
            picture.disposition = Disposition.attached_pic
        packets = [
            (float(packet.dts * packet.time_base), number, packet)
            for number, container in enumerate(opened)
            for packet in container.demux()
            if packet.size
        ]
        for _, number, packet in sorted(packets, key=lambda entry: entry[:2]):
            packet.stream = copies[number]
            output.mux(packet)
        if picture is not None:
            output.mux(
                picture.encode(av.VideoFrame.from_image(Image.new("RGB", (300, 300), "red")))
            )
            output.mux(picture.encode())
    for container in opened:
        container.close()
    return target


def boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, position, size) of the boxes of ISO 14496-12 in a range."""
    while start < end:
        (size,) = struct.unpack_from(">I", content, start)
        yield content[start + 4 : start + 8], start, size
        start += size


def cover_first(folder: Path) -> Path:
    """As tagging programs write it: the cover's box before the tracks, so it is stream 0."""
    path = join(folder / "a.mp4", [(film(folder), Disposition.default)], with_cover=True)
    content = path.read_bytes()
    at, size = next((s, n) for kind, s, n in boxes(content, 0, len(content)) if kind == b"moov")
    parts = [(kind, content[s : s + n]) for kind, s, n in boxes(content, at + 8, at + size)]
    parts.sort(key=lambda part: {b"mvhd": 0, b"udta": 1}.get(part[0], 2))
    body = b"".join(part for _, part in parts)
    path.write_bytes(content[: at + 8] + body + content[at + size :])
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    return path


def attached(folder: Path) -> Path:
    path = folder / "a.mkv"
    with av.open(str(film(folder))) as source, av.open(str(path), "w") as output:
        copy = output.add_stream_from_template(source.streams.video[0])
        output.add_attachment("cover.jpg", "image/jpeg", cover())
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                output.mux(packet)
    return path


NONE, DEFAULT = Disposition(0), Disposition.default


def joined(*parts: tuple[Callable[[Path], Path], Disposition], suffix: str = "mp4") -> Callable:
    return lambda folder: join(
        folder / f"a.{suffix}", [(make(folder), disposition) for make, disposition in parts]
    )


def large(folder: Path) -> Path:
    return film(folder, 96)


def large_still(folder: Path) -> Path:
    return still(folder, 96)


FILES: dict[str, Callable[[Path], Path]] = {
    "cover art first": cover_first,
    "cover art last": lambda folder: join(
        folder / "a.mp4", [(film(folder), DEFAULT)], with_cover=True
    ),
    "cover art in mkv": attached,
    "small still first": joined((still, NONE), (film, DEFAULT)),
    "small still first, mkv": joined((still, NONE), (film, DEFAULT), suffix="mkv"),
    "small still last": joined((film, NONE), (still, NONE)),
    "no default: the larger": joined((still, NONE), (large, NONE), suffix="mkv"),
    "a default before a larger one": joined((large_still, NONE), (film, DEFAULT)),
    "two defaults: the larger": joined((still, DEFAULT), (large, DEFAULT)),
    "equal: the first": joined((film, NONE), (lambda folder: still(folder, 64), NONE)),
}


@pytest.mark.parametrize("name", FILES)
def test_the_stream_that_ffmpeg_shows_is_read(tmp_path: Path, name: str) -> None:
    path = FILES[name](tmp_path)
    content = path.read_bytes()
    columns = probe(content, path.suffix[1:], Limits())
    assert (columns["frames"], columns["codec"], columns["media"]) == (FRAMES, "h264", "video")
    timeline = Timeline.of(columns)
    for source in (content, path):
        shown = [read_frame_number(frame) for frame in decode_frames(source, [1, 13], timeline)]
        assert shown == [1, 13]
    # all frames are wanted, yet the other streams are left out: DALI chooses by itself
    trimmed = trim(content, list(range(FRAMES)), FRAMES, timeline)
    with av.open(io.BytesIO(trimmed.content)) as container:
        assert len(container.streams) == 1
    found = decode_frames(trimmed.content, trimmed.frames)
    assert [read_frame_number(frame) for frame in found] == list(range(FRAMES))


def test_copied_and_encoded_files_show_the_same_stream(tmp_path: Path) -> None:
    lines = ["path,caption"]
    for number, make in enumerate(FILES.values()):
        path = make(tmp_path / str(number))
        lines.append(f"{path.relative_to(tmp_path)},a clip")
    (tmp_path / "my.csv").write_text("\n".join(lines))
    for options in ({}, {"codec": "h264"}):
        out = tmp_path / f"out{len(options)}"
        _, good, bad = prepare_source(tmp_path / "my.csv", out, **options)
        assert bad == {}
        assert [row["frames"] for row in good.values()] == [FRAMES] * len(FILES)


def test_sound_with_cover_art_is_no_video(tmp_path: Path) -> None:
    path = join(
        tmp_path / "song.mp4", [(write_audio_only(tmp_path / "s.m4a"), DEFAULT)], with_cover=True
    )
    with pytest.raises(ProbeError, match="cover art") as error:
        probe(path.read_bytes(), "mp4", Limits(min_frames=1))
    assert error.value.reason == "no_video_track"


def test_avi_with_b_frames_is_not_given_to_dali(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", frames=FRAMES, width=256, height=256)
    columns = probe(path.read_bytes(), "avi", Limits())
    assert not dali_reads(columns, GPU_CODECS)
    assert dali_reads({**columns, "container": "mp4"}, GPU_CODECS)
    shown = decode_frames(path.read_bytes(), [1, 5, 20], Timeline.of(columns))
    assert [read_frame_number(frame) for frame in shown] == [1, 5, 20]
    assert np.all(np.diff(columns["frame_times"] or [0, 1]) >= 0)


def test_frames_of_equal_times_do_not_go_to_dali(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.1, 0.2, 0.3, 0.3, 0.3, 0.4]
    path = write_video(tmp_path / "a.mkv", codec="mjpeg", frames=8)
    target = io.BytesIO()
    with av.open(str(path)) as source, av.open(target, "w", format="matroska") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet, second in zip(packets, times, strict=True):
            packet.pts = packet.dts = round(second / packet.time_base)
            packet.stream = stream
            output.mux(packet)
    content = target.getvalue()
    facts = probe(content, "mkv", Limits())
    assert facts["frames"] == 8
    assert not dali_reads(facts, CPU_CODECS)
    assert dali_reads({**facts, "frame_times": sorted(set(times))}, CPU_CODECS)
    timeline = Timeline.of(facts)
    assert trim(content, [2, 6], 8, timeline) == TrimmedStream(content, (2, 6))
    shown = decode_frames(content, list(range(8)), timeline)
    assert [read_frame_number(frame) for frame in shown] == list(range(8))
