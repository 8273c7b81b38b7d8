"""The pairs of video-text matching. Letters: B clips of the micro-batch, L text tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_matching_pairs(text_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Draw which clip each caption is paired with, from torch's global generator.

    Half of the captions (rounded up), chosen at random, keep their clip. Each other caption gets a
    clip drawn uniformly from those of the micro-batch whose caption differs; if there is none, it
    keeps its clip. No clip is decoded twice, and nothing waits for the device.

    Args:
        text_ids: Captions, int64 [B, L].

    Returns:
        (labels, video), both int64 [B]: label 1 for a match, and the clip of each caption.
    """
    batch = text_ids.shape[0]
    same_text = (text_ids[:, None] == text_ids[None]).all(-1)
    # the largest of independent uniform scores is a uniform draw; -1 excludes a clip
    scores = torch.rand(batch, batch, device=text_ids.device).masked_fill(same_text, -1.0)
    best, other = scores.max(1)
    rank = torch.randperm(batch, device=text_ids.device)
    negative = (rank >= (batch + 1) // 2) & (best >= 0)
    own = torch.arange(batch, device=text_ids.device)
    return (~negative).long(), torch.where(negative, other, own)
