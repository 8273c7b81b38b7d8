"""The contrastive loss over the clips of all data ranks.

Letters: B clips of the micro-batch, D projection width, W data ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from allinone.engine.distributed import topology


class _Gather(torch.autograd.Function):
    """All-gather over the data ranks.

    The backward of torch.distributed.nn's all_gather confuses ranks of a group with global ranks
    under gloo (torch 2.13), so it cannot be used with a data group.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return _gather(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # each rank's loss depends on every rank's rows, so their gradients are summed before the
        # owner takes its share; autograd's tensor may be shared: reduce a copy
        layout, summed = topology.current(), gradient.clone()
        dist.all_reduce(summed, group=layout.data_group)
        return summed.chunk(layout.data_world)[layout.data_rank]


def gather_with_gradient(local: Tensor) -> Tensor:
    """Concatenate [B, D] of all data ranks in rank order to [W * B, D]; collective.

    The gradients of all ranks' losses are summed and returned to the rank that owns the rows.
    """
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
    """Losses of the local pairs against all pairs, and whether each pair was found."""

    losses: Tensor
    """float32 [B], mean of both directions."""
    text_right: Tensor
    """bool [B], whether the own clip has the highest score for a text among all clips."""
    video_right: Tensor
    """bool [B], whether the own text has the highest score for a clip among all texts."""


_in_use = False


def in_use() -> bool:
    """Whether forward passes of this process contain collectives."""
    return _in_use


def contrast(text: Tensor, video: Tensor, scale: Tensor, groups: Tensor | None = None) -> Contrast:
    """Symmetric InfoNCE (van den Oord et al., 2018; CLIP, 2021) over all data ranks; collective.

    The negatives of a pair are all other pairs of the micro-batch on all ranks.

    Args:
        text: Unit-length embeddings [B, D].
        video: Unit-length embeddings [B, D]; row i belongs to text i.
        scale: Scalar that multiplies the cosines (the inverse temperature).
        groups: int64 [B]; pairs of one group, such as two captions of one video, are not used as
            negatives of each other.
    """
    global _in_use
    _in_use = True
    # row i of this rank is row data_rank * B + i of the gathered embeddings
    target = torch.arange(len(text), device=text.device) + topology.current().data_rank * len(text)
    to_video = scale * text @ gather_with_gradient(video).T
    to_text = scale * video @ gather_with_gradient(text).T
    if groups is not None:
        same = groups[:, None] == _gather(groups)[None]
        # a pair is in its own group: masking its target would make the loss infinite
        same[torch.arange(len(text), device=text.device), target] = False
        to_video = to_video.masked_fill(same, float("-inf"))
        to_text = to_text.masked_fill(same, float("-inf"))
    losses = (
        F.cross_entropy(to_video, target, reduction="none")
        + F.cross_entropy(to_text, target, reduction="none")
    ) / 2
    return Contrast(losses, to_video.argmax(-1) == target, to_text.argmax(-1) == target)
