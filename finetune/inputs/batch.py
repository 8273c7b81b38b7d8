"""What a task asks about an item (Example), and what the model gets (TaskBatch).

Letters: B items, C clips of an item, V views of a clip, T frames, S side of the image, K texts of
an item, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from allinone.data.loading.batch import BadClip
from allinone.finetune.annotations.schema import Media
from allinone.finetune.inputs.prompts import Text

Paint = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Draws into a frame uint8 [H, W, 3], RGB, and returns it."""


@dataclass(frozen=True)
class VisualInput:
    """One thing that an item shows."""

    media: Media
    paint: Paint | None = None
    painted: str = ""
    """Everything that the painting depends on, as text; part of the cache key of results."""


@dataclass(frozen=True)
class Example:
    """One item as it is put to the model."""

    looks: tuple[VisualInput, ...]
    """C of them; empty for a text alone."""
    texts: tuple[Text, ...]
    """K of them; empty for a clip alone."""
    target: int | NDArray[np.float32] = -1
    """The correct answer: the number of a text, clip or class, or a score for each class.

    -1 if the split does not publish it.
    """
    group: int = 0
    """Items of one group are not used as negatives of each other."""


ExampleFn = Callable[[int, np.random.Generator | None], Example]
"""(number of the item, generator in training or None) → example.

Sent to reader processes, so it must pickle: a module's function, or an object.
"""


@dataclass(frozen=True)
class TaskBatch:
    """B items. Tensors are on the training device."""

    pixels: Tensor
    """float32 [B, C, V, T, 3, S, S], normalised; C = 0 for texts alone."""
    text_ids: Tensor
    """int64 [B, K, L]; K = 0 for clips alone."""
    text_mask: Tensor
    """int64 [B, K, L], 1 at tokens."""
    target: Tensor
    """int64 [B], or float32 [B, classes]."""
    groups: Tensor
    """int64 [B], see Example.group."""
    items: tuple[int, ...]
    """Numbers of the items in their split."""
    clips: tuple[str, ...]
    """Names of the items, for logs."""
    first_position: int
    """Position of the first item in the training order; the batch holds consecutive positions."""
    digest: int = 0
    """Sum modulo 2**63 of the hashes of every item's choices.

    The same at any world size, on any device and after any restart.
    """
    lost: int = 0
    """Texts that lost part of what the answer depends on."""
    shortened: int = 0
    """Texts that were cut at all."""
    bad: tuple[BadClip, ...] = field(default=())
    """Items that were replaced (training) or left out (evaluation)."""
    text_lengths: Tensor | None = None
    """int64 [B, K] on the CPU, tokens of each text, which make the model compute no padding; None
    computes it."""

    def __len__(self) -> int:
        return len(self.items)

    def only(self, row: int) -> TaskBatch:
        """Return the batch of this item alone; counts and `bad` are left as they are."""
        rows: dict[str, Any] = {
            name: value[row : row + 1]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        # positions count items: row k of a batch is k positions further
        first = self.first_position + row
        return replace(
            self, **rows, items=(self.items[row],), clips=(self.clips[row],), first_position=first
        )

    def to(self, device: torch.device) -> TaskBatch:
        """Return the same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "text_lengths"
        }
        return replace(self, **moved)
