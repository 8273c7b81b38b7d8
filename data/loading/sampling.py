"""Every random choice about a sample.

Choices come from a counter-based generator keyed by (seed, data set, epoch, row). They are a pure
function of that key: reading order, number of workers, world size and restarts change nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from allinone.data.config import DataConfig
from allinone.data.loading.rand_augment import Operation, draw_operations

SQUASH_CROP = 224
SQUASH_SIDE = 268
"""Geometry squash: a crop of 224 px out of int(1.2 * 224) = 268, as in the original code. Boxes are
shares of the frame, so other image sizes show the same 84 % of the width (the original's int(1.2 *
S) differs by up to 0.5 % of it)."""


@dataclass(frozen=True)
class SampleChoices:
    """What was chosen for one clip of a sample."""

    caption: int
    """Number of the caption."""
    frames: tuple[int, ...]
    """Display-order frame numbers, ascending, T of them."""
    box: tuple[float, float, float, float]
    """Crop: top, left, height, width, as shares of the frame after rotation."""
    flip: bool
    """Left and right are swapped."""
    brightness: float
    """Factor; 1 changes nothing, as for contrast and saturation."""
    contrast: float
    saturation: float
    operations: tuple[Operation, ...] = ()
    """Of RandAugment, in order; empty without it and in evaluation."""

    def __repr__(self) -> str:
        # digests hash this text: it must not change where RandAugment is off
        shown = [f for f in fields(self) if f.name != "operations" or self.operations]
        return f"SampleChoices({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def shift(self, first: int) -> SampleChoices:
        """Return the choices for a window that starts at frame `first` of the stored video."""
        return replace(self, frames=tuple(first + number for number in self.frames))

    def digest(self, clip: str, masked_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> int:
        """Return a 63-bit hash of the clip's name, these choices and the mask."""
        content = hashlib.blake2b(repr((clip, self)).encode(), digest_size=8)
        content.update(masked_ids.tobytes())
        content.update(labels.tobytes())
        # 63 bits, so that it fits a signed 64-bit integer
        return int.from_bytes(content.digest(), "little") >> 1


def generator(
    seed: int, dataset: str, epoch: int, row: int, attempt: int = 0
) -> np.random.Generator:
    """Create the Philox generator (Salmon et al., SC 2011) of one sample.

    Args:
        seed: Seed of the run.
        dataset: Name of the data set; hashed into the key.
        epoch: Epoch of the data set.
        row: Row in the data set.
        attempt: How many clips were replaced before at this position, below 256.
    """
    salt = int.from_bytes(hashlib.blake2b(dataset.encode(), digest_size=8).digest(), "little")
    # As an array: NumPy converts a list of integers on both sides of 2**63 to floats.
    key = np.array([(seed ^ salt) % 2**64, (epoch << 8) + attempt], dtype=np.uint64)
    # the row is the counter's highest word: streams of two rows are 2**192 blocks apart
    return np.random.Generator(
        np.random.Philox(key=key, counter=np.array([0, 0, 0, row], dtype=np.uint64))
    )


def segments(available: int, wanted: int) -> list[tuple[int, int]]:
    """Split frames 0..available-1 into `wanted` equal segments, each (first, last).

    With fewer frames than segments, neighbours share a frame; no segment is empty. Unlike the
    original code, a segment's last frame can be drawn and short clips do not fail.
    """
    if available < wanted:
        frames = [available * (2 * k + 1) // (2 * wanted) for k in range(wanted)]
        return [(frame, frame) for frame in frames]
    return [(available * k // wanted, available * (k + 1) // wanted - 1) for k in range(wanted)]


def middle_frames(available: int, wanted: int) -> tuple[int, ...]:
    """Return the middle frame of each segment: what evaluation sees."""
    return tuple((first + last) // 2 for first, last in segments(available, wanted))


def view_frames(available: int, wanted: int, views: int) -> list[tuple[int, ...]]:
    """Choose the frames of several evaluation views, evenly spread inside every segment ("3x3").

    Args:
        available: Frames of the clip.
        wanted: T, frames per view.
        views: V; one view is `middle_frames`.

    Returns:
        V tuples of T ascending frame numbers, all different where there are enough frames.
    """

    def offset(view: int, size: int) -> int:
        """Return the middle of the view-th of V equal parts of `size` frames."""
        return max(0, (size * (2 * view + 1) - views) // (2 * views))

    parts = segments(available, wanted)
    return [
        tuple(first + offset(view, last - first + 1) for first, last in parts)
        for view in range(views)
    ]


def nearest_keyframes(
    frames: tuple[int, ...], keyframes: Sequence[int], available: int
) -> tuple[int, ...]:
    """Move each frame to the nearest keyframe in its segment; without one, the frame stays.

    Args:
        frames: One frame number per segment.
        keyframes: Keyframes of the clip.
        available: Frames of the clip.
    """
    moved = []
    for number, (first, last) in zip(frames, segments(available, len(frames)), strict=True):
        distances = [(abs(key - number), key) for key in keyframes if first <= key <= last]
        moved.append(min(distances)[1] if distances else number)
    return tuple(moved)


def _crop_box(
    config: DataConfig, width: int, height: int, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """Draw a crop as RandomResizedCrop does (Szegedy et al. 2015), or one of the squashed frame.

    RandomResizedCrop: area and log aspect ratio are uniform; after ten tries outside of the frame,
    the central square. torchvision and timm then take the central crop with the nearest ratio of
    the range, which is one and the same crop, too.
    """
    # draw for all ten tries in advance: the number of draws depends neither on the video nor on the
    # geometry
    areas = random.uniform(*config.crop_scale, 10)
    log_ratios = random.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1]), 10)
    across, down = random.random(10), random.random(10)
    if config.geometry == "squash":
        return _squash_box(config, float(across[0]), float(down[0]), float(across[1]))
    for area, log_ratio, u, v in zip(areas, log_ratios, across, down, strict=True):
        ratio = math.exp(log_ratio)
        w = math.sqrt(area * width * height * ratio) / width
        h = math.sqrt(area * width * height / ratio) / height
        if w <= 1 and h <= 1:
            return float(v * (1 - h)), float(u * (1 - w)), float(h), float(w)
    return central_box(width, height, 1.0)


def _squash_box(
    config: DataConfig, across: float, down: float, size: float
) -> tuple[float, float, float, float]:
    """Return a crop of 224 px out of the frame squashed to a side of 268 px (`squash_scale` 1.2).

    The original resizes to 512 x 512, then to 268 x 268, and crops pixels. Here one resize reads
    the box from the frame as it is stored: the same crop, on the grid of those 268 px, within one
    8-bit level of a resize to 268 x 268 by Pillow. What the detour changes: pixels of photographs
    by 0.3 to 0.6 of 255 on average if decord's resize is bicubic, 0.4 to 1.1 if it is bilinear (3
    photographs at 640 x 360 and 1280 x 720).

    Args:
        config: Range of the squashed side.
        across: Uniform in [0, 1); chooses the left edge.
        down: Uniform in [0, 1); chooses the top edge.
        size: Uniform in [0, 1); chooses the squashed side.
    """
    low, high = (int(SQUASH_CROP * scale) for scale in config.squash_scale)
    side = low + int(size * (high - low + 1))
    places = side - SQUASH_CROP + 1
    share = SQUASH_CROP / side
    return int(down * places) / side, int(across * places) / side, share, share


def central_box(width: int, height: int, share: float) -> tuple[float, float, float, float]:
    """Return a central square.

    Args:
        width: Pixels.
        height: Pixels.
        share: Side of the square as a share of the frame's short side.

    Returns:
        top, left, height, width as shares of the frame.
    """
    side = share * min(width, height)
    h, w = side / height, side / width
    return (1 - h) / 2, (1 - w) / 2, h, w


def sample_train(
    config: DataConfig,
    random: np.random.Generator,
    *,
    captions: int,
    frames: int,
    width: int,
    height: int,
    wanted: int,
) -> SampleChoices:
    """Choose what a training sample shows of a clip.

    The number of draws is fixed: changing one option does not change the other choices.

    Args:
        config: Ranges of crop, flip and colours.
        random: The sample's generator.
        captions: How many captions there are.
        frames: Frames of the clip.
        width: Pixels.
        height: Pixels.
        wanted: T, frames to choose, one from each of T segments.
    """
    # the order of the draws is part of the training order: a change breaks exact resume
    caption = int(random.integers(captions))
    chosen = tuple(
        int(random.integers(first, last + 1)) for first, last in segments(frames, wanted)
    )
    box = _crop_box(config, width, height, random)
    flip = bool(random.random() < config.flip)
    # drawn even if color_jitter is 0, so that the option does not shift other draws
    brightness, contrast, saturation = 1 + config.color_jitter * (2 * random.random(3) - 1)
    operations: tuple[Operation, ...] = ()
    if config.uses_randaug:
        operations = draw_operations(config, random)
    return SampleChoices(
        caption,
        chosen,
        box,
        flip,
        float(brightness),
        float(contrast),
        float(saturation),
        operations,
    )


def sample_eval(
    config: DataConfig, *, frames: int, width: int, height: int, wanted: int
) -> SampleChoices:
    """Choose what evaluation shows: first caption, middle frames, central crop, no augmentation.

    Args:
        config: Geometry, and side of the central crop.
        frames: Frames of the clip.
        width: Pixels.
        height: Pixels.
        wanted: T, frames to choose.
    """
    if config.geometry == "squash":
        # the squashed frame is square: both sides are the same share
        box = central_box(1, 1, config.eval_crop * SQUASH_CROP / SQUASH_SIDE)
    else:
        box = central_box(width, height, config.eval_crop)
    return SampleChoices(0, middle_frames(frames, wanted), box, False, 1.0, 1.0, 1.0)
