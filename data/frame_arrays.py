"""Videos and images in memory → frames: arrays, tensors, PIL images, and lists of them.

Letters: F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from allinone.data.decoding.images import upright_rgb

Video = str | Path | np.ndarray | Tensor | Sequence[Any]
"""A file; frames uint8 RGB [F, H, W, 3], a tensor also [F, 3, H, W]; an image [H, W, 3]; a list of
such or of PIL images."""


def as_videos(given: Any) -> list[Video]:
    """Tell one video from several.

    A list of files or of arrays [F, H, W, 3] is a list of videos, as is an array of five
    dimensions; a list of images is one video.
    """
    if getattr(given, "ndim", 0) == 5:
        return list(given)
    if isinstance(given, (str, Path)) or not isinstance(given, (list, tuple)):
        return [given]
    if not given:
        raise ValueError("the list of videos is empty")
    # [F, H, W, 3] is a video by itself, [H, W, 3] only a frame of one
    several = all(
        isinstance(item, (str, Path, list, tuple)) or getattr(item, "ndim", 0) == 4
        for item in given
    )
    return list(given) if several else [given]


def as_images(given: Any) -> list[Video]:
    """One image or several: files, arrays, tensors or PIL images."""
    if getattr(given, "ndim", 0) == 4:
        return list(given)
    return list(given) if isinstance(given, (list, tuple)) else [given]


def as_frames(video: Any) -> tuple[NDArray[np.uint8], bool]:
    """Convert an array, a tensor, a PIL image or a list of these to frames.

    Returns:
        Frames uint8 [F, H, W, 3], and whether it is an image (F = 1).

    Raises:
        ValueError: Names what was given.
    """
    try:
        if isinstance(video, (list, tuple)):
            frames = np.stack([_image(item) for item in video])
        else:
            frames = _image(video)
    except ValueError as error:
        raise ValueError(f"the frames of a video must have one size: {error}") from error
    shaped = frames.ndim in (3, 4) and frames.shape[-1] == 3 and 0 not in frames.shape
    if frames.dtype != np.uint8 or not shaped:
        raise ValueError(
            f"frames must be uint8 RGB [F, H, W, 3], or [H, W, 3] for an image, got {frames.dtype}"
            f" {list(frames.shape)}; give bytes from 0 to 255, colours last"
        )
    return (frames[None], True) if frames.ndim == 3 else (frames, False)


def _image(item: Any) -> NDArray[Any]:
    if isinstance(item, Tensor):
        # torch has the colours in front of height and width, as in torchvision's readers
        front = item.ndim > 2 and item.shape[-1] != 3 and item.shape[-3] == 3
        return (item.movedim(-3, -1) if front else item).cpu().numpy()
    return np.asarray(upright_rgb(item) if hasattr(item, "convert") else item)
