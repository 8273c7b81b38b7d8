"""Decoding starts at the last CRA picture, recovery point or IDR picture, and frames are exact."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from allinone.data.decoding import frames
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.decoding.gop_trim import trim
from allinone.data.decoding.segment import ByteRange, load_segment, read_segment
from allinone.data.prepare.probe import Limits, probe
from tests.data.media import rgb_frames, write_video

PYRAMID = "b-pyramid=normal:ref=4:b-adapt=0:weightp=2"
FILES = [
    ("a.mp4", {"codec": "libx265", "b_frames": 4}),
    ("b.mkv", {"codec": "libx265", "b_frames": 4}),
    ("c.ts", {"codec": "libx265", "b_frames": 4}),
    ("d.mp4", {"b_frames": 3, "x264": PYRAMID}),
    ("e.mkv", {"b_frames": 3, "x264": PYRAMID}),
    ("f.ts", {"b_frames": 2}),
    ("g.ts", {"b_frames": 2, "x264": "interlaced=1:tff=1"}),
    ("h.mkv", {"b_frames": 2, "x264": "interlaced=1:tff=1"}),
    ("i.ts", {"codec": "mpeg2video", "rate": 25}),
]
FRAMES, GOP = 120, 20


def write(folder: Path, name: str, options: dict[str, object]) -> Path:
    shape = {"frames": FRAMES, "gop": GOP, "open_gop": True, "width": 96, "height": 80}
    return write_video(folder / name, **shape, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "options"), FILES)
def test_every_frame_is_exact_from_the_last_start(
    tmp_path: Path, name: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(frames, "_from_start")  # nothing is decoded from the beginning of the file
    path = write(tmp_path, name, options)
    content, truth = path.read_bytes(), rgb_frames(path)
    facts = probe(content, path.suffix[1:], Limits())
    assert facts["frames"] == FRAMES
    # I-frames are stored before, and shown after, the B-frames of the GOP before
    assert len(facts["keyframes"]) >= FRAMES // GOP
    timeline = Timeline.of(facts)
    for number in range(FRAMES):
        (frame,) = decode_frames(content, [number], timeline)
        # decode_frames converts by BT.601 as rgb24 of PyAV does for files without a matrix
        assert np.array_equal(frame, truth[number]), number


@pytest.mark.parametrize(("name", "options"), FILES)
def test_segments_and_trimmed_streams_are_exact(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    path = write(tmp_path, name, options)
    content, truth = path.read_bytes(), rgb_frames(path)
    timeline = Timeline.of(probe(content, path.suffix[1:], Limits()))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for first in range(0, FRAMES - 2, 3):
            wanted = [first, first + 1, first + 2]
            video = ByteRange(descriptor, 0, len(content))
            segment = load_segment(video, wanted, FRAMES, timeline, path.read_bytes)
            found = decode_frames(segment.content, segment.numbers(wanted), segment.timeline)
            for number, frame in zip(wanted, found, strict=True):
                assert np.array_equal(frame, truth[number]), number
            trimmed = segment.trim(wanted)
            # without times, as DALI decodes it: from the first packet on, by counting
            for number, frame in zip(
                wanted, decode_frames(trimmed.content, trimmed.frames), strict=True
            ):
                assert np.array_equal(frame, truth[number]), number
            complete = trim(content, wanted, FRAMES, timeline)
            for number, frame in zip(
                wanted, decode_frames(complete.content, complete.frames), strict=True
            ):
                assert np.array_equal(frame, truth[number]), number
    finally:
        os.close(descriptor)


def test_a_segment_of_hevc_starts_at_a_cra_picture(tmp_path: Path) -> None:
    path = write(tmp_path, "a.mp4", {"codec": "libx265", "b_frames": 4})
    content = path.read_bytes()
    timeline = Timeline.of(probe(content, "mp4", Limits()))
    descriptor = os.open(path, os.O_RDONLY)
    segment = read_segment(ByteRange(descriptor, 0, len(content)), [70, 75], FRAMES, timeline)
    os.close(descriptor)
    assert segment is not None
    assert segment.first == timeline.start(70) >= 60
    assert segment.frames <= 2 * GOP
