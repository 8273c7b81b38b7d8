"""Word-patch alignment: the optimal-transport distance between a caption's words and a clip's
patches.

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
ITERATIONS = 50
PAD_WEIGHT = (
    1e4  # added to the denominators of padding rows: their marginal becomes ~0 without a branch
)


@torch.no_grad()
def ipot_plan(
    cost: Tensor,
    word_valid: Tensor,
    patch_valid: Tensor,
    beta: float = BETA,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Transport plan [B, N, M] for cost [B, N, M]; valid masks are bool [B, N] and [B, M]. Rows and
    columns of padding are 0."""
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
    return plan.masked_fill(
        pairs == 0, 0.0
    )  # not plan * pairs: a caption without words has an infinite scale


def word_patch_distance(text: Tensor, video: Tensor, text_mask: Tensor) -> Tensor:
    """Distance [B] between text [B, L, C] and video [B, 1+P, C] features of the joint pass, in
    float32.

    Left out: the text class token, the last real token ([SEP]), padding, and the visual class
    token. The cost is 1 - cosine; gradients flow through the cost only, the plan is held fixed.
    """
    with torch.autocast(text.device.type, enabled=False):
        words = F.normalize(text.float(), dim=-1, eps=1e-5)
        patches = F.normalize(video[:, 1:].float(), dim=-1, eps=1e-5)
        cost = 1 - torch.einsum("bnc,bmc->bnm", words, patches)
        position = torch.arange(text.shape[1], device=text.device)
        last = text_mask.sum(1, keepdim=True) - 1
        word_valid = (position > 0) & (position < last)
        patch_valid = torch.ones(patches.shape[:2], dtype=torch.bool, device=text.device)
        return (cost * ipot_plan(cost.detach(), word_valid, patch_valid)).sum((1, 2))
