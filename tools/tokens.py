"""Where every patch token is, and what attends to what: read from the model's own modules by hooks, beside an unchanged forward.

Letters: T frames, L text tokens, P patches, n = 1 + P visual tokens, N tokens of a sequence, R rows (T, or 1 where all frames share a
sequence), H heads, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model import AllInOneConfig, AllInOneForPreTraining
from model.all_in_one import Attention, Encoder, fixed_order
from model.roll import fold_size, roll_tokens
from tools.inputs import Clip, InputError, Loaded, Words


def slot_origins(config: AllInOneConfig, frames: int, rolls: int) -> tuple[Tensor, Tensor]:
    """(frame, patch) that each patch slot holds after `rolls` rolls, both int64 [T, P]: frame f's slot k holds patch[f, k] of frame[f, k].

    Labels go through the model's own roll (and its own patch order of evaluation), so this cannot disagree with the model. Without token
    rolling, or with one frame, every slot holds its own patch.
    """
    patches = config.num_patches
    order = torch.arange(patches).repeat(frames, 1)
    if config.patch_order == "shuffled" and frames > 1:
        order = fixed_order(frames, patches)
    labels = torch.stack([torch.arange(frames)[:, None].expand(-1, patches), order], dim=-1)
    tokens = torch.cat([torch.full((frames, 1, 2), -1), labels], dim=1)  # the class token is first, as in the model
    if config.roll == "roll":
        for _ in range(rolls):
            tokens = roll_tokens(tokens, frames, 0, fold_size(tokens.shape[1], config.roll_divisor))
    return tokens[:, 1:, 0], tokens[:, 1:, 1]


def to_places(values: Tensor, origins: tuple[Tensor, Tensor]) -> Tensor:
    """Values of slots [T, P, ...] → values of places [T, P, ...]: each goes back to the frame and patch that its token came from."""
    placed = torch.empty_like(values)
    placed[origins] = values
    return placed


def attention_weights(attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(C / H)) of a layer for its input x [R, N, C] and boolean key mask [R, 1, 1, N]: float32 [R, H, N, N].

    The layer itself never forms this matrix (scaled_dot_product_attention); it is computed here a second time from the layer's weights.
    """
    q, k, _ = attention.qkv(x).unflatten(-1, (3, -1, attention.head_dim)).permute(2, 0, 3, 1, 4).float()
    scores = q @ k.transpose(-1, -2) * attention.head_dim**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)


class AttentionRecorder:
    """Context manager: while it is open, every pass of the encoder leaves the attention weights of each block in `weights`."""

    def __init__(self, encoder: Encoder) -> None:
        self._layers = [block.attention for block in encoder.blocks]
        self.weights: list[Tensor] = []
        """One [R, H, N, N] per block, in order."""

    def _record(self, module: Attention, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
        self.weights.append(attention_weights(module, *inputs))

    def __enter__(self) -> AttentionRecorder:
        self._handles = [layer.register_forward_hook(self._record) for layer in self._layers]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
