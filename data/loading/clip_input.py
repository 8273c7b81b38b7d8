"""From a clip to its chosen frames: window → sample → keyframes → shift.

The only place that decides which frames of a stored clip or media file the model sees, for
pre-training, fine-tuning, the processor and the throughput estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from allinone.data.config import DataConfig
from allinone.data.loading.sampling import (
    SampleChoices,
    nearest_keyframes,
    sample_eval,
    sample_train,
    view_frames,
)


@dataclass(frozen=True)
class ClipWindow:
    """The part of a stored video that a sample may show."""

    first: int
    """Number in the stored video of the window's first frame."""
    frames: int
    """Frames in the window."""
    width: int
    """Pixels, after rotation."""
    height: int
    keyframes: Sequence[int] | None = None
    """Keyframes of the stored video; None where every frame can be read at the same cost."""
    image: bool = False
    """A still image, which is cropped whatever the geometry of videos is."""

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> ClipWindow:
        """Return the window of a row of a prepared index."""
        return cls(
            *window(row), row["width"], row["height"], row["keyframes"], row.get("media") == "image"
        )

    @classmethod
    def of_file(cls, columns: Mapping[str, Any]) -> ClipWindow:
        """Return a window over a complete file, from the columns of a probe."""
        return cls(
            0,
            columns["frames"],
            columns["width"],
            columns["height"],
            columns.get("keyframes"),
            columns.get("media") == "image",
        )


def choose_frames(
    clip: ClipWindow,
    config: DataConfig,
    num_frames: int,
    random: np.random.Generator | None = None,
    *,
    captions: int = 1,
    views: int = 1,
) -> list[SampleChoices]:
    """Choose what a sample shows of a clip.

    Args:
        clip: The window that frames may come from.
        config: Geometry, augmentation ranges, and whether frames move to keyframes.
        num_frames: T, frames per view.
        random: The sample's generator in training; None in evaluation, which is deterministic.
        captions: How many captions training chooses from.
        views: V, how many sets of T frames evaluation takes.

    Returns:
        One set of choices in training, V in evaluation. Frame numbers are those of the stored
        video, not of the window.
    """
    if clip.image:
        config = replace(config, geometry="crop")
    shape = {
        "frames": clip.frames,
        "width": clip.width,
        "height": clip.height,
        "wanted": num_frames,
    }
    if random is not None:
        chosen = [sample_train(config, random, captions=captions, **shape)]
    else:
        middle = sample_eval(config, **shape)
        chosen = [
            replace(middle, frames=frames) for frames in view_frames(clip.frames, num_frames, views)
        ]
    if config.frames_from == "key" and clip.keyframes is not None:
        stop = clip.first + clip.frames
        inside = [key - clip.first for key in clip.keyframes if clip.first <= key < stop]
        chosen = [
            replace(one, frames=nearest_keyframes(one.frames, inside, clip.frames))
            for one in chosen
        ]
    return [choices.shift(clip.first) for choices in chosen]


def window(row: Mapping[str, Any]) -> tuple[int, int]:
    """Return (first frame, number of frames) that a clip may show."""
    if row["first_frame"] is None:
        return 0, row["frames"]
    return row["first_frame"], row["last_frame"] - row["first_frame"] + 1
