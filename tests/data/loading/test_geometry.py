"""Geometry squash and crop: shares of the frame by arithmetic, pixels against Pillow."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Literal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from allinone.data.config import ClipConfig, DataConfig
from allinone.data.loading.augmentation import augmentation_for
from allinone.data.loading.clip_input import ClipWindow, choose_frames
from allinone.data.loading.sampling import (
    SampleChoices,
    generator,
    middle_frames,
    sample_eval,
    sample_train,
)
from allinone.pretrain import run as pretrain_run
from allinone.pretrain.recipes import RECIPES
from tests.data.loading.streams import CPU
from tests.data.loading.test_torch_pipeline import picture

SQUASH = DataConfig(geometry="squash", backend="cpu", dali_threads=1)
WIDE = {"frames": 9, "width": 1280, "height": 720, "wanted": 3}


def drawn(config: DataConfig, row: int, **shape: int) -> SampleChoices:
    """The training choices of one row."""
    return sample_train(config, generator(0, "d", 0, row), captions=3, **{**WIDE, **shape})


def test_squash_shows_70_percent_of_any_frame() -> None:
    """int(1.2 * 224) = 268 px, of which 224 are cropped: 84 % of the width, 70 % of the area."""
    share = Fraction(224, int(1.2 * 224))
    for width, height in ((1280, 720), (720, 1280), (640, 480), (2390, 1000)):
        boxes = [drawn(SQUASH, row, width=width, height=height).box for row in range(50)]
        boxes.append(sample_eval(SQUASH, frames=9, width=width, height=height, wanted=3).box)
        assert {box[2:] for box in boxes} == {(float(share), float(share))}
    assert round(100 * share) == 84
    assert round(100 * share**2) == 70


def test_crop_shows_56_percent_of_a_wide_frame() -> None:
    for (width, height), percent in (((1280, 720), 56), ((2390, 1000), 42)):
        _, _, h, w = sample_eval(DataConfig(), frames=9, width=width, height=height, wanted=3).box
        assert round(100 * h * w) == percent


def test_squashed_crops_lie_on_all_45_places_per_axis() -> None:
    boxes = [drawn(SQUASH, row).box for row in range(6000)]
    for axis in (0, 1):
        counts = Counter(round(268 * box[axis], 6) for box in boxes)
        assert sorted(counts) == list(range(45))
        # 133 each; the standard deviation of a count is 11.4
        assert all(80 < number < 190 for number in counts.values())
    top, left, *_ = sample_eval(SQUASH, **WIDE).box
    assert (268 * top, 268 * left) == (pytest.approx(22), pytest.approx(22))


def test_squash_scale_is_the_range_of_the_squashed_side() -> None:
    config = replace(SQUASH, squash_scale=(1.2, 1.5))
    boxes = [drawn(config, row).box for row in range(3000)]
    assert {round(224 / box[2], 6) for box in boxes} == set(range(268, 337))
    assert all(box[2] == box[3] and max(box[0], box[1]) + box[2] <= 1 + 1e-9 for box in boxes)
    assert sample_eval(config, **WIDE) == sample_eval(SQUASH, **WIDE)


def test_the_geometry_changes_no_other_choice() -> None:
    for row in range(20):
        crop, squash = (
            drawn(replace(SQUASH, geometry=kind, flip=0.5, color_jitter=0.3), row)
            for kind in ("crop", "squash")
        )
        assert replace(crop, box=squash.box) == squash
        assert crop.box != squash.box


@pytest.mark.parametrize("backend", ["dali", "torch"])
@pytest.mark.parametrize("size", [(720, 1280), (1280, 720), (360, 640), (120, 90), (268, 268)])
def test_squashed_pixels_equal_pillows_to_one_level(
    backend: Literal["dali", "torch"], size: tuple[int, int]
) -> None:
    """A resize to 268 x 268 by Pillow, of which 224 x 224 are cut out."""
    height, width = size
    config = replace(SQUASH, augment_backend=backend, mean=(0.0,) * 3, std=(1.0,) * 3)
    frames = picture("blobs", 2, height, width)
    shape = {"frames": 9, "width": width, "height": height, "wanted": 2}
    for choices in (
        sample_eval(config, **shape),
        *(drawn(config, row, **shape) for row in range(3)),
    ):
        y, x = (round(268 * place) for place in choices.box[:2])
        expected = [
            np.asarray(Image.fromarray(frame).resize((268, 268), Image.Resampling.BILINEAR))
            for frame in frames
        ]
        cut = torch.from_numpy(np.stack(expected)[:, y : y + 224, x : x + 224]).float()
        pixels = augmentation_for(ClipConfig(2, 224, 8), config, CPU, 1)(
            [np.ascontiguousarray(frames)], [replace(choices, flip=False)]
        )
        difference = (255 * pixels[0].permute(0, 2, 3, 1) - cut).abs()
        assert difference.max() < 1.01
        assert difference.mean() < 0.3


def test_images_are_cropped_whatever_the_geometry_is() -> None:
    row = {"first_frame": None, "frames": 1, "width": 1280, "height": 720, "keyframes": [0]}
    for media, percent in (("image", 56), ("video", 70)):
        for window in (
            ClipWindow.of_row({**row, "media": media}),
            ClipWindow.of_file({**row, "media": media}),
        ):
            (choices,) = choose_frames(window, SQUASH, 1)
            assert round(100 * choices.box[2] * choices.box[3]) == percent
            (trained,) = choose_frames(window, SQUASH, 1, generator(0, "d", 0, 0))
            assert (trained.box[2] == 224 / 268) == (media == "video")


def test_in_co_training_only_video_is_squashed_and_augmented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[DataConfig] = []

    class Stream:
        def __init__(self, specs: object, clip: object, config: DataConfig, **_: object) -> None:
            built.append(config)

    monkeypatch.setattr(pretrain_run, "TrainStream", Stream)
    monkeypatch.setattr(pretrain_run, "caption_lengths", lambda *_: Mock())  # of no data
    pretrain_run.build_data(replace(RECIPES["plus-cc3m-webvid"][1], out=tmp_path))
    video, images = built
    assert (video.geometry, video.augment) == ("squash", "randaug")
    assert (images.geometry, images.augment) == ("crop", "none")
    assert (images.mean, images.std) == (video.mean, video.std), "one network, one normalisation"


def test_choices_of_earlier_versions_keep_their_digest() -> None:
    """Computed by the version before geometry and RandAugment existed."""
    ids, labels = np.array([1, 2]), np.array([-100, 2])
    trained = sample_train(
        DataConfig(flip=0.5, color_jitter=0.4),
        generator(0, "webvid/train", 3, 17),
        captions=5,
        frames=100,
        width=320,
        height=240,
        wanted=3,
    )
    assert trained.digest("clip", ids, labels) == 2185892533571937470
    evaluated = sample_eval(DataConfig(), frames=9, width=400, height=200, wanted=3)
    assert evaluated.digest("clip", ids, labels) == 8477910355223639779
    assert evaluated.frames == middle_frames(9, 3)
    shown = [f.name for f in dataclasses.fields(trained) if f.name != "operations"]
    assert repr(trained) == "SampleChoices({})".format(
        ", ".join(f"{name}={getattr(trained, name)!r}" for name in shown)
    )
