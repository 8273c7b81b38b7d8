"""The contrastive loss over the clips of all ranks. Letters: B clips of the micro-batch, D projection width, W ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor


def gather_with_gradient(local: Tensor) -> Tensor:
    """Concatenate [B, D] of all ranks in rank order to [W * B, D]; the gradient of every rank's loss flows back to its owner."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    return torch.cat(dist_nn.all_gather(local.contiguous()))


def _gather(local: Tensor) -> Tensor:
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


@dataclass(frozen=True)
class Contrast:
    """Local rows against the columns of all ranks."""

    losses: Tensor
    """float32 [B], both directions averaged."""
    text_right: Tensor
    """bool [B], whether a text finds its clip among all."""
    video_right: Tensor
    """bool [B], whether a clip finds its text among all."""


def contrast(text: Tensor, video: Tensor, scale: Tensor, groups: Tensor | None = None) -> Contrast:
    """InfoNCE of unit-length embeddings [B, D] of pairs, whose negatives are all pairs of the same micro-batch on all ranks.

    `groups` int64 [B]: pairs of one group (two captions of one video) are no negatives of each other.
    """
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    target = torch.arange(len(text), device=text.device) + rank * len(text)
    to_video = scale * text @ gather_with_gradient(video).T
    to_text = scale * video @ gather_with_gradient(text).T
    if groups is not None:
        same = groups[:, None] == _gather(groups)[None]
        same[torch.arange(len(text), device=text.device), target] = False
        to_video, to_text = (logits.masked_fill(same, float("-inf")) for logits in (to_video, to_text))
    losses = (F.cross_entropy(to_video, target, reduction="none") + F.cross_entropy(to_text, target, reduction="none")) / 2
    return Contrast(losses, to_video.argmax(-1) == target, to_text.argmax(-1) == target)
