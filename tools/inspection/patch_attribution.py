"""Tracks patch tokens through the rolls, records attention, and attributes predictions to patches.

Everything is read from the model's own modules through hooks; the forward pass is unchanged.

Letters: T frames, L text tokens, P patches, N tokens of a sequence, R rows (T, or 1 if all frames
share a sequence), H heads, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.common.errors import InputError
from allinone.model import AllInOneConfig
from allinone.model.all_in_one import Attention, Encoder
from allinone.model.embeddings import fixed_order
from allinone.model.roll import fold_size, roll_tokens
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.media_inputs import InputClip, InputText


def slot_origins(config: AllInOneConfig, frames: int, rolls: int) -> tuple[Tensor, Tensor]:
    """Find the origin of the patch in each slot after a number of rolls.

    Labels pass through the model's own roll and its patch order for evaluation, so the result
    cannot disagree with the model. Without token rolling, or with one frame, every slot keeps its
    own patch.

    Args:
        config: The model.
        frames: T.
        rolls: Number of rolls.

    Returns:
        (frame, patch), both int64 [T, P]: slot k of frame f holds patch[f, k] of frame[f, k].
    """
    patches, prefix = config.num_patches, config.num_prefix_tokens
    order = torch.arange(patches).repeat(frames, 1)
    if config.patch_order == "shuffled" and frames > 1:
        order = fixed_order(frames, patches)
    labels = torch.stack([torch.arange(frames)[:, None].expand(-1, patches), order], dim=-1)
    # class and distillation token come first, as in the model: the latter takes a slot that rolls
    tokens = torch.cat([torch.full((frames, prefix, 2), -1), labels], dim=1)
    if config.roll == "roll":
        for _ in range(rolls):
            tokens = roll_tokens(tokens, frames, 0, fold_size(tokens.shape[1], config.roll_divisor))
    return tokens[:, prefix:, 0], tokens[:, prefix:, 1]


def to_origins(values: Tensor, origins: tuple[Tensor, Tensor]) -> Tensor:
    """Move the value of each slot [T, P, ...] to the frame and patch that its token came from."""
    moved = torch.empty_like(values)
    moved[origins] = values
    return moved


def attention_weights(attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(Q K^T / sqrt(C / H)) of one layer.

    The layer itself uses scaled_dot_product_attention, which never forms this matrix; it is
    computed a second time here from the layer's weights.

    Args:
        attention: The layer.
        x: Its input, [R, N, C].
        mask: Boolean key mask [R, 1, 1, N].

    Returns:
        float32 [R, H, N, N].
    """
    q, k, _ = (
        attention.qkv(x).unflatten(-1, (3, -1, attention.head_dim)).permute(2, 0, 3, 1, 4).float()
    )
    scores = q @ k.transpose(-1, -2) * attention.head_dim**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)


class AttentionRecorder:
    """Context manager that records the attention of every block during forward passes."""

    def __init__(self, encoder: Encoder) -> None:
        self._layers: list[Attention] = [
            block.attention  # type: ignore[misc]  # ModuleList yields plain modules
            for block in encoder.blocks
        ]
        self.weights: list[Tensor] = []
        """softmax(Q K^T) of each block, [R, H, N, N]."""
        self.values: list[Tensor] = []
        """V of each block, [R, H, N, C/H]."""
        self.mixed: list[Tensor] = []
        """weights @ V with heads concatenated, [R, N, C]: the layer's own tensor, which is part of
        its autograd graph."""

    def _record(self, module: Attention, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mask, read = inputs
        assert read is None, "attention is recorded in passes over all tokens only"
        with torch.no_grad():
            self.weights.append(attention_weights(module, x.detach(), mask))
            values = module.qkv(x.detach()).unflatten(-1, (3, -1, module.head_dim))[:, :, 2]
            self.values.append(values.transpose(1, 2))

    def _record_mixed(self, module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        self.mixed.append(inputs[0])

    def __enter__(self) -> AttentionRecorder:
        self._handles = [layer.register_forward_hook(self._record) for layer in self._layers]
        self._handles += [
            layer.proj.register_forward_pre_hook(self._record_mixed) for layer in self._layers
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def attention_at_origins(
    values: Tensor, config: AllInOneConfig, frames: int, text_tokens: int, block: int
) -> Tensor:
    """Undo the rolls for the attention of one query.

    Args:
        values: Attention to all tokens, [R, N].
        config: The model.
        frames: T.
        text_tokens: L, the tokens in front of the visual ones.
        block: Index of the block; `block` + 1 rolls came before its attention.

    Returns:
        Attention to the patches at their original positions in the clip, [T, P].
    """
    patches = values[:, text_tokens:].reshape(frames, -1)[:, config.num_prefix_tokens :]
    return to_origins(patches, slot_origins(config, frames, block + 1))


def patch_relevance(
    loaded: LoadedModel, clip: InputClip, text: InputText, targets: Sequence[int]
) -> Tensor:
    """Attribute the prediction at each [MASK] to the patches.

    For [MASK] i and word piece targets[i]: the attention of the [MASK] to the patch, times the
    derivative of the log probability of the word with respect to that attention weight, where it
    is positive; averaged over heads and over the frames' copies of the text, summed over blocks.
    This is the class-specific attention of Chefer, Gur and Wolf ("Generic Attention-model
    Explainability", ICCV 2021, eq. 5) with its first-order term only: information that reached
    other tokens in earlier blocks is not traced back.

    Args:
        loaded: The model.
        clip: The video.
        text: A text with M [MASK] tokens.
        targets: One word piece for each of them.

    Returns:
        float32 [M, T, P]; the sum for each [MASK] is 1 (or all values are 0).

    Raises:
        InputError: The model has no MLM head.
    """
    loaded.needs("mlm_head")
    model, device = loaded.model, loaded.device
    frames, length = clip.pixels.shape[1], text.ids.shape[1]
    with AttentionRecorder(model.backbone.encoder) as seen:
        hidden = model(clip.pixels.to(device), text.ids.to(device), text.mask.to(device)).text
    found = []
    for position, target in zip(text.mask_positions, targets, strict=True):
        score = model.mlm_head(hidden[0, position]).log_softmax(-1)[target]
        gradients = torch.autograd.grad(score, seen.mixed, retain_graph=True)
        total = torch.zeros(frames, model.config.num_patches)
        for block, (weights, values, gradient) in enumerate(
            zip(seen.weights, seen.values, gradients, strict=True)
        ):
            # mixed = weights @ V is linear in the weights, so d score / d weight = gradient . V:
            # the attention matrix itself need not be part of the graph
            by_head = gradient[:, position].unflatten(-1, (values.shape[1], -1))  # [R, H, C/H]
            effect = torch.einsum("rhc,rhnc->rhn", by_head, values)
            relevance = (weights[:, :, position] * effect).clamp(min=0).mean(1)
            total += attention_at_origins(relevance.cpu(), model.config, frames, length, block)
        found.append(total / total.sum().clamp(min=torch.finfo(total.dtype).tiny))
    return torch.stack(found)


@torch.inference_mode()
def patch_features(loaded: LoadedModel, clip: InputClip, text: InputText) -> Tensor:
    """Patch features of the joint pass, after the final norm and before the mean over frames.

    Args:
        loaded: The model.
        clip: The video.
        text: The text of the joint pass.

    Returns:
        float32 [T, P, C]; each feature is at the frame and patch that its token came from.
    """
    model, device = loaded.model, loaded.device
    frames, length = clip.pixels.shape[1], text.ids.shape[1]
    outputs: list[Tensor] = []
    handle = model.backbone.encoder.register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    try:
        model(clip.pixels.to(device), text.ids.to(device), text.mask.to(device))
    finally:
        handle.remove()
    config = model.config
    visual = outputs[0][:, length:].reshape(frames, -1, config.hidden_size)
    features = visual[:, config.num_prefix_tokens :].cpu()
    return to_origins(features, slot_origins(config, frames, config.num_hidden_layers))


def fine_patch_features(loaded: LoadedModel, clip: InputClip, text: InputText, fine: int) -> Tensor:
    """patch_features on a grid `fine` times as dense.

    The clip is read fine^2 times, each time shifted by a multiple of 1/fine patch (edges repeated),
    so that each cell of the dense grid is the centre of a patch exactly once.

    Args:
        loaded: The model.
        clip: The video.
        text: The text of the joint pass.
        fine: Cells per patch in each direction.

    Returns:
        float32 [T, fine^2 * P, C], the dense grid of each frame in raster order.

    Raises:
        InputError: The patch size is not a multiple of `fine`.
    """
    config = loaded.model.config
    size, patch = config.image_size, config.patch_size
    if patch % fine:
        raise InputError(f"--fine {fine} does not divide the patch size, {patch} pixels")
    grid, step = size // patch, patch // fine
    padded = F.pad(clip.pixels[0], (patch,) * 4, mode="replicate")
    dense = torch.empty(clip.pixels.shape[1], grid * fine, grid * fine, config.hidden_size)
    for y in range(fine):
        for x in range(fine):
            top, left = (patch + offset * step - (patch - step) // 2 for offset in (y, x))
            shifted = padded[:, :, top : top + size, left : left + size].contiguous()
            features = patch_features(loaded, replace(clip, pixels=shifted[None]), text)
            dense[:, y::fine, x::fine] = features.unflatten(1, (grid, grid))
    return dense.flatten(1, 2)
