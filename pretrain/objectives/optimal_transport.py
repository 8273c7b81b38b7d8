"""Optimal-transport distance between the words of a caption and the patches of a clip.

The plan comes from IPOT, the inexact proximal point method for optimal transport (Xie, Wang, Wang
and Zha, "A Fast Proximal Point Method for Computing Exact Wasserstein Distance", UAI 2019), with
uniform marginals over the valid words and patches, as used by UNITER and ViLT. Letters: B clips, N
words, M patches, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BETA = 0.5
"""Weight of the proximal term; the kernel is exp(-cost / BETA). The original's value."""
ITERATIONS = 50
"""Outer iterations, of one inner iteration each, as in the original."""
PAD_WEIGHT = 1e4
"""Added to the denominators of padding rows: their marginal becomes ~0 without a branch."""


@torch.no_grad()
def ipot_plan(
    cost: Tensor,
    word_valid: Tensor,
    patch_valid: Tensor,
    beta: float = BETA,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Compute a transport plan with uniform marginals over the valid words and patches.

    Args:
        cost: Cost of each word and patch, [B, N, M].
        word_valid: bool [B, N], False at padding.
        patch_valid: bool [B, M], False at padding.
        beta: Weight of the proximal term.
        iterations: Outer iterations.

    Returns:
        The plan [B, N, M]; rows and columns of padding are 0.
    """
    words, patches = word_valid.to(cost.dtype), patch_valid.to(cost.dtype)
    num_words, num_patches = words.sum(1, keepdim=True), patches.sum(1, keepdim=True)
    word_pad, patch_pad = (1 - words) * PAD_WEIGHT, (1 - patches) * PAD_WEIGHT
    pairs = words[:, :, None] * patches[:, None, :]
    kernel = torch.exp(-cost / beta) * pairs
    plan = pairs
    scale_words = words / num_words.clamp(min=1)
    for _ in range(iterations):
        kernel_plan = kernel * plan
        scale_patches = 1 / (
            num_patches * torch.einsum("bnm,bn->bm", kernel_plan, scale_words) + patch_pad
        )
        scale_words = 1 / (
            num_words * torch.einsum("bnm,bm->bn", kernel_plan, scale_patches) + word_pad
        )
        plan = scale_words[:, :, None] * kernel_plan * scale_patches[:, None, :]
    # not plan * pairs: a caption without words has an infinite scale, and inf * 0 is NaN
    return plan.masked_fill(pairs == 0, 0.0)


def word_patch_distance(
    text: Tensor, video: Tensor, text_mask: Tensor, prefix_tokens: int = 1
) -> Tensor:
    """Compute the distance of each caption to its clip from the features of the joint pass.

    The text class token, the last real token ([SEP]), padding and the visual prefix tokens are
    excluded. The cost is 1 - cosine.

    Args:
        text: Text features, [B, L, C].
        video: Visual features, [B, prefix_tokens + P, C].
        text_mask: int64 [B, L], 1 at tokens.
        prefix_tokens: Visual tokens in front of the patches: class token, distillation token.

    Returns:
        float32 [B]. Gradients flow through the cost; the plan is constant.
    """
    # float32 without autocast, as in the original: the plan is the result of 50 products
    with torch.autocast(text.device.type, enabled=False):
        words = F.normalize(text.float(), dim=-1, eps=1e-5)
        patches = F.normalize(video[:, prefix_tokens:].float(), dim=-1, eps=1e-5)
        cost = 1 - torch.einsum("bnc,bmc->bnm", words, patches)
        position = torch.arange(text.shape[1], device=text.device)
        last = text_mask.sum(1, keepdim=True) - 1
        word_valid = (position > 0) & (position < last)
        patch_valid = torch.ones(patches.shape[:2], dtype=torch.bool, device=text.device)
        return (cost * ipot_plan(cost.detach(), word_valid, patch_valid)).sum((1, 2))
