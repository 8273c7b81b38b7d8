"""Text and visual embeddings, and the table that tells the modalities apart.

Letters: B clips, S texts with a clip, T frames, L text tokens, P patches, n visual tokens of a
frame (class token, distillation token where there is one, patches), C width.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AllInOneConfig
from .kernels import patch_rows, select_clips
from .norm import LayerNorm

TEXT, VIDEO = 0, 1  # rows of the modality table


class TextEmbeddings(nn.Module):
    """BERT's text embeddings: word + position + token type 0 → norm → dropout.

    The caller adds the modality row, after the norm.
    """

    def __init__(self, config: AllInOneConfig) -> None:
        super().__init__()
        # padding_idx stops the gradient of row 0; as in the original, the row is not zero
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position = nn.Embedding(config.max_text_len, config.hidden_size)
        self.token_type = nn.Embedding(2, config.hidden_size)
        # BERT's epsilon; the blocks use ViT's 1e-6
        self.norm = LayerNorm(config.hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, text_ids: Tensor, start: int = 0) -> Tensor:
        """[B, L] ids → [B, L, C]; the first is in place `start`.

        Raises:
            ValueError: The text is longer than max_text_len.
        """
        length = start + text_ids.shape[1]
        if length > self.position.num_embeddings:
            raise ValueError(
                f"text has {length} tokens but max_text_len is {self.position.num_embeddings};"
                " shorten the text, or build the model with a larger max_text_len (weights are"
                " resized when they are loaded)"
            )
        positions = torch.arange(start, length, device=text_ids.device)
        # only row 0 of the token types is used: there is no second segment
        embedded = (
            self.word(text_ids)
            + self.position(positions)
            + self.token_type(torch.zeros_like(positions))
        )
        return self.dropout(self.norm(embedded))


class PatchProjection(nn.Conv2d):
    """A convolution whose stride is its kernel's size, computed as one matrix product."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """[R, 3, H, W] → [R, P, C], patches in raster order."""
        rows = patch_rows(input, self.kernel_size[0])
        return F.linear(rows, self.weight.flatten(1), self.bias)


class VideoEmbeddings(nn.Module):
    """Patches, prefix tokens, position and temporal embedding: [B, T, 3, H, W] → [B*T, n, C].

    The class token comes first, then the distillation token where there is one, then the patches.
    Rows are clip-major: row i*T + f is frame f of clip i.

    The original also derives a padding mask from all-zero pixels. That is left out: it makes the
    device wait for the host, and frames of a video are never padded here.
    """

    def __init__(self, config: AllInOneConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.image_size = config.image_size
        self.num_frames = config.num_frames
        self.prefix = config.num_prefix_tokens
        self.patch_order = config.patch_order
        size = config.patch_size
        self.patch = PatchProjection(3, width, kernel_size=size, stride=size)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        # None, not an unused parameter: ZeRO and the optimizer expect a gradient for every weight
        self.distillation_token = (
            nn.Parameter(torch.empty(1, 1, width)) if config.distillation_token else None
        )
        self.position = nn.Parameter(torch.empty(1, config.num_visual_tokens, width))
        self.temporal = (
            nn.Parameter(torch.empty(1, config.num_frames, width))
            if config.has_temporal_embedding
            else None
        )
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        pixels: Tensor,
        patch_order: Tensor | None = None,
        rolls: bool = True,
        clips: Tensor | None = None,
    ) -> Tensor:
        """Embed the frames of a batch.

        Args:
            pixels: Normalised frames, [B, T, 3, H, W].
            patch_order: int64 [S*T, K]: patch slot k of row i*T + f holds patch order[k]. K may be
                less than P: patches that it does not name are left out. None uses all in the order
                of the config.
            rolls: Tokens will roll, so the order of the patches matters; without a roll and an
                order they stay in raster order.
            clips: int64 [S]: row i of the result holds clip clips[i]; None: every clip once, S = B.

        Returns:
            [S*T, n, C], n counting the patches in use; only patches are reordered.

        Raises:
            ValueError: A shape does not fit the config.
        """
        batch, frames = self._check(pixels)
        # the data path delivers float32, whatever the model's precision
        pixels = pixels.to(self.patch.weight.dtype)
        patches = self.patch(pixels.flatten(0, 1))
        # positions are added before the reordering: a patch keeps its own in any slot
        patches = patches + self.position[:, self.prefix :]
        if self.temporal is not None and frames > 1:  # images get no temporal embedding
            patches = (
                patches.unflatten(0, (batch, frames)) + self.temporal[:, :frames, None]
            ).flatten(0, 1)
        if clips is not None:
            # before the reordering and dropout, which each text draws for itself
            patches = select_clips(patches.unflatten(0, (batch, frames)), clips).flatten(0, 1)
        if rolls or patch_order is not None:
            patches = self._reorder(patches, frames, patch_order)
        prefix: Tensor = self.class_token
        if self.distillation_token is not None:
            prefix = torch.cat([prefix, self.distillation_token], dim=1)
        # every frame has the same prefix tokens: they get no temporal embedding
        prefix = (prefix + self.position[:, : self.prefix]).expand(patches.shape[0], -1, -1)
        return self.dropout(torch.cat([prefix, patches], dim=1))

    def _check(self, pixels: Tensor) -> tuple[int, int]:
        if (
            pixels.dim() != 5
            or pixels.shape[2] != 3
            or pixels.shape[3:] != (self.image_size, self.image_size)
        ):
            raise ValueError(
                f"pixels must be [B, T, 3, {self.image_size}, {self.image_size}], got"
                f" {list(pixels.shape)}; see image_size"
            )
        clips, frames = pixels.shape[:2]
        if frames > self.num_frames:
            raise ValueError(
                f"clip has {frames} frames but num_frames is {self.num_frames}; build the"
                f" model with num_frames={frames} (weights are resized when they are loaded)"
            )
        return clips, frames

    def _reorder(self, patches: Tensor, frames: int, order: Tensor | None) -> Tensor:
        """Put patch order[k] into patch slot k.

        Attention does not depend on the order, but the roll moves the first and last slots.

        Args:
            patches: [S*T, P, C] in raster order.
            frames: Frames per clip, T.
            order: int64 [S*T, K], K <= P; None uses all in the order of the config.
        """
        rows, count, width = patches.shape
        if order is None:
            if self.patch_order == "raster" or frames == 1:
                return patches
            order = self.draw_order(rows, frames, patches.device)
        elif order.dim() != 2 or order.shape[0] != rows or not 0 < order.shape[1] <= count:
            raise ValueError(
                f"patch_order must be [B*T, P] = [{rows}, {count}], or have fewer columns if"
                f" patches are left out, got {list(order.shape)}"
            )
        # not gather, which keeps its input for the backward pass
        places = order + count * torch.arange(rows, device=order.device)[:, None]
        return patches.flatten(0, 1).index_select(0, places.flatten()).view(rows, -1, width)

    def draw_order(
        self, rows: int, frames: int, device: torch.device, kept: int | None = None
    ) -> Tensor:
        """The order of the config, of all patches or of a random choice of them.

        All frames of a clip keep the same patches. A patch that rolls then meets the patch of its
        own place in the next frame as often as without the choice; with a choice per frame it would
        in the kept share of these cases. In raster order, slots hold the same place in all frames.

        Args:
            rows: Frames of all clips, a multiple of T.
            frames: Frames per clip, T.
            device: Where the order is needed.
            kept: Patches of a frame to keep, K; None: all.

        Returns:
            int64 [rows, K]; permutations of all P patches without a choice.
        """
        count = self.position.shape[1] - self.prefix
        slots = count if kept is None else kept
        if self.patch_order == "raster" or frames == 1:
            order = torch.arange(slots, device=device).expand(rows, -1)
        elif self.training:
            order = torch.rand(rows, slots, device=device).argsort(1)
        else:  # the same choice in every evaluation, unlike the original
            order = fixed_order(frames, slots).to(device).repeat(rows // frames, 1)
        if kept is None:
            return order
        # ascending: the first and last slots in raster order are then the first and last rows
        chosen = torch.rand(rows // frames, count, device=device).argsort(1)[:, :kept].sort(1)
        return chosen.values.repeat_interleave(frames, 0).gather(1, order)


@functools.cache
def fixed_order(frames: int, patches: int) -> Tensor:
    """Permutations [T, P] of `patch_order="shuffled"` in evaluation: one per frame, constant."""
    return torch.rand(frames, patches, generator=torch.Generator().manual_seed(0)).argsort(1)


class ModalityEmbedding(nn.Module):
    """Adds row TEXT or VIDEO to all tokens of that modality."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, width))

    def forward(self, x: Tensor, row: int) -> Tensor:
        return x + self.weight[row]
