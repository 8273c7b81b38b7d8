"""The part of decoded frames that a crop reads: what reader processes hand over of them.

Letters: T frames, H and W as stored, h and w of the part, S side of the crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MARGIN = 2
"""Pixels around the part beyond the filter's own reach, for positions in float32."""


@dataclass(frozen=True)
class FrameRegion:
    """A part of frames, with its place in them."""

    pixels: NDArray[np.uint8]
    """[T, h, w, 3]."""
    top: int
    left: int
    height: int
    """Of the complete frames, H."""
    width: int

    @classmethod
    def of(
        cls, frames: NDArray[np.uint8], box: tuple[float, float, float, float], side: int
    ) -> FrameRegion:
        """What a crop and its resize read of frames.

        Args:
            frames: [T, H, W, 3]; the part is a view.
            box: Top, left, height and width of the crop as shares of H and W.
            side: S.
        """
        height, width = frames.shape[1:3]
        rows = _read(box[0], box[2], height, side)
        columns = _read(box[1], box[3], width, side)
        return cls(frames[:, rows, columns], rows.start, columns.start, height, width)

    def complete(self) -> NDArray[np.uint8]:
        """Frames [T, H, W, 3] that are zero outside of the part.

        DALI computes positions in float32 from the edges of the frame: in a smaller frame they
        round differently, and 0.06 % of the pixels change by a level. Zeros cost no copy: their
        pages are mapped when they are read.
        """
        frames, channels = self.pixels.shape[0], self.pixels.shape[3]
        complete = np.zeros((frames, self.height, self.width, channels), np.uint8)
        bottom, right = self.top + self.pixels.shape[1], self.left + self.pixels.shape[2]
        complete[:, self.top : bottom, self.left : right] = self.pixels
        return complete


def _read(start: float, share: float, size: int, side: int) -> slice:
    """Pixels of an axis that a triangular filter reads, see torch_pipeline.resize_weights.

    Args:
        start: Start of the crop as a share of the axis.
        share: Its length as a share of the axis.
        size: Pixels of the axis before.
        side: Pixels of the axis after.
    """
    reach = max(1.0, share * size / side) + MARGIN
    first, end = start * size - reach, (start + share) * size + reach
    return slice(max(0, math.floor(first)), min(size, math.ceil(end)))
