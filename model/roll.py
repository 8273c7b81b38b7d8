"""Temporal token rolling and its alternatives: how the frames of a clip exchange information
without a parameter.

Letters: B clips, T frames, L text tokens, n = 1 + P visual tokens (class token first), N = L + n, C
width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold_size(visual_tokens: int, divisor: int) -> int:
    """Tokens that roll in each direction, n // divisor. The original rolls *all* tokens backwards
    where this is 0 (n < 8); here none roll."""
    return visual_tokens // divisor


def roll_tokens(x: Tensor, frames: int, text_tokens: int, fold: int) -> Tensor:
    """All-in-one's temporal token rolling of [B*T, N, C] (clip-major): text and class token stay;
    the first `fold` patch slots of frame f receive frame f-1's tokens, the last `fold` slots frame
    f+1's, both with wrap-around (paper, section 3.2).
    """
    if frames == 1 or fold == 0:
        return x
    clips = x.unflatten(0, (-1, frames))
    # slots are chosen by place, so which patches move depends on the patch order
    start, tokens = text_tokens + 1, x.shape[1]
    parts = [
        clips[:, :, :start],
        # a roll wraps around: after T blocks every token is back in its own frame
        clips[:, :, start : start + fold].roll(1, dims=1),
        clips[:, :, start + fold : tokens - fold],
        clips[:, :, tokens - fold :].roll(-1, dims=1),
    ]
    return torch.cat(parts, dim=2).flatten(0, 1)


def roll_channels(x: Tensor, frames: int, text_tokens: int, fold: int) -> Tensor:
    """Channel shift in the manner of TSM (Lin, Gan and Han, ICCV 2019): the first `fold` channels
    of every patch token come from the frame before, the last `fold` from the frame after. Unlike
    TSM it wraps around instead of filling with zeros, as the token roll does.
    """
    if frames == 1 or fold == 0:
        return x
    clips = x.unflatten(0, (-1, frames))
    # text and class token of a frame stay, as in the token roll
    patches = clips[:, :, text_tokens + 1 :]
    channels = x.shape[-1]
    parts = [
        patches[..., :fold].roll(1, dims=1),
        patches[..., fold : channels - fold],
        patches[..., channels - fold :].roll(-1, dims=1),
    ]
    return torch.cat([clips[:, :, : text_tokens + 1], torch.cat(parts, dim=-1)], dim=2).flatten(
        0, 1
    )
