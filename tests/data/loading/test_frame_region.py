"""Only what a crop reads of decoded frames leaves a reader process; the pixels are the same."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from allinone.data.config import ClipConfig, DataConfig
from allinone.data.loading.augmentation import augmentation_for
from allinone.data.loading.frame_region import FrameRegion
from allinone.data.loading.samples import Visual
from allinone.data.loading.sampling import SampleChoices, sample_eval, sample_train

CPU = torch.device("cpu")
SIZES = [(256, 456, 224), (720, 1280, 224), (96, 128, 224), (37, 53, 64), (456, 256, 96)]


def choices(config: DataConfig, height: int, width: int, number: int) -> SampleChoices:
    """Of training for all numbers but 0."""
    shape = {"frames": 9, "width": width, "height": height, "wanted": 2}
    if number == 0:
        return sample_eval(config, **shape)
    return sample_train(config, np.random.default_rng(number), captions=1, **shape)


@pytest.mark.parametrize("backend", ["dali", "torch"])
@pytest.mark.parametrize("geometry", ["crop", "squash"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_of_a_part_are_those_of_complete_frames(
    backend: str, geometry: str, size: tuple[int, int, int]
) -> None:
    height, width, side = size
    config = DataConfig(
        backend="cpu", dali_threads=1, augment_backend=backend, geometry=geometry, flip=0.5,
        color_jitter=0.2, crop_scale=(0.1, 1.0),
    )  # fmt: skip
    pipeline = augmentation_for(ClipConfig(2, side, 8), config, CPU, 1)
    random = np.random.default_rng(size)
    for number in range(12):
        # noise: a pixel read outside of the part would change the result
        frames = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        chosen = choices(config, height, width, number)
        crossed = pickle.loads(pickle.dumps(Visual(frames, chosen, side)))
        assert isinstance(crossed.media, FrameRegion)
        assert crossed.choices == chosen
        complete = pipeline([frames], [chosen])
        assert torch.equal(pipeline([crossed.media], [crossed.choices]), complete)


def test_fewer_bytes_cross_the_pipe() -> None:
    config, frames = DataConfig(), np.zeros((3, 256, 456, 3), np.uint8)
    sizes = []
    for number in range(1, 201):
        visual = Visual(frames, choices(config, 256, 456, number), 224)
        sizes.append(len(pickle.dumps(visual)))
    # crops have 50 to 100 % of the area, and a ratio of 3:4 to 4:3 that a frame of 16:9 has not
    assert 0.4 < np.mean(sizes) / frames.nbytes < 0.62
    complete = replace(visual, side=0)
    assert len(pickle.dumps(complete)) > frames.nbytes
