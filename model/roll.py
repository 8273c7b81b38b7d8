"""Temporal token rolling and an alternative: frames exchange information without parameters.

Letters: B clips, T frames, L text tokens, n visual tokens of a frame (class token, distillation
token where there is one, patches), N = L + n, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fold_size(visual_tokens: int, divisor: int) -> int:
    """Tokens that roll in each direction, n // divisor.

    Where this is 0 (n < 8) the original rolls *all* tokens backwards; here none roll.
    """
    return visual_tokens // divisor


def roll_tokens(x: Tensor, frames: int, text_tokens: int, fold: int) -> Tensor:
    """All-in-one's temporal token rolling (paper, section 3.2).

    Text and class token stay. The first `fold` other slots of frame f receive frame f-1's tokens,
    the last `fold` slots frame f+1's, both with wrap-around. A distillation token is in the first
    of these slots and rolls like a patch, as in the original.

    Args:
        x: Tokens, [B*T, N, C], clip-major.
        frames: Frames per clip, T.
        text_tokens: Text tokens at the start of each sequence, L.
        fold: Slots that roll in each direction, from `fold_size`.

    Returns:
        [B*T, N, C].
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
    """Channel shift in the manner of TSM (Lin, Gan and Han, ICCV 2019).

    The first `fold` channels of every visual token but the class token come from the frame before,
    the last `fold` from the frame after. Unlike TSM it wraps around instead of filling with zeros,
    as the token roll does.

    Args:
        x: Tokens, [B*T, N, C], clip-major.
        frames: Frames per clip, T.
        text_tokens: Text tokens at the start of each sequence, L.
        fold: Channels that move in each direction.

    Returns:
        [B*T, N, C].
    """
    if frames == 1 or fold == 0:
        return x
    clips = x.unflatten(0, (-1, frames))
    # text and class token of a frame stay, as in the token roll
    moving = clips[:, :, text_tokens + 1 :]
    channels = x.shape[-1]
    parts = [
        moving[..., :fold].roll(1, dims=1),
        moving[..., fold : channels - fold],
        moving[..., channels - fold :].roll(-1, dims=1),
    ]
    shifted = torch.cat(parts, dim=-1)
    return torch.cat([clips[:, :, : text_tokens + 1], shifted], dim=2).flatten(0, 1)
