"""What is found in a file, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.prepare import worker
from allinone.data.prepare.probe import Limits, ProbeError, probe
from allinone.data.prepare.worker import ClipTask, examine
from allinone.data.sources import Narration
from allinone.data.sources.howto100m import csv_lines
from tests.data.media import read_frame_number, write_image, write_video


def test_a_file_too_large_for_a_tar_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr(worker, "MAX_MEMBER_BYTES", 1000)
    with pytest.raises(ProbeError, match="--short-side") as error:
        examine(ClipTask((video,), 0, None, "mp4"), Limits())
    assert error.value.reason == "too_large"


def test_a_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    content = write_image(tmp_path / "complete.jpg", 3, 320, 240).read_bytes()
    assert probe(content, "jpg", Limits())["width"] == 320
    for share in (0.05, 0.5, 0.9, 0.97):
        with pytest.raises(ProbeError) as error:
            probe(content[: int(share * len(content))], "jpg", Limits())
        assert error.value.reason == "undecodable"
    size = content.index(b"\xff\xc0") + 5  # height and width in the frame's header
    with pytest.raises(ProbeError, match="decompression bomb"):
        probe(content[:size] + b"\xea\x60" * 2 + content[size + 4 :], "jpg", Limits())


@pytest.mark.parametrize("rate", [24, 30, 50, 60])
def test_times_rounded_to_milliseconds_are_a_constant_rate(tmp_path: Path, rate: int) -> None:
    """As YouTube's WebM and Matroska files have them; here with 300 frames."""
    path = write_video(tmp_path / "a.mkv", codec="libx264", frames=300, rate=rate, gop=12)
    columns = probe(path.read_bytes(), "mkv", Limits())
    assert columns["frame_times"] is None
    assert columns["frame_rate"] == pytest.approx(rate, rel=1e-3)
    wanted = [0, 11, 12, 13, 100, 155, 156, 299]
    frames = decode_frames(path.read_bytes(), wanted, Timeline.of(columns))
    assert [read_frame_number(frame) for frame in frames] == wanted


def test_a_video_without_usable_captions_is_not_opened(tmp_path: Path) -> None:
    captions, video = tmp_path / "AAA.csv", tmp_path / "AAA.mp4"
    captions.write_text("start,end,text\n1,2,\n5,4,backwards\n")
    video.write_bytes(b"no video at all")
    with pytest.raises(ProbeError, match="none of 2 caption lines can be used") as error:
        examine(
            ClipTask((video,), 0, None, "mp4", narration=Narration(csv_lines, captions)), Limits()
        )
    assert error.value.reason == "bad_window", "the line without a time comes first"
