"""All-in-one: one transformer over raw frames and words (Wang et al., CVPR 2023).

The numerics follow the released code.

Letters: B clips, T frames, L text tokens, P patches, n visual tokens of a frame (class token,
distillation token where there is one, patches), N = L + n tokens of a sequence, C width, H heads.
Every parameter is used inside the forward of the module that owns it, because ZeRO-3 gathers
parameters by forward hooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .config import AllInOneConfig
from .embeddings import TEXT, VIDEO, ModalityEmbedding, TextEmbeddings, VideoEmbeddings
from .heads import LogitScale, MLMHead
from .linear import LinearFactory, SplitDropout, torch_linear
from .norm import LayerNorm
from .roll import fold_size, roll_channels, roll_tokens


@dataclass
class AllInOneOutput(ModelOutput):
    """Features of the joint pass after the final norm, averaged over frames."""

    text: Tensor | None = None
    """[B, L, C]"""
    video: Tensor | None = None
    """[B, n, C]: class token, distillation token where there is one, patches. The first patch is
    number config.num_prefix_tokens."""
    pooled: Tensor | None = None
    """[B, C], tanh(dense(text class token))"""


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
    """Pre-norm transformer block.

    Args:
        config: The model.
        drop_path: Stochastic depth of this block.
        linear: Makes the linear layers.
    """

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
        """Roll tokens or channels between frames; average and flatten need no exchange here."""
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

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers does, but refuse a folder with two sets of weights.

        transformers would take the single file, which is stale if the weights were later saved in
        shards.

        Raises:
            ValueError: The folder's weights are ambiguous, or a shard is missing.
        """
        from .weight_folder import weight_files

        if source is not None and Path(source).is_dir() and "subfolder" not in kwargs:
            weight_files(Path(source))
        return super().from_pretrained(source, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module as the original does.

        N(0, 0.02) for weights and tables, 0 for biases and the temporal embedding; the patch
        convolution keeps PyTorch's default. The original draws the transformer's weights from a
        normal truncated at +-2, a hundred deviations out: the same distribution.
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
            if module.distillation_token is not None:
                nn.init.normal_(module.distillation_token, std=0.02)
            nn.init.normal_(module.position, std=0.02)
            if module.temporal is not None:
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
            patch_order: int64 [B*T, P]: patch slot k of row i*T + f holds patch order[k].
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
        """Joint pass of the backbone; objectives apply the heads to the tokens they need.

        Arguments and errors as in AllInOneModel.forward.
        """
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
