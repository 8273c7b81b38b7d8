"""A prepared folder names the files that are slow to decode, and the option that helps."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from allinone.data.index import VIDEO_SCHEMA
from allinone.data.prepare.decode_cost import PIXELS_PER_S, decode_seconds
from tests.data.helpers import prepare_source
from tests.data.media import write_video
from tests.data.prepare.test_odd_media import own_list

ROW = {"container": "mp4", "media": "video", "width": 100, "height": 50, "frames": 1000}


@pytest.mark.parametrize(
    ("change", "frames"),
    [
        ({"keyframes": [0, 250, 500, 750]}, 125),
        ({"keyframes": [0]}, 500),
        ({"keyframes": [0, 100]}, 450),
        ({"keyframes": list(range(1000)), "container": "mpg"}, 500),
        ({"keyframes": [0], "media": "image", "frames": 1}, 0),
    ],
)
def test_half_the_longest_run_without_a_start_is_decoded(
    change: dict[str, object], frames: int
) -> None:
    # a second row, so that the lists are slices of one array
    rows = [{**ROW, "keyframes": [0, 1]}, {**ROW, **change}]
    batch = pa.RecordBatch.from_pylist(rows, VIDEO_SCHEMA)
    assert decode_seconds(batch)[1] == pytest.approx(frames * 5000 / PIXELS_PER_S)


def test_a_long_gop_is_named_with_the_option_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allinone.data.prepare.decode_cost.PIXELS_PER_S", 96 * 96 * 30.0)
    source = own_list(tmp_path / "in", ["a.mp4", "b.mp4"])
    write_video(source.parent / "a.mp4", frames=120, gop=120, width=96, height=96)
    write_video(source.parent / "b.mp4", frames=120, gop=12, width=96, height=96)
    summary, _, _ = prepare_source(source, tmp_path / "out")
    (warning,) = summary.warnings
    assert warning.startswith("1 of 2 files take more than 1 s")
    assert "about 2.0 s (a.mp4)" in warning
    assert "--short-side" in warning
    again, _, _ = prepare_source(source, tmp_path / "again", codec="h264")
    assert again.warnings == ()
