"""All-in-one: one transformer over raw frames and words (Wang et al., CVPR 2023).

The numerics follow the released code.

Letters: B clips, T frames, L text tokens, P patches, n = 1 + P visual tokens, N = L + n tokens of a
sequence, C width, H heads. Every parameter is used inside the forward of the module that owns it,
because ZeRO-3 gathers parameters by forward hooks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .config import AllInOneConfig
from .heads import LogitScale, MLMHead
from .linear import LinearFactory, SplitDropout, torch_linear
from .norm import LayerNorm
from .roll import fold_size, roll_channels, roll_tokens

TEXT, VIDEO = 0, 1  # rows of the modality table


@dataclass
class AllInOneOutput(ModelOutput):
    """Features of the joint pass after the final norm, averaged over frames."""

    text: Tensor | None = None
    """[B, L, C]"""
    video: Tensor | None = None
    """[B, 1 + P, C], class token first"""
    pooled: Tensor | None = None
    """[B, C], tanh(dense(text class token))"""


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

    def forward(self, text_ids: Tensor) -> Tensor:
        length = text_ids.shape[1]
        if length > self.position.num_embeddings:
            raise ValueError(
                f"text has {length} tokens but max_text_len is {self.position.num_embeddings};"
                " shorten the text, or build the model with a larger max_text_len (weights are"
                " resized when they are loaded)"
            )
        positions = torch.arange(length, device=text_ids.device)
        # only row 0 of the token types is used: there is no second segment
        embedded = (
            self.word(text_ids)
            + self.position(positions)
            + self.token_type(torch.zeros_like(positions))
        )
        return self.dropout(self.norm(embedded))


class VideoEmbeddings(nn.Module):
    """Patches, class token, position and temporal embedding: [B, T, 3, H, W] → [B*T, 1 + P, C].

    Rows are clip-major: row i*T + f is frame f of clip i.

    The original also derives a padding mask from all-zero pixels. That is left out: it makes the
    device wait for the host, and frames of a video are never padded here.
    """

    def __init__(self, config: AllInOneConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.image_size = config.image_size
        self.patch_order = config.patch_order
        self.patch = nn.Conv2d(3, width, kernel_size=config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + config.num_patches, width))
        self.temporal = nn.Parameter(torch.empty(1, config.num_frames, width))
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self, pixels: Tensor, patch_order: Tensor | None = None, rolls: bool = True
    ) -> Tensor:
        clips, frames = self._check(pixels)
        # the data path delivers float32, whatever the model's precision
        pixels = pixels.to(self.patch.weight.dtype)
        # positions are added before the reordering: a patch keeps its own in any slot
        patches = self.patch(pixels.flatten(0, 1)).flatten(2).transpose(1, 2) + self.position[:, 1:]
        if frames > 1:  # images get no temporal embedding
            patches = (
                patches.unflatten(0, (clips, frames)) + self.temporal[:, :frames, None]
            ).flatten(0, 1)
        if rolls:
            patches = self._reorder(patches, frames, patch_order)
        # every frame has the same class token: it gets no temporal embedding
        class_token = (self.class_token + self.position[:, :1]).expand(patches.shape[0], -1, -1)
        return self.dropout(torch.cat([class_token, patches], dim=1))

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
        if frames > self.temporal.shape[1]:
            raise ValueError(
                f"clip has {frames} frames but num_frames is {self.temporal.shape[1]}; build the"
                f" model with num_frames={frames} (weights are resized when they are loaded)"
            )
        return clips, frames

    def _reorder(self, patches: Tensor, frames: int, order: Tensor | None) -> Tensor:
        """Put patch order[k] into slot k.

        Attention does not depend on the order, but the roll moves the first and last slots.
        """
        rows, count, width = patches.shape
        if order is None and (self.patch_order == "raster" or frames == 1):
            return patches
        if order is None:
            if self.training:
                order = torch.rand(rows, count, device=patches.device).argsort(1)
            else:  # the same choice in every evaluation, unlike the original
                order = fixed_order(frames, count).to(patches.device).repeat(rows // frames, 1)
        elif order.shape != (rows, count):
            raise ValueError(
                f"patch_order must be [B*T, P] = [{rows}, {count}], got {list(order.shape)}"
            )
        return patches.gather(1, order[:, :, None].expand(-1, -1, width))


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


class Attention(nn.Module):
    """Multi-head self-attention; qkv is one layer with outputs [q heads | k heads | v heads]."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_dropout
        # blocks=3: q, k and v are divided by heads separately under tensor parallelism
        self.qkv = linear(config.hidden_size, 3 * config.hidden_size, split="column", blocks=3)
        self.proj = linear(config.hidden_size, config.hidden_size, split="row")
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        # q, k and v have the shape [B*T, H, N, C/H]
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        # boolean masks mean True = attend; the scale is the default, head_dim ** -0.5
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Two layers with exact GELU; dropout after both."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.fc1 = linear(config.hidden_size, config.mlp_ratio * config.hidden_size, split="column")
        self.fc2 = linear(config.mlp_ratio * config.hidden_size, config.hidden_size, split="row")
        self.inner_dropout = SplitDropout(config.hidden_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.inner_dropout(F.gelu(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth per sequence (Huang et al., ECCV 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        # one draw per sequence; dividing by the kept share preserves the expectation
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: AllInOneConfig, drop_path: float, linear: LinearFactory) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, eps=1e-6)
        self.attention = Attention(config, linear)
        self.norm2 = LayerNorm(config.hidden_size, eps=1e-6)
        self.mlp = MLP(config, linear)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """The blocks, with the temporal roll before each of them, and the final norm."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        # max(): a model of one block has rate 0
        rates = [config.drop_path * layer / max(depth - 1, 1) for layer in range(depth)]
        self.blocks = nn.ModuleList(Block(config, rate, linear) for rate in rates)
        self.norm = LayerNorm(config.hidden_size, eps=1e-6)
        self.config = config
        self.gradient_checkpointing = False

    def forward(
        self, x: Tensor, mask: Tensor | None = None, frames: int = 1, text_tokens: int = 0
    ) -> Tensor:
        """Run all blocks.

        Args:
            x: Tokens, [B*T, N, C].
            mask: Boolean key mask [B*T, 1, 1, N], True = attend; None attends to all.
            frames: Frames per clip, T; more than 1 rolls.
            text_tokens: Text tokens at the start of each sequence, L.

        Returns:
            Tokens after the final norm, [B*T, N, C].
        """
        for block in self.blocks:
            # also before the first block, as in the original
            x = self._exchange(x, frames, text_tokens)
            if self.gradient_checkpointing and self.training:
                # the re-entrant variant gives no gradients where the input needs none
                x = torch.utils.checkpoint.checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return self.norm(x)

    def _exchange(self, x: Tensor, frames: int, text_tokens: int) -> Tensor:
        config = self.config
        if config.roll == "roll":
            return roll_tokens(
                x, frames, text_tokens, fold_size(x.shape[1] - text_tokens, config.roll_divisor)
            )
        if config.roll == "channel":
            return roll_channels(
                x, frames, text_tokens, fold_size(config.hidden_size, config.roll_divisor)
            )
        return x


class Pooler(nn.Module):
    """tanh(dense(class token))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class AllInOnePreTrainedModel(PreTrainedModel):
    """Initialisation and saving, shared by the bare model and the one with heads."""

    config_class = AllInOneConfig
    base_model_prefix = "backbone"
    main_input_name = "pixels"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """N(0, 0.02) for weights and tables, 0 for biases and the temporal embedding; the patch
        convolution keeps PyTorch's default.

        The original draws the transformer's weights from a normal truncated at +-2, a hundred
        deviations out: the same distribution.
        """
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Embedding, ModalityEmbedding)):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, VideoEmbeddings):
            nn.init.normal_(module.class_token, std=0.02)
            nn.init.normal_(module.position, std=0.02)
            # weights without a temporal embedding then compute what they did before
            nn.init.zeros_(module.temporal)
        elif isinstance(module, LogitScale):
            nn.init.constant_(module.log_scale, torch.tensor(LogitScale.INITIAL).log().item())

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Recompute every block in the backward pass: less memory, one more forward."""
        self._encoder().gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        self._encoder().gradient_checkpointing = False

    def _encoder(self) -> Encoder:
        return next(module for module in self.modules() if isinstance(module, Encoder))


class AllInOneModel(AllInOnePreTrainedModel):
    """The transformer without heads. `linear` makes the large layers (model/linear.py)."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory = torch_linear) -> None:
        super().__init__(config)
        self.text_embeddings = TextEmbeddings(config)
        self.video_embeddings = VideoEmbeddings(config)
        self.modality = ModalityEmbedding(config.hidden_size)
        self.encoder = Encoder(config, linear)
        self.pooler = Pooler(config.hidden_size)
        self.post_init()

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        patch_order: Tensor | None = None,
        **kwargs: Any,
    ) -> AllInOneOutput:
        """Joint pass.

        Args:
            pixels: Normalised frames, [B, T, 3, H, W].
            text_ids: Word pieces, int64 [B, L].
            text_mask: int64 [B, L], 1 at tokens.
            patch_order: int64 [B*T, P]: slot k of row i*T + f holds patch order[k].
            **kwargs: Ignored; transformers passes its own.

        Raises:
            ValueError: A shape does not fit the config.
        """
        clips, frames = pixels.shape[:2]
        text = self.modality(self.text_embeddings(text_ids), TEXT)
        video = self.modality(self.video_embeddings(pixels, patch_order), VIDEO)
        length = text.shape[1]
        if self.config.roll == "flatten":
            # [B, T*n, C]: one sequence holds all frames
            video = video.unflatten(0, (clips, frames)).flatten(1, 2)
            x = self.encoder(torch.cat([text, video], 1), _key_mask(text_mask, video.shape[1]))
            text, video = x[:, :length], x[:, length:].unflatten(1, (frames, -1)).mean(1)
        else:
            # embedded once; copies are adjacent (clip-major) and differ from block 0 on
            text = text.repeat_interleave(frames, 0)
            mask = _key_mask(text_mask, video.shape[1]).repeat_interleave(frames, 0)
            x = self.encoder(torch.cat([text, video], 1), mask, frames, length)
            # a plain mean: frames are never padded
            x = x.unflatten(0, (clips, frames)).mean(1)
            text, video = x[:, :length], x[:, length:]
        return AllInOneOutput(text=text, video=video, pooled=self.pooler(text[:, 0]))

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Text-only pass: class token [B, C].

        One copy per text; the original computes T copies, which are equal without frames.
        """
        x = self.modality(self.text_embeddings(text_ids), TEXT)
        return self.encoder(x, text_mask[:, None, None].bool())[:, 0]

    def encode_video(self, pixels: Tensor) -> Tensor:
        """Video-only pass without a roll, as in the original: mean class token, [B, C]."""
        clips, frames = pixels.shape[:2]
        x = self.encoder(self.modality(self.video_embeddings(pixels, rolls=False), VIDEO))
        return x[:, 0].unflatten(0, (clips, frames)).mean(1)


def _key_mask(text_mask: Tensor, visual_tokens: int) -> Tensor:
    """Boolean [B, 1, 1, L + visual tokens]: real words and all visual tokens."""
    return F.pad(text_mask.bool(), (0, visual_tokens), value=True)[:, None, None]


class AllInOneForPreTraining(AllInOnePreTrainedModel):
    """The model with the heads of MLM, VTM and VTC."""

    def __init__(self, config: AllInOneConfig, linear: LinearFactory = torch_linear) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.backbone = AllInOneModel(config, linear)
        self.mlm_head = MLMHead(width, config.vocab_size)
        self.vtm_head = nn.Linear(width, 2)
        self.text_projection = nn.Linear(width, config.projection_dim)
        self.video_projection = nn.Linear(width, config.projection_dim)
        self.logit_scale = LogitScale()
        if config.image_heads:
            self.image_mlm_head = MLMHead(width, config.vocab_size)
            self.image_vtm_head = nn.Linear(width, 2)
        self.post_init()

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        patch_order: Tensor | None = None,
        **kwargs: Any,
    ) -> AllInOneOutput:
        """Joint pass of the backbone; objectives apply the heads to the tokens they need."""
        return self.backbone(pixels, text_ids, text_mask, patch_order)

    def heads(self, frames: int) -> tuple[nn.Module, nn.Module]:
        """MLM and VTM heads for clips of `frames` frames; images may have separate heads."""
        if frames == 1 and self.config.image_heads:
            return self.image_mlm_head, self.image_vtm_head
        return self.mlm_head, self.vtm_head

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """See AllInOneModel.encode_text."""
        return self.backbone.encode_text(text_ids, text_mask)

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See AllInOneModel.encode_video."""
        return self.backbone.encode_video(pixels)
