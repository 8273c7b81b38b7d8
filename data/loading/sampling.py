"""Every random choice about a sample, drawn from a counter-based generator keyed by (seed, data
set, epoch, row): a pure function, so that order, number of workers, world size and restarts change
nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from allinone.data.config import DataConfig


@dataclass(frozen=True)
class SampleChoices:
    """What was chosen for one sample. Boxes are relative to the frame, after rotation."""

    caption: int
    frames: tuple[int, ...]
    """Display-order frame numbers, ascending, T of them."""
    box: tuple[float, float, float, float]
    """Crop: top, left, height, width, each in [0, 1]."""
    flip: bool
    brightness: float
    contrast: float
    saturation: float

    def later(self, frames: int) -> SampleChoices:
        """The same choices for a window that begins at this frame of the stored video."""
        return (
            replace(self, frames=tuple(frames + number for number in self.frames))
            if frames
            else self
        )

    def digest(self, clip: str, masked_ids: NDArray[np.int64], labels: NDArray[np.int64]) -> int:
        """63-bit hash of the clip's name, these choices and the mask."""
        content = hashlib.blake2b(repr((clip, self)).encode(), digest_size=8)
        content.update(masked_ids.tobytes())
        content.update(labels.tobytes())
        return int.from_bytes(content.digest(), "little") >> 1


def generator(
    seed: int, dataset: str, epoch: int, row: int, attempt: int = 0
) -> np.random.Generator:
    """Philox generator (Salmon et al., SC 2011) of one sample; `attempt` counts replacements of bad
    clips."""
    salt = int.from_bytes(hashlib.blake2b(dataset.encode(), digest_size=8).digest(), "little")
    # as an array: numpy makes floats of a list of large and small numbers
    key = np.array([(seed ^ salt) % 2**64, (epoch << 8) + attempt], dtype=np.uint64)
    return np.random.Generator(
        np.random.Philox(key=key, counter=np.array([0, 0, 0, row], dtype=np.uint64))
    )


def segments(available: int, wanted: int) -> list[tuple[int, int]]:
    """[first, last] of `wanted` equal segments of frames 0..available-1. With fewer frames than
    segments, neighbours share a frame; none is empty.

    Unlike the original, a segment's last frame can be drawn and short clips do not fail.
    """
    if available < wanted:
        return [
            (frame, frame)
            for frame in (available * (2 * k + 1) // (2 * wanted) for k in range(wanted))
        ]
    return [(available * k // wanted, available * (k + 1) // wanted - 1) for k in range(wanted)]


def middle_frames(available: int, wanted: int) -> tuple[int, ...]:
    """The middle frame of each segment: what evaluation sees."""
    return tuple((first + last) // 2 for first, last in segments(available, wanted))


def view_frames(available: int, wanted: int, views: int) -> list[tuple[int, ...]]:
    """`views` clips of `wanted` frames each, at evenly spread offsets inside every segment ("3x3");
    one view is `middle_frames`."""

    def place(view: int, size: int) -> int:
        """Of `size` frames the middle one of the view-th part; different ones for all views where
        there are enough."""
        return max(0, (size * (2 * view + 1) - views) // (2 * views))

    parts = segments(available, wanted)
    return [
        tuple(first + place(view, last - first + 1) for first, last in parts)
        for view in range(views)
    ]


def nearest_keyframes(
    frames: tuple[int, ...], keyframes: Sequence[int], available: int
) -> tuple[int, ...]:
    """Each chosen frame moved to the nearest keyframe that lies in the same segment of the clip;
    one without such a keyframe stays."""
    moved = []
    for number, (first, last) in zip(frames, segments(available, len(frames)), strict=True):
        distances = [(abs(key - number), key) for key in keyframes if first <= key <= last]
        moved.append(min(distances)[1] if distances else number)
    return tuple(moved)


def _crop_box(
    config: DataConfig, width: int, height: int, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """RandomResizedCrop (Szegedy et al. 2015): area and log aspect ratio drawn uniformly, ten
    tries, then the central square."""
    for area, log_ratio, u, v in zip(
        random.uniform(*config.crop_scale, 10),
        random.uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1]), 10),
        random.random(10),
        random.random(10),
        strict=True,
    ):
        ratio = math.exp(log_ratio)
        w, h = (
            math.sqrt(area * width * height * ratio) / width,
            math.sqrt(area * width * height / ratio) / height,
        )
        if w <= 1 and h <= 1:
            return float(v * (1 - h)), float(u * (1 - w)), float(h), float(w)
    return central_box(width, height, 1.0)


def central_box(width: int, height: int, share: float) -> tuple[float, float, float, float]:
    """The central square whose side is `share` of the short side."""
    side = share * min(width, height)
    h, w = side / height, side / width
    return (1 - h) / 2, (1 - w) / 2, h, w


def draw(
    config: DataConfig,
    random: np.random.Generator,
    *,
    captions: int,
    frames: int,
    width: int,
    height: int,
    wanted: int,
) -> SampleChoices:
    """Choices of a training sample. The number of draws is fixed, so that one choice does not shift
    another."""
    caption = int(random.integers(captions))
    chosen = tuple(
        int(random.integers(first, last + 1)) for first, last in segments(frames, wanted)
    )
    box = _crop_box(config, width, height, random)
    flip = bool(random.random() < config.flip)
    brightness, contrast, saturation = (
        1 + config.color_jitter * (2 * random.random(3) - 1)
    ).tolist()
    return SampleChoices(caption, chosen, box, flip, brightness, contrast, saturation)


def fixed(
    config: DataConfig, *, frames: int, width: int, height: int, wanted: int
) -> SampleChoices:
    """Choices of evaluation: first caption, middle frames, central square, no augmentation."""
    box = central_box(width, height, config.eval_crop)
    return SampleChoices(0, middle_frames(frames, wanted), box, False, 1.0, 1.0, 1.0)
