"""The heat map of masked-word predictions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from allinone.tools.inspection.cloze_figure import _overlay


def brightness(image: Image.Image) -> np.ndarray:
    """Mean brightness of each patch of a 4 x 4 grid, [16]."""
    grey = np.asarray(image.convert("L"), dtype=float)
    return grey.reshape(4, 8, 4, 8).mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize("level", [0, 40, 128, 255])
def test_support_is_visible_on_clips_of_any_brightness(level: int) -> None:
    weights = np.zeros(16)
    weights[5], weights[6] = 1.0, 0.5
    image = _overlay(Image.new("RGB", (32, 32), (level,) * 3), weights, [])
    patches = brightness(image)
    others = np.delete(patches, [5, 6])
    assert patches[5] - others.max() > 60
    assert patches[5] > patches[6] > others.max() + 20
    red, _, blue = (float(band) for band in image.getpixel((12, 12)))  # of patch 5
    assert red - blue > 60  # a colour, and not only light


def test_the_picture_remains_visible_below_the_strongest_support() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    drawn = np.asarray(_overlay(Image.fromarray(stripes), np.ones(16), []).convert("L"), float)
    assert drawn[:, ::2].mean() - drawn[:, 1::2].mean() > 100
