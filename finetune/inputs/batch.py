"""What a protocol says of an item (an Example) and what the model gets (a TaskBatch).

Letters: B items, C clips of an item, V views of a clip, T frames, S side of the picture, K texts of
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
"""Draws into a picture [H, W, 3], RGB."""


@dataclass(frozen=True)
class VisualInput:
    """One thing that an item shows."""

    media: Media
    paint: Paint | None = None
    painted: str = ""
    """What the paint depends on, as text; part of what results are cached by."""


@dataclass(frozen=True)
class Example:
    """One item as the model is asked."""

    looks: tuple[VisualInput, ...]
    """C of them; none for a text alone."""
    texts: tuple[Text, ...]
    """K of them; none for a clip alone."""
    target: int | NDArray[np.float32] = -1
    """What is right: the number of a text, clip or class; or a score for each class. -1 where the
    split hides it."""
    group: int = 0
    """Items of one group are no negatives of each other."""


Maker = Callable[[int, np.random.Generator | None], Example]
"""(number of the item, random numbers in training) → example. Sent to reader processes: a function
of a module, or an object."""


@dataclass(frozen=True)
class TaskBatch:
    """B items. Tensors are on the training device."""

    pixels: Tensor
    """float32 [B, C, V, T, 3, S, S], normalised; C = 0 where only texts are asked about."""
    text_ids: Tensor
    """int64 [B, K, L]; K = 0 where only clips are asked about."""
    text_mask: Tensor
    """int64 [B, K, L], 1 at tokens."""
    target: Tensor
    """int64 [B], or float32 [B, classes]."""
    groups: Tensor
    """int64 [B], see Example.group."""
    items: tuple[int, ...]
    """Numbers of the items in their split."""
    clips: tuple[str, ...]
    """Names of the items, for people."""
    first_position: int
    """Position in the order of training of the first item; the batch holds consecutive ones."""
    digest: int = 0
    """Sum modulo 2**63 of the hashes of every item's choices: equal over world sizes, restarts and
    devices."""
    lost: int = 0
    """Texts whose deciding part had to be cut."""
    shortened: int = 0
    """Texts of which anything was cut."""
    bad: tuple[BadClip, ...] = field(default=())
    """Items that were replaced (training) or left out (evaluation)."""

    def __len__(self) -> int:
        return len(self.items)

    def only(self, row: int) -> TaskBatch:
        """The batch that holds this item alone; its counts and `bad` are left as they are."""
        rows: dict[str, Any] = {
            name: value[row : row + 1]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        first = self.first_position + row
        return replace(
            self, **rows, items=(self.items[row],), clips=(self.clips[row],), first_position=first
        )

    def to(self, device: torch.device) -> TaskBatch:
        """The same on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)
