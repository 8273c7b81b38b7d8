"""What reader processes hand to the training process: visuals, samples and micro-batches.

Pre-training (data/loading/loader.py) and fine-tuning (finetune/inputs/loader.py) share these.
Letters: T frames, H and W as stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from allinone.data.decoding.gop_trim import TrimmedStream
from allinone.data.loading.batch import BadClip
from allinone.data.loading.frame_region import FrameRegion
from allinone.data.loading.sampling import SampleChoices

Pixels = NDArray[np.uint8] | FrameRegion | TrimmedStream
"""Decoded frames [T, H, W, 3], the part of them that the crop reads, or a trimmed stream that DALI
decodes."""


@dataclass(frozen=True)
class Visual:
    """T chosen frames of one clip, and how they are to be cropped and augmented.

    When a reader process hands it over, it holds only the part of its frames that the crop reads:
    the same pixels result, and about 60 % of the bytes cross the pipe.
    """

    media: Pixels
    choices: SampleChoices
    side: int = 0
    """Height and width of the crop, S; 0: unknown, and complete frames are handed over."""

    def __reduce__(self) -> tuple[Any, ...]:
        media = self.media
        if self.side and isinstance(media, np.ndarray):
            media = FrameRegion.of(media, self.choices.box, self.side)
        return Visual, (media, self.choices, self.side)


@dataclass
class Sample:
    """One sample: a row of a sample source, read and tokenised."""

    row: int
    """Row in its source."""
    name: str
    visuals: list[Visual]
    """Clip by clip; none for a text alone."""
    arrays: dict[str, NDArray[np.generic]]
    """Stacked over the micro-batch, by the name of the batch's field."""
    digest: int
    """63-bit hash of everything that was chosen."""
    caption: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    """Summed over the micro-batch, by the name of the batch's field."""
    attempt: int = 0
    """How many rows before this one were unusable at this position."""


@dataclass
class MicroBatch:
    """Samples of one micro-batch before augmentation."""

    samples: list[Sample]
    bad: tuple[BadClip, ...]
    """What was replaced (training) or left out (evaluation)."""
    first_position: int
    """Position in the training order of the first sample; in evaluation the first row."""

    def stack(self, name: str) -> NDArray[np.generic]:
        """Return an array of all samples, stacked."""
        return np.stack([sample.arrays[name] for sample in self.samples])

    def total(self, name: str) -> int:
        """Return a count, summed over the samples."""
        return sum(sample.counts[name] for sample in self.samples)

    @property
    def digest(self) -> int:
        """Sum of the samples' digests modulo 2**63: the same in any order and grouping."""
        return sum(sample.digest for sample in self.samples) % 2**63

    @property
    def visuals(self) -> list[Visual]:
        """The visuals of all samples, in order."""
        return [visual for sample in self.samples for visual in sample.visuals]

    @property
    def owners(self) -> list[int]:
        """For each of `visuals`, the number of its sample."""
        return [i for i, sample in enumerate(self.samples) for _ in sample.visuals]


class SampleSource(Protocol):
    """Rows that samples are made of: a prepared split, or the items of a benchmark."""

    @property
    def name(self) -> str:
        """Keys the random choices and names the data set in logs."""
        ...

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """Return the row's name for the bad-clip log."""
        ...

    def train_sample(self, row: int, random: np.random.Generator) -> Sample:
        """Make a training sample; raises DecodeError if the row cannot be used."""
        ...

    def eval_sample(self, row: int) -> Sample:
        """Make an evaluation sample; raises DecodeError if the row cannot be used."""
        ...
