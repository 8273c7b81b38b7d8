"""The contrastive loss over the clips of all data ranks. Letters: B clips of the micro-batch, D
projection width, W data ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from allinone.engine.distributed import topology


class _Gather(torch.autograd.Function):
    """All-gather over the data ranks. torch.distributed.nn has one, whose backward with gloo takes
    ranks of a group for global ones."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return _gather(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        layout, summed = topology.current(), gradient.clone()
        dist.all_reduce(summed, group=layout.data_group)
        return summed.chunk(layout.data_world)[layout.data_rank]


def gather_with_gradient(local: Tensor) -> Tensor:
    """Concatenate [B, D] of all data ranks in their order to [W * B, D]; the gradient of every
    rank's loss flows back to its owner."""
    return local if topology.current().data_world == 1 else _Gather.apply(local)


def _gather(local: Tensor) -> Tensor:
    layout = topology.current()
    if layout.data_world == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(layout.data_world)]
    dist.all_gather(parts, local.contiguous(), group=layout.data_group)
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


_in_use = False


def in_use() -> bool:
    """Whether forward passes of this process wait for those of other ranks."""
    return _in_use


def contrast(text: Tensor, video: Tensor, scale: Tensor, groups: Tensor | None = None) -> Contrast:
    """InfoNCE of unit-length embeddings [B, D] of pairs, whose negatives are all pairs of the same
    micro-batch on all ranks.

    `groups` int64 [B]: pairs of one group (two captions of one video) are no negatives of each
    other.
    """
    global _in_use
    _in_use = True
    target = torch.arange(len(text), device=text.device) + topology.current().data_rank * len(text)
    to_video = scale * text @ gather_with_gradient(video).T
    to_text = scale * video @ gather_with_gradient(text).T
    if groups is not None:
        same = groups[:, None] == _gather(groups)[None]
        same[torch.arange(len(text), device=text.device), target] = False
        to_video, to_text = (
            logits.masked_fill(same, float("-inf")) for logits in (to_video, to_text)
        )
    losses = (
        F.cross_entropy(to_video, target, reduction="none")
        + F.cross_entropy(to_text, target, reduction="none")
    ) / 2
    return Contrast(losses, to_video.argmax(-1) == target, to_text.argmax(-1) == target)
