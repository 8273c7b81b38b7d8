"""Where every patch token is, and what attends to what: read from the model's own modules by hooks,
beside an unchanged forward.

Letters: T frames, L text tokens, P patches, n = 1 + P visual tokens, N tokens of a sequence, R rows
(T, or 1 where all frames share a sequence), H heads, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.common.errors import InputError
from allinone.model import AllInOneConfig
from allinone.model.all_in_one import Attention, Encoder, fixed_order
from allinone.model.roll import fold_size, roll_tokens
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.inspection.media_inputs import InputClip, Words


def slot_origins(config: AllInOneConfig, frames: int, rolls: int) -> tuple[Tensor, Tensor]:
    """(frame, patch) that each patch slot holds after `rolls` rolls, both int64 [T, P]: frame f's
    slot k holds patch[f, k] of frame[f, k].

    Labels go through the model's own roll (and its own patch order of evaluation), so this cannot
    disagree with the model. Without token rolling, or with one frame, every slot holds its own
    patch.
    """
    patches = config.num_patches
    order = torch.arange(patches).repeat(frames, 1)
    if config.patch_order == "shuffled" and frames > 1:
        order = fixed_order(frames, patches)
    labels = torch.stack([torch.arange(frames)[:, None].expand(-1, patches), order], dim=-1)
    tokens = torch.cat(
        [torch.full((frames, 1, 2), -1), labels], dim=1
    )  # the class token is first, as in the model
    if config.roll == "roll":
        for _ in range(rolls):
            tokens = roll_tokens(tokens, frames, 0, fold_size(tokens.shape[1], config.roll_divisor))
    return tokens[:, 1:, 0], tokens[:, 1:, 1]


def to_places(values: Tensor, origins: tuple[Tensor, Tensor]) -> Tensor:
    """Values of slots [T, P, ...] → values of places [T, P, ...]: each goes back to the frame and
    patch that its token came from."""
    placed = torch.empty_like(values)
    placed[origins] = values
    return placed


def attention_weights(attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(C / H)) of a layer for its input x [R, N, C] and boolean key mask [R, 1,
    1, N]: float32 [R, H, N, N].

    The layer itself never forms this matrix (scaled_dot_product_attention); it is computed here a
    second time from the layer's weights.
    """
    q, k, _ = (
        attention.qkv(x).unflatten(-1, (3, -1, attention.head_dim)).permute(2, 0, 3, 1, 4).float()
    )
    scores = q @ k.transpose(-1, -2) * attention.head_dim**-0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)


class AttentionRecorder:
    """Context manager: while it is open, each pass of the encoder leaves the attention of its
    blocks here, in order of the blocks."""

    def __init__(self, encoder: Encoder) -> None:
        self._layers: list[Attention] = [block.attention for block in encoder.blocks]  # type: ignore[misc]  # of a ModuleList
        self.weights: list[Tensor] = []
        """softmax(Q K^T), [R, H, N, N]."""
        self.values: list[Tensor] = []
        """V, [R, H, N, C/H]."""
        self.mixed: list[Tensor] = []
        """weights @ V with heads side by side, [R, N, C]: the tensor that the layer itself
        computed, part of its autograd graph."""

    def _record(
        self, module: Attention, inputs: tuple[Tensor, Tensor | None], output: Tensor
    ) -> None:
        x, mask = inputs
        with torch.no_grad():
            self.weights.append(attention_weights(module, x.detach(), mask))
            self.values.append(
                module.qkv(x.detach())
                .unflatten(-1, (3, -1, module.head_dim))[:, :, 2]
                .transpose(1, 2)
            )

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


def row_to_places(
    values: Tensor, config: AllInOneConfig, frames: int, text_tokens: int, block: int
) -> Tensor:
    """Attention of one query to all tokens, [R, N], → to the patches where they are in the clip,
    [T, P]: undoes the rolls before `block`."""
    patches = values[:, text_tokens:].reshape(frames, -1)[:, 1:]
    return to_places(patches, slot_origins(config, frames, block + 1))


def patch_relevance(
    loaded: LoadedModel, clip: InputClip, words: Words, targets: Sequence[int]
) -> Tensor:
    """What each patch did for a word in each gap: float32 [gaps, T, P], each gap's sum 1 (or all
    0).

    For gap i and word piece targets[i]: the gap's attention to the patch, times the derivative of
    the word's log probability with respect to that attention weight, where it is positive; averaged
    over heads and frames' copies of the text, summed over blocks. This is the class-specific
    attention of Chefer, Gur and Wolf ("Generic Attention-model Explainability", ICCV 2021, eq. 5)
    with its first-order term only: tokens that other tokens have already read are not followed
    back.
    """
    loaded.needs("mlm_head")
    model, device = loaded.model, loaded.device
    frames, length = clip.pixels.shape[1], words.ids.shape[1]
    with AttentionRecorder(model.backbone.encoder) as seen:
        text = model(clip.pixels.to(device), words.ids.to(device), words.mask.to(device)).text
    found = []
    for gap, target in zip(words.gaps, targets, strict=True):
        score = model.mlm_head(text[0, gap]).log_softmax(-1)[target]
        slopes = torch.autograd.grad(score, seen.mixed, retain_graph=True)
        total = torch.zeros(frames, model.config.num_patches)
        for block, (weights, values, slope) in enumerate(
            zip(seen.weights, seen.values, slopes, strict=True)
        ):
            by_head = slope[:, gap].unflatten(-1, (values.shape[1], -1))  # [R, H, C/H]
            effect = torch.einsum("rhc,rhnc->rhn", by_head, values)  # d score / d weight
            pull = (weights[:, :, gap] * effect).clamp(min=0).mean(1)
            total += row_to_places(pull.cpu(), model.config, frames, length, block)
        found.append(total / total.sum().clamp(min=torch.finfo(total.dtype).tiny))
    return torch.stack(found)


@torch.inference_mode()
def patch_features(loaded: LoadedModel, clip: InputClip, words: Words) -> Tensor:
    """Patch features of the joint pass after the final norm, before the mean over frames, each
    where it came from: float32 [T, P, C]."""
    model, device = loaded.model, loaded.device
    frames, length = clip.pixels.shape[1], words.ids.shape[1]
    kept: list[Tensor] = []
    handle = model.backbone.encoder.register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    try:
        model(clip.pixels.to(device), words.ids.to(device), words.mask.to(device))
    finally:
        handle.remove()
    features = kept[0][:, length:].reshape(frames, -1, kept[0].shape[-1])[:, 1:].cpu()
    return to_places(features, slot_origins(model.config, frames, model.config.num_hidden_layers))


def fine_patch_features(loaded: LoadedModel, clip: InputClip, words: Words, fine: int) -> Tensor:
    """patch_features on a grid `fine` times as dense: float32 [T, fine^2 * P, C], raster order over
    the dense grid of each frame.

    The clip is read fine^2 times, each time moved by whole multiples of 1/fine patch (edges
    repeated), so that a patch's centre falls on each dense cell once. Raises InputError where the
    patch size is no multiple of `fine`.
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
            moved = padded[:, :, top : top + size, left : left + size].contiguous()
            dense[:, y::fine, x::fine] = patch_features(
                loaded, replace(clip, pixels=moved[None]), words
            ).unflatten(1, (grid, grid))
    return dense.flatten(1, 2)
