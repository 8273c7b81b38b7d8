"""Pieces of the hot path that move fewer bytes than the plain expression, each next to its twin.

The twin is plain torch and defines the result; tests/model/test_kernels.py compares the two. This
is one module, not a package: transformers copies the files of relative imports, but not
sub-folders, when a model is saved with its code.

Letters: B clips, T frames, S texts with a clip, L text tokens, P patches, N tokens of a sequence, C
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .roll import roll_tokens


def rolled_rows(
    rows: int, tokens: int, frames: int, text_tokens: int, fold: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The roll as a permutation of all tokens of a batch.

    Args:
        rows: Sequences, B*T.
        tokens: Tokens of each, N.
        frames: Frames per clip, T.
        text_tokens: Text tokens at the start of each sequence, L.
        fold: Slots that roll in each direction.
        device: Where the tokens are.

    Returns:
        (source, target), both int64 [B*T*N]: rolled token i is token source[i], and token i becomes
        rolled token target[i].
    """
    places = torch.arange(rows * tokens, device=device)
    source = roll_tokens(places.view(rows, tokens, 1), frames, text_tokens, fold).flatten()
    return source, torch.empty_like(source).scatter_(0, source, places)


def permute_tokens(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Permute the tokens of all sequences: one copy forward and one backward.

    The plain roll (`roll.roll_tokens`, the twin) is a concatenation of slices. Its backward pass
    fills a tensor of the size of x for each slice and adds the four, about 3 times the bytes.

    Args:
        x: Tokens, [B*T, N, C].
        source: From `rolled_rows`.
        target: From `rolled_rows`.
    """
    return _PermuteTokens.apply(x, source, target)


class _PermuteTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(source, target)
        return x.flatten(0, 1).index_select(0, source).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        source, target = ctx.saved_tensors
        # a permutation's gradient is read at its inverse: no atomic additions, as in index_add
        return _PermuteTokens.apply(gradient.contiguous(), target, source), None, None


def select_clips(x: Tensor, clips: Tensor) -> Tensor:
    """`x.index_select(0, clips)`, its twin, with a deterministic gradient.

    A clip may be selected several times, and index_select's gradient adds with atomics on CUDA, in
    an order that changes from run to run. Here the sum is a matrix product.

    Args:
        x: One row per clip, [B, ...].
        clips: int64 [S].
    """
    return _SelectClips.apply(x, clips)


class _SelectClips(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, clips: Tensor) -> Tensor:
        ctx.save_for_backward(clips)
        ctx.shape = x.shape
        return x.index_select(0, clips)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (clips,) = ctx.saved_tensors
        own = torch.arange(ctx.shape[0], device=clips.device)[:, None] == clips
        return (own.to(gradient.dtype) @ gradient.flatten(1)).view(ctx.shape), None


def add_kept(x: Tensor, branch: Tensor, keep: Tensor, rate: float) -> Tensor:
    """x + branch * keep / (1 - rate) in one pass; that expression is the twin.

    Args:
        x: Residual stream.
        branch: What is added to it, of the same shape.
        keep: 1 or 0, in x's precision; broadcast over the sequence.
        rate: Probability of a 0.
    """
    # the factor stays a Python number: 1 / 0.9 rounded to bf16 would bias the branch by 0.2 %
    return torch.addcmul(x, branch, keep, value=1 / (1 - rate))


def add_scaled(x: Tensor, branch: Tensor, keep: Tensor, rate: Tensor) -> Tensor:
    """add_kept with the rate on the device, for a compiler, which makes one pass of it.

    Args:
        x: Residual stream.
        branch: What is added to it, of the same shape.
        keep: 1 or 0; broadcast over the sequence.
        rate: float32 scalar, probability of a 0.
    """
    # in float32, so that neither factor nor product is rounded to bf16 before the addition
    return (x.float() + branch.float() * (keep.float() / (1 - rate))).to(x.dtype)


def patch_rows(pixels: Tensor, size: int) -> Tensor:
    """Cut frames into patches, for a projection by one matrix product.

    The twin of patch_rows and a linear layer is a convolution whose stride is its kernel's size.

    Args:
        pixels: [R, 3, H, W].
        size: Height and width of a patch, p.

    Returns:
        [R, P, 3 * p * p], patches in raster order, each in the order of a convolution's weight.
    """
    height, width = pixels.shape[2] // size, pixels.shape[3] // size
    cut = pixels.unflatten(2, (height, size)).unflatten(4, (width, size))
    # [R, 3, h, p, w, p] → [R, h, w, 3, p, p]
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
