"""Frames of a long video come from the segment that holds them, and equal a full decode."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.decoding.segment import ByteRange, read_segment
from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.probe import Limits, probe
from allinone.data.prepare.worker import reencode
from tests.data.media import read_frame_number, vfr_times, write_video


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"gop": 12}),
        ("b.mp4", {"codec": "libx265", "gop": 12}),
        ("c.webm", {"codec": "libvpx-vp9", "gop": 12}),
        ("d.webm", {"codec": "libvpx", "gop": 12}),
        ("e.mkv", {"gop": 12}),
        ("f.mp4", {"gop": 12, "times": vfr_times(480)}),
    ],
)
def test_a_segment_has_the_frames_and_little_else_is_read(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    path = write_video(
        tmp_path / name, frames=480, width=160, height=120, audio=name == "a.mp4", **options
    )  # type: ignore[arg-type]
    content = path.read_bytes()
    facts = probe(content, path.suffix[1:], Limits())
    assert facts["keyframes"] == list(range(0, 480, 12)), "IDR pictures of every size are found"
    timeline = Timeline(facts["keyframes"], facts["frame_times"], facts["frame_rate"])
    (tmp_path / "shard").write_bytes(b"x" * 1000 + content + b"y" * 1000)
    descriptor = os.open(tmp_path / "shard", os.O_RDONLY)
    try:
        for wanted in ((240, 247, 251), (3, 20, 40), (475, 478, 479), (13, 13, 14)):
            region = ByteRange(descriptor, 1000, len(content))
            segment = read_segment(region, wanted, 480, timeline)
            assert segment is not None
            assert segment.first == timeline.start(wanted[0])
            assert segment.frames <= wanted[-1] - wanted[0] + 24
            assert len(segment.content) < 0.4 * len(content)
            numbers = [number - segment.first for number in wanted]
            frames = decode_frames(segment.content, numbers, segment.timeline)
            assert tuple(read_frame_number(frame) for frame in frames) == wanted
        assert (
            read_segment(ByteRange(descriptor, 1000, len(content)), (0, 240, 479), 480, timeline)
            is None
        ), "all of it is needed"
    finally:
        os.close(descriptor)


def test_files_that_cannot_be_cut_give_no_segment(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 40)
    descriptor = os.open(tmp_path / "noise", os.O_RDONLY)
    assert (
        read_segment(
            ByteRange(descriptor, 0, 10_240), (50,), 100, Timeline((0, 40, 80), None, 25.0)
        )
        is None
    )
    os.close(descriptor)


def test_only_the_neighbourhood_of_a_large_file_is_read(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "a.mp4", frames=1500, width=640, height=480, gop=25, codec="mjpeg"
    )
    size = path.stat().st_size
    timeline = Timeline(list(range(1500)), None, 12.0)
    descriptor = os.open(path, os.O_RDONLY)
    region = ByteRange(descriptor, 0, size)
    assert read_segment(region, (700, 720, 740), 1500, timeline) is not None
    os.close(descriptor)
    assert region.bytes_read < 0.2 * size


@pytest.mark.parametrize("jitter_ms", [0, 1, 12])
def test_a_segment_is_cut_at_any_variable_rate(tmp_path: Path, jitter_ms: int) -> None:
    """Times as in files from phones and the web, encoded and stored as tools/prepare.py does."""
    random = np.random.default_rng(0)
    times = [round(k * 1001 / 30_000 + random.uniform(0, jitter_ms) / 1e3, 3) for k in range(400)]
    source = write_video(tmp_path / "a.webm", codec="libvpx", frames=400, times=times)
    facts, content = reencode(source.read_bytes(), "webm", Limits(), Encoding("h264", None, 25))
    assert content is not None
    stored = None if facts["frame_times"] is None else np.float32(facts["frame_times"]).tolist()
    timeline = Timeline(facts["keyframes"], stored, facts["frame_rate"])
    (tmp_path / "shard").write_bytes(content)
    descriptor = os.open(tmp_path / "shard", os.O_RDONLY)
    for wanted in range(30, 380, 25):
        segment = read_segment(ByteRange(descriptor, 0, len(content)), (wanted,), 400, timeline)
        assert segment is not None, wanted
        frame = decode_frames(segment.content, [wanted - segment.first], segment.timeline)[0]
        assert read_frame_number(frame) == wanted
    os.close(descriptor)
