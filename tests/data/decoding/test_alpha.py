"""Transparent pixels of videos are white, decoded and re-encoded, as those of images are."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from allinone.data.decoding.frames import decode_frames
from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.probe import Limits
from allinone.data.prepare.worker import reencode


def write_half_transparent(path: Path, codec: str, pixel_format: str) -> bytes:
    """Left half transparent over hidden blue, right half opaque red."""
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[:, :32] = (0, 0, 255, 0)
    picture[:, 32:] = (255, 0, 0, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = pixel_format
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("png", "rgba"), ("prores_ks", "yuva444p10le")]
)
def test_hidden_colours_are_never_shown(tmp_path: Path, codec: str, pixel_format: str) -> None:
    content = write_half_transparent(tmp_path / "a.mov", codec, pixel_format)
    _, made = reencode(content, "mov", Limits(), Encoding("h264", None))
    assert made is not None
    for video in (content, made):
        frame = decode_frames(video, [1])[0].astype(int)
        assert np.abs(frame[8:-8, 4:24] - [255, 255, 255]).max() <= 6
        assert np.abs(frame[8:-8, 40:60] - [255, 0, 0]).max() <= 24
