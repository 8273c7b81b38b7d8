"""The random choices of a micro-batch, which a caller may determine.

A reproduction of another program's training, a test or an ablation gives its own choices here;
training draws them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from allinone.data.loading.batch import Batch


@dataclass(frozen=True)
class Draws:
    """Random choices of one micro-batch of B clips, T frames and P patches per frame.

    A choice that is None is drawn from torch's global generator. Dropout is drawn in any case.
    """

    mlm_patch_order: Tensor | None = None
    """int64 [B*T, K], order of the patches in the MLM pass: slot k of row i*T + f holds patch
    order[i*T + f, k] of frame f of clip i. K = P, or fewer: the others are left out."""
    vtm_patch_order: Tensor | None = None
    """The same for the VTM pass; row i*T + f belongs to the clip that caption i is paired with."""
    matching_pairs: tuple[Tensor, Tensor] | None = None
    """Pairs of VTM: (labels, clips), both int64 [B]; label 1 if the clip is the caption's own, and
    the clip of each caption, a row of the micro-batch."""
    vtc_patches: Tensor | None = None
    """Patches that the video pass of VTC keeps, int64 [B*T, K]."""


DrawFn = Callable[["Batch"], Draws]
"""Returns the choices for a micro-batch; `batch.first_position` tells its step and rank."""


def draw_everything(batch: Batch) -> Draws:
    """Leave all choices to torch's global generator."""
    return Draws()
