"""What the data path hands to training: one micro-batch of clips with their captions.

Letters: B clips, T frames, H and W of the crop, L text tokens, M masked tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadClip:
    """A clip that could not be used, and why."""

    dataset: str
    clip: str
    reason: str
    epoch: int = 0
    """Epoch of the position at which it was met."""


@dataclass(frozen=True)
class Batch:
    """B clips of T frames with L text tokens. Tensors are on the training device."""

    pixels: Tensor
    """float32 [B, T, 3, H, W], normalised."""
    text_ids: Tensor
    """int64 [B, L], unmasked; 0 is padding."""
    text_mask: Tensor
    """int64 [B, L], 1 at tokens."""
    mlm_ids: Tensor
    """int64 [B, L], the text as MLM sees it."""
    mlm_labels: Tensor
    """int64 [B, L], the original id where a token was chosen, -100 elsewhere."""
    mlm_positions: Tensor
    """int64 [M], flat positions b * L + l of the chosen tokens, ascending.

    Found on the host: `nonzero` on a GPU would make the step wait for the device.
    """
    dataset_ids: Tensor
    """int64 [B], index into dataset_names."""
    dataset_names: tuple[str, ...]
    clips: tuple[str, ...]
    """Clip names, unique inside their data set."""
    captions: tuple[str, ...]
    first_position: int
    """Position of the first sample in the training order; the batch holds consecutive positions."""
    digest: int = 0
    """Sum modulo 2**63 of the hashes of every sample's choices.

    The same at any world size, on any device and after any restart.
    """
    bad: tuple[BadClip, ...] = ()
    """Clips that were replaced (training) or left out (evaluation) while making this batch."""
    text_lengths: Tensor | None = None
    """int64 [B] on the CPU, tokens of each text, which make the model compute no padding; None
    computes it."""
    mean_items: Mapping[str, Tensor] = field(default_factory=dict)
    """Objective → float32 scalar: items, such as masked tokens, of a micro-batch of this modality,
    averaged over the training step, that the loss is divided by. Empty: by the batch's own."""

    def __len__(self) -> int:
        return len(self.clips)

    def first(self, number: int) -> Batch:
        """Return the batch of the first `number` clips."""
        return self._rows(0, number)

    def only(self, row: int) -> Batch:
        """Return the batch of this clip alone."""
        return self._rows(row, row + 1)

    def _rows(self, start: int, stop: int) -> Batch:
        """Return rows start .. stop - 1, outside of any step. `digest` and `bad` are left."""
        length = self.text_ids.shape[1]
        # mlm_positions index the flattened [B * L] texts: keep those of the rows, and shift them
        row_of = torch.div(self.mlm_positions, length, rounding_mode="floor")
        per_clip = ("pixels", "text_ids", "text_mask", "mlm_ids", "mlm_labels", "dataset_ids")
        lengths = self.text_lengths
        return replace(
            self,
            **{name: getattr(self, name)[start:stop] for name in per_clip},
            text_lengths=None if lengths is None else lengths[start:stop],
            mlm_positions=self.mlm_positions[(row_of >= start) & (row_of < stop)] - start * length,
            clips=self.clips[start:stop],
            captions=self.captions[start:stop],
            first_position=self.first_position + start,
            mean_items={},
        )

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "text_lengths"
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class CoBatch:
    """A video and an image micro-batch of one co-training step.

    One of them is missing where steps alternate.
    """

    video: Batch | None
    images: Batch | None
    """Frames T = 1."""

    @property
    def parts(self) -> tuple[Batch, ...]:
        """The parts that are present, video first."""
        return tuple(part for part in (self.video, self.images) if part is not None)

    @property
    def first_position(self) -> int:
        """Of the video part, or of the images if there is no video."""
        return self.parts[0].first_position

    @property
    def clips(self) -> tuple[str, ...]:
        """Names of the clips of all parts."""
        return tuple(clip for part in self.parts for clip in part.clips)

    @property
    def digest(self) -> int:
        """Sum of the parts' digests modulo 2**63."""
        return sum(part.digest for part in self.parts) % 2**63

    @property
    def bad(self) -> tuple[BadClip, ...]:
        """Bad clips of all parts."""
        return tuple(clip for part in self.parts for clip in part.bad)

    def only(self, row: int) -> CoBatch:
        """Return the batch of one clip alone; rows count the video first, then the images."""
        videos = 0 if self.video is None else len(self.video)
        if self.video is not None and row < videos:
            return CoBatch(self.video.only(row), None)
        assert self.images is not None
        return CoBatch(None, self.images.only(row - videos))

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)
