"""Window → sample → keyframes → shift: one path for training, fine-tuning and estimates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.decoding.codecs import image_extension
from allinone.data.loading.clip_input import ClipWindow, choose_frames
from allinone.data.loading.sampling import generator, middle_frames
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.data.prepare.probe import Limits
from allinone.data.processor import read_as_evaluation
from allinone.data.throughput import _read_clips
from tests.data import media

WINDOW = ClipWindow(100, 12, 64, 48, keyframes=[0, 96, 101, 105, 109, 113])


def test_frames_lie_in_the_window_of_the_stored_video() -> None:
    for row in range(50):
        (chosen,) = choose_frames(WINDOW, DataConfig(), 3, generator(0, "d", 0, row), captions=4)
        assert all(100 + 4 * k <= number < 104 + 4 * k for k, number in enumerate(chosen.frames))
    (chosen,) = choose_frames(WINDOW, DataConfig(), 3)
    assert chosen.frames == tuple(100 + number for number in middle_frames(12, 3))
    assert (chosen.caption, chosen.flip) == (0, False)


@pytest.mark.parametrize("views", [1, 3])
def test_keyframes_replace_frames_in_every_view(views: int) -> None:
    chosen = choose_frames(WINDOW, DataConfig(frames_from="key"), 3, views=views)
    assert [one.frames for one in chosen] == [(101, 105, 109)] * views
    no_keyframes = ClipWindow(100, 12, 64, 48)
    assert choose_frames(no_keyframes, DataConfig(frames_from="key"), 3) == choose_frames(
        no_keyframes, DataConfig(), 3
    )


def test_choices_are_made_in_one_order() -> None:
    """The same generator state gives the same choices, however the frames are moved afterwards."""
    plain, moved = (
        choose_frames(WINDOW, DataConfig(frames_from=kind), 3, np.random.default_rng(7))[0]
        for kind in ("any", "key")
    )
    assert (plain.box, plain.flip) == (moved.box, moved.flip)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Three H.264 clips of 24 frames in GOPs of 8."""
    for k in range(3):
        media.write_video(tmp_path / "source" / f"{k}.mp4", gop=8)
    rows = "".join(f"{k}.mp4,clip {k}\n" for k in range(3))
    (tmp_path / "source" / "own.csv").write_text(f"path,caption\n{rows}")
    options = PrepareOptions(tmp_path / "source" / "own.csv", tmp_path / "out", workers=1)
    prepare(options, progress=False)
    return tmp_path / "out"


def test_throughput_estimate_reads_keyframes_if_training_does(prepared: Path) -> None:
    """It used to measure frames anywhere, so `frames_from="key"` looked as expensive as any."""
    spec, clip = DatasetSpec(prepared), ClipConfig(3, 32)
    moved = list(_read_clips(spec, clip, DataConfig(frames_from="key"), 3, seed=0))
    assert [read.choices.frames for read in moved] == [(0, 8, 16)] * 3
    anywhere = list(_read_clips(spec, clip, DataConfig(), 3, seed=0))
    assert any(read.choices.frames != (0, 8, 16) for read in anywhere)


def test_the_processor_reads_keyframes_if_evaluation_does(tmp_path: Path) -> None:
    content = media.write_video(tmp_path / "a.mp4", gop=8).read_bytes()
    config, limits = DataConfig(frames_from="key"), Limits(min_frames=1)
    frames, choices = read_as_evaluation(content, "mp4", ClipConfig(3, 32), config, limits)
    assert choices.frames == (0, 8, 16)
    assert [media.read_frame_number(frame) for frame in frames] == [0, 8, 16]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "gif"])
def test_images_are_recognised_by_their_first_bytes(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"image.{kind}")
    content = (tmp_path / f"image.{kind}").read_bytes()
    assert image_extension(content, "jpg") == kind
    assert image_extension(content, "mp4") == "mp4"
    assert image_extension(b"unknown", "png") == "png"
