"""Co-training on video and images.

Two streams, each with its own batch size, joined into steps by a rule that depends on the step's
number only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from allinone.common.errors import DataError
from allinone.data.loading.batch import Batch, CoBatch
from allinone.data.loading.loader import TrainStream

Mode = Literal["joint", "alternate"]


class CoTrainStream:
    """Joins a video and an image stream.

    A step accumulates as many micro-batches of images as of video, so the image micro-batch is
    image_batch / (ranks x accumulation). What a step holds depends on its number alone: resume is
    exact, and elastic where both batches divide.

    Args:
        video: Stream of video clips.
        images: Stream of images, T = 1.
        global_batch: Video clips per step, over all ranks.
        image_batch: Images per step, over all ranks.
        mode: `joint`: every step holds a global batch of each. `alternate`: of every
            1 / image_share steps, one holds only images and the others only video, evenly spread.
        image_share: Share of the steps on images; `alternate` only.

    Raises:
        ValueError: `image_share` or `image_batch` is out of range.
    """

    def __init__(
        self,
        video: TrainStream,
        images: TrainStream,
        *,
        global_batch: int,
        image_batch: int,
        mode: Mode,
        image_share: float,
    ) -> None:
        if mode == "alternate" and not 0 < image_share < 1:
            raise ValueError(
                f"--image-share is the share of steps on images, between 0 and 1, got {image_share}"
            )
        if image_batch < 1:
            raise ValueError(f"--image-batch must be at least 1, got {image_batch}")
        self._video = video
        self._images = images
        self._global_batch = global_batch
        self._image_batch = image_batch
        self._mode = mode
        self.image_share = image_share if mode == "alternate" else 1.0
        """Share of the steps that hold images."""

    def text_lengths(self) -> list[NDArray[np.int64]]:
        """Tokens of a sample of the captions of videos, and of those of images."""
        return [*self._video.text_lengths(), *self._images.text_lengths()]

    def describe(self) -> str:
        """Describe both streams and how they are joined."""
        how = (
            "every step has both"
            if self._mode == "joint"
            else f"{100 * self.image_share:g} % of the steps are on images, the others on video"
        )
        return (
            f"{self._video.describe()}\nimages, {self._image_batch:,} per step,"
            f" {how}:\n{self._images.describe()}"
        )

    def image_steps_before(self, step: int) -> int:
        """Return how many of the steps 0 .. step - 1 hold images."""
        # 1e-9: in floats, step * share may be just below the integer that it should be
        return step if self._mode == "joint" else int(step * self.image_share + 1e-9)

    def video_steps_before(self, step: int) -> int:
        """Return how many of the steps 0 .. step - 1 hold video."""
        return step if self._mode == "joint" else step - self.image_steps_before(step)

    def positions(self, step: int) -> tuple[int, int]:
        """Positions of the video and image streams before step 0, 1, ..."""
        return (
            self.video_steps_before(step) * self._global_batch,
            self.image_steps_before(step) * self._image_batch,
        )

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[CoBatch]:
        """Yield batches without end.

        Args:
            first: Nominal position, step x global batch.
            rank: This data-parallel rank.
            world: Number of data-parallel ranks.
            micro_batch: Video clips per micro-batch.
            device: Where the tensors go.

        Raises:
            DataError: The image batch is not a multiple of ranks x accumulation.
        """
        # accumulation: micro-batches per step of this rank, for video and images alike
        rounds = self._global_batch // (micro_batch * world)
        step = first // self._global_batch
        if self._image_batch % (world * rounds):
            raise DataError(
                f"--image-batch {self._image_batch} is not a multiple of {world} ranks x {rounds}"
                " accumulated micro-batches; the nearest that are:"
                f" {self._image_batch // (world * rounds) * world * rounds} and"
                f" {(self._image_batch // (world * rounds) + 1) * world * rounds}"
            )
        place = {"rank": rank, "world": world}
        # Each stream continues after the samples of its own steps, a pure function of the step: the
        # position of a resumed run is enough.
        first_video, first_image = self.positions(step)
        video = self._video.batches(
            first=first_video,
            micro_batch=micro_batch,
            device=device,
            **place,
        )
        images = self._images.batches(
            first=first_image,
            micro_batch=self._image_batch // (world * rounds),
            device=device,
            **place,
        )
        while True:
            for _ in range(rounds):
                yield self._join(step, video, images)
            step += 1

    def _join(self, step: int, video: Iterator[Batch], images: Iterator[Batch]) -> CoBatch:
        """Take from the streams what a step of this number holds."""
        on_video = self.video_steps_before(step + 1) > self.video_steps_before(step)
        on_images = self.image_steps_before(step + 1) > self.image_steps_before(step)
        return CoBatch(next(video) if on_video else None, next(images) if on_images else None)
