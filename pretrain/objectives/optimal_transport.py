"""Optimal-transport distance between the words of a caption and the patches of a clip.

The plan comes from IPOT, the inexact proximal point method for optimal transport (Xie, Wang, Wang
and Zha, "A Fast Proximal Point Method for Computing Exact Wasserstein Distance", UAI 2019), with
uniform marginals over the valid words and patches, as used by UNITER and ViLT. Letters: B clips, N
words, M patches, C width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

BETA = 0.5
"""Weight of the proximal term; the kernel is exp(-cost / BETA). The original's value."""
ITERATIONS = 50
"""Outer iterations, of one inner iteration each, as in the original."""
PAD_WEIGHT = 1e4
"""Added to the denominators of padding rows: their marginal becomes ~0 without a branch."""


def proximal_iterations(
    kernel: Tensor, words: Tensor, patches: Tensor, iterations: int = ITERATIONS
) -> Tensor:
    """Run IPOT's iterations, without a branch and without waiting for the device.

    Args:
        kernel: exp(-cost / beta), [B, N, M]; 0 at padding.
        words: 1 at words and 0 at padding, [B, N], of the kernel's type.
        patches: The same for patches, [B, M].
        iterations: Outer iterations.

    Returns:
        The plan [B, N, M]; its rows and columns of padding have no meaning.
    """
    num_words, num_patches = words.sum(1, keepdim=True), patches.sum(1, keepdim=True)
    word_pad, patch_pad = (1 - words) * PAD_WEIGHT, (1 - patches) * PAD_WEIGHT
    plan = words[:, :, None] * patches[:, None, :]
    scale_words = words / num_words.clamp(min=1)
    for _ in range(iterations):
        kernel_plan = kernel * plan
        # not einsum: it calls a matrix product, which a compiler cannot fuse with the rest, and
        # which takes 2.5 times as long on a CPU for a vector
        scale_patches = 1 / (
            num_patches * (kernel_plan * scale_words[:, :, None]).sum(1) + patch_pad
        )
        scale_words = 1 / (num_words * (kernel_plan * scale_patches[:, None, :]).sum(2) + word_pad)
        plan = scale_words[:, :, None] * kernel_plan * scale_patches[:, None, :]
    return plan


class CompiledFunction:
    """A function compiled by torch.compile at its first call.

    If it cannot be compiled, as without a C compiler, a warning says so and it runs uncompiled:
    the same result, more slowly.

    Args:
        function: Takes and returns tensors.
        backend: As in torch.compile.
    """

    def __init__(
        self, function: Callable[..., Tensor], backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        self._function = function
        self._backend = backend
        self._compiled: Callable[..., Tensor] | None = None

    def __call__(self, *args: Any) -> Tensor:
        from torch._dynamo.exc import TorchDynamoException  # its import takes a second

        if self._compiled is None:
            self._compiled = torch.compile(self._function, backend=self._backend, fullgraph=True)
        try:
            return self._compiled(*args)
        except TorchDynamoException as error:
            if self._compiled is not self._function:
                reason = str(error).strip().partition("\n")[0]
                log.warning("%s runs uncompiled: %s", self._function.__name__, reason)
            self._compiled = self._function
            return self._function(*args)


_compiled_iterations = CompiledFunction(proximal_iterations)
"""Used on CUDA, where 50 iterations would be 650 kernels, each too short to cover its launch. On a
CPU they take 3 ms for 8 clips of base size, less than a compilation."""


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
    pairs = words[:, :, None] * patches[:, None, :]
    kernel = torch.exp(-cost / beta) * pairs
    iterate = _compiled_iterations if cost.is_cuda else proximal_iterations
    plan = iterate(kernel, words, patches, iterations)
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
