"""Pieces of the hot path that move fewer bytes than the plain expression, each next to its twin.

The twin is plain torch and defines the result; tests/model/test_kernels.py compares the two. This
is one module, not a package: transformers copies the files of relative imports, but not
sub-folders, when a model is saved with its code.

Letters: B clips, T frames, S texts with a clip, L text tokens, P patches, N tokens of a sequence, C
width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import Packing
from .roll import roll_tokens


def rolled_rows(
    rows: int,
    tokens: int,
    frames: int,
    text_tokens: int,
    fold: int,
    device: torch.device,
    packing: Packing | None = None,
) -> tuple[Tensor, Tensor]:
    """The roll as a permutation of all tokens of a batch.

    Args:
        rows: Sequences, B*T.
        tokens: Tokens of each, N.
        frames: Frames per clip, T.
        text_tokens: Text tokens at the start of each sequence, L.
        fold: Slots that roll in each direction.
        device: Where the tokens are.
        packing: Where the padding of these sequences is left out.

    Returns:
        (source, target), both int64 [B*T*N], or [W] with a packing: rolled token i is token
        source[i], and token i becomes rolled token target[i].
    """
    if packing is None:
        numbers = torch.arange(rows * tokens, device=device)
        source = roll_tokens(numbers.view(rows, tokens, 1), frames, text_tokens, fold)
    else:  # patches alone move, so no token moves to a place of padding
        numbers = torch.arange(packing.owner.shape[0], device=device)
        padded = packing.unpack(numbers[None, :, None])
        source = packing.pack(roll_tokens(padded, frames, text_tokens, fold))
    source = source.flatten()
    return source, torch.empty_like(source).scatter_(0, source, numbers)


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


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float = 0.0
) -> Tensor:
    """Attention inside sequences of their real length.

    On CUDA by FlashAttention, which takes no mask but sequences of different lengths. It computes
    16-bit numbers without attention dropout; everything else takes the twin, `padded_attention`.

    Args:
        q: [1, Wq, H, C/H].
        k: [1, W, H, C/H].
        v: As k.
        queries: Packing of q.
        keys: Packing of k and v, with the same sequences.
        dropout: Of the attention weights.

    Returns:
        [1, Wq, H, C/H].
    """
    flash = keys.flash
    if flash is None or dropout:
        return padded_attention(q, k, v, queries, keys, dropout)
    # the longest sequence only bounds the kernel's grid: with the padded length it is a constant,
    # so that nothing is compiled again for other texts, and the host need not know it
    longest = queries.shape[1], keys.shape[1]
    return flash(q[0], k[0], v[0], queries.starts, keys.starts, *longest)[None]


def flash_attention(device: torch.device, dtype: torch.dtype) -> Callable[..., Any] | None:
    """torch's FlashAttention for sequences of different lengths, where it runs; else None.

    Args:
        device: Where the tensors are; Ampere or newer.
        dtype: Their precision; bf16 or fp16.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        # here: it imports torch's compiler, which takes seconds
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch 2.9
        return None
    return varlen_attn


def padded_attention(
    q: Tensor, k: Tensor, v: Tensor, queries: Packing, keys: Packing, dropout: float = 0.0
) -> Tensor:
    """The twin of `packed_attention`: padded for torch's own attention, with a mask.

    Args:
        q: [1, Wq, H, C/H].
        k: [1, W, H, C/H].
        v: As k.
        queries: Packing of q.
        keys: Packing of k and v.
        dropout: Of the attention weights.

    Returns:
        [1, Wq, H, C/H].
    """
    q, k, v = (
        packing.unpack(x).transpose(1, 2) for packing, x in ((queries, q), (keys, k), (keys, v))
    )
    real = torch.ones_like(keys.places, dtype=torch.bool)
    mask = keys.unpack(real[None])[:, None, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return queries.pack(mixed.transpose(1, 2))
