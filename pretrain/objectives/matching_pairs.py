"""The pairs of video-text matching. Letters: B clips of the micro-batch, L text tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_matching_pairs(
    text_ids: Tensor, dataset_ids: Tensor | None = None, similarity: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw which clip each caption is paired with, from torch's global generator.

    Half of the captions (rounded up), chosen at random, keep their clip. Each other caption gets a
    clip drawn uniformly from those of the micro-batch whose caption differs; if there is none, it
    keeps its clip. No clip is decoded twice, and nothing waits for the device.

    Args:
        text_ids: Captions, int64 [B, L].
        dataset_ids: Data set of each clip, int64 [B]. If given, the clip is drawn from the
            caption's own data set, and from the others only if that has no other caption: a pair
            from two data sets is recognised by its style alone. With one data set the draws do not
            depend on this argument.
        similarity: Of each caption (row) and clip, [B, B], divided by the temperature. If given,
            the clip is drawn from their softmax over the clips that it may be, instead of
            uniformly (hard negatives: ALBEF, Li et al. 2021, arXiv 2107.07651, section 3.2).

    Returns:
        (labels, video), both int64 [B]: label 1 for a match, and the clip of each caption.
    """
    batch = text_ids.shape[0]
    same_text = (text_ids[:, None] == text_ids[None]).all(-1)
    # the largest of independent uniform scores is a uniform draw
    scores = torch.rand(batch, batch, device=text_ids.device)
    lower, excluded = 1.0, -2.0
    if similarity is not None:
        # the largest of logits with Gumbel noise is a draw from their softmax
        scores = similarity.detach().float() - (-scores.clamp_min(1e-30).log()).log()
        # logits are at most 100, and the noise is between -5 and 17
        lower, excluded = 1e3, -1e4
    if dataset_ids is not None:
        # below all scores of the own data set
        scores = scores - lower * (dataset_ids[:, None] != dataset_ids[None]).to(scores)
    best, other = scores.masked_fill(same_text, excluded).max(1)
    rank = torch.randperm(batch, device=text_ids.device)
    negative = (rank >= (batch + 1) // 2) & (best > excluded)
    own = torch.arange(batch, device=text_ids.device)
    return (~negative).long(), torch.where(negative, other, own)
