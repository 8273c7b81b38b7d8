"""All eight orientations of videos: copied, trimmed and encoded."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from allinone.data.decoding.codecs import GPU_CODECS, dali_reads
from allinone.data.decoding.frames import Timeline, decode_frames
from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.probe import Limits, probe
from allinone.data.prepare.worker import reencode
from tests.data.helpers import prepare_source
from tests.data.media import Matrix, frame_array, write_oriented

MATRICES: dict[str, Matrix] = {
    "as stored": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "half turn": (-1, 0, 0, -1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "clockwise": (0, 1, -1, 0),
    "transverse": (0, -1, -1, 0),
    "counterclockwise": (0, -1, 1, 0),
}
WIDTH, HEIGHT = 256, 192


def displayed(pixels: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.uint8]:
    """Move every pixel as ISO 14496-12 says; the result begins at (0, 0)."""
    a, b, c, d = matrix
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    right, down = a * x + c * y, b * x + d * y
    right, down = right - right.min(), down - down.min()
    shown = np.zeros((down.max() + 1, right.max() + 1, 3), np.uint8)
    shown[down, right] = pixels
    return shown


@pytest.mark.parametrize("options", [{}, {"codec": "h264"}], ids=["copied", "encoded"])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_mirrored_and_rotated_videos_are_upright(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    lines = ["path,caption"]
    for number, matrix in enumerate(MATRICES.values()):
        path = tmp_path / f"{number}.{suffix}"
        write_oriented(path, matrix, width=WIDTH, height=HEIGHT, frames=12, gop=4)
        lines.append(f"{path.name},a clip")
    (tmp_path / "my.csv").write_text("\n".join(lines))
    _, good, bad = prepare_source(tmp_path / "my.csv", tmp_path / "out", **options)
    assert bad == {}
    for number, (name, matrix) in enumerate(MATRICES.items()):
        row = good[f"train/{number}.{suffix}"]
        with (tmp_path / "out" / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            content = file.read(row["size"])
        shown = decode_frames(content, [9], Timeline.of(row))[0].astype(int)
        wanted = displayed(frame_array(9, WIDTH, HEIGHT), matrix)
        assert shown.shape == wanted.shape == (row["height"], row["width"], 3), name
        assert np.abs(shown - wanted).mean() < 6, name
        # DALI ignores the display matrix
        assert dali_reads(row, GPU_CODECS) == bool(options or name == "as stored"), name


def test_other_angles_are_rounded_to_the_nearest_right_one(tmp_path: Path) -> None:
    # 134 degrees counter-clockwise and 0.7 in size; only right angles can be applied without borders
    path = write_oriented(tmp_path / "a.mp4", (0, 1, -1, 0), frames=6)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    values = [round(value * 65536) for value in (-0.4863, 0.5035, 0, -0.5035, -0.4863)]
    struct.pack_into(">5i", content, start, *values)
    facts = probe(bytes(content), "mp4", Limits())
    assert facts["rotation"] in (90, 180)
    encoding = Encoding("h264", None, 8)
    made, _ = reencode(bytes(content), "mp4", Limits(), encoding)
    assert (made["width"], made["height"]) == (facts["width"], facts["height"])
    decode_frames(bytes(content), [3], Timeline.of(facts))
