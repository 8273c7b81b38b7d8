"""Analytic FLOPs and parameter counts.

A multiply-add counts as 2 FLOPs; norms, softmax and GELU are not counted, as in
torch.utils.flop_counter.

Letters: T frames, L text tokens, N tokens of a sequence, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from .config import AllInOneConfig

Part = Literal["joint", "video", "text"]


@dataclass(frozen=True)
class LastBlock:
    """What the last block computes per sequence where few tokens are read: keys and values of all
    tokens, everything else of these."""

    queries: float
    """Tokens that attend, the average over the sequences."""
    rows: float
    """Tokens that pass the output layer and the MLP, the average over the sequences."""


CLASS_TOKEN = LastBlock(queries=1, rows=1)
"""Only the class token is read."""


def pooler_flops(config: AllInOneConfig) -> int:
    """FLOPs of the pooler for one text."""
    return 2 * config.hidden_size**2


def _blocks(
    config: AllInOneConfig,
    sequences: int,
    tokens: float,
    attention_products: bool,
    last: LastBlock | None,
) -> int:
    """FLOPs of all blocks for `sequences` sequences of `tokens` tokens.

    Args:
        config: The model.
        sequences: Sequences.
        tokens: Tokens of each, N, on average.
        attention_products: Count queries x keys and weights x values.
        last: The last block; None: as the others.
    """
    last = last or LastBlock(tokens, tokens)

    def block(queries: float, rows: float) -> float:
        # qkv 3, proj 1, fc1 and fc2 mlp_ratio each
        linear = 2 * (3 * tokens + (1 + 2 * config.mlp_ratio) * rows) * config.hidden_size**2
        # queries x keys, weights x values
        products = 2 * 2 * queries * tokens * config.hidden_size if attention_products else 0
        return linear + products

    others = config.num_hidden_layers - 1
    return int(sequences * (others * block(tokens, tokens) + block(last.queries, last.rows)))


def forward_flops(
    config: AllInOneConfig,
    *,
    frames: int,
    text_tokens: float,
    part: Part = "joint",
    attention_products: bool = True,
    last: LastBlock | None = None,
    patches: int | None = None,
) -> int:
    """FLOPs of one clip's forward pass through the backbone.

    The paper's 58.7 G for base are multiply-adds without the attention products at 3 frames and 32
    words: forward_flops(..., text_tokens=32, attention_products=False) / 2.

    Args:
        config: The model.
        frames: Frames per clip, T.
        text_tokens: Tokens per text, L, or their average without padding.
        part: Joint pass, or one modality alone, of which only the class token is read; only the
            joint pass uses the pooler.
        attention_products: Count queries x keys and weights x values.
        last: What the last block of a joint pass computes; None: all tokens.
        patches: Patches of a frame in the blocks; None: all. All are projected.
    """
    visual = config.visual_tokens(patches)
    projection, pooler = patch_flops(config, frames), pooler_flops(config)
    if part == "text":
        return _blocks(config, 1, text_tokens, attention_products, CLASS_TOKEN)
    if part == "video":
        return projection + _blocks(config, frames, visual, attention_products, CLASS_TOKEN)
    sequences, tokens = frames, text_tokens + visual
    if config.roll == "flatten":
        sequences, tokens = 1, text_tokens + frames * visual
    return projection + _blocks(config, sequences, tokens, attention_products, last) + pooler


def patch_flops(config: AllInOneConfig, frames: int) -> int:
    """FLOPs of the patch projection of one clip."""
    return 2 * frames * config.num_patches * 3 * config.patch_size**2 * config.hidden_size


def mlm_flops(config: AllInOneConfig, masked_tokens: int) -> int:
    """FLOPs of the MLM head at that many positions."""
    return 2 * masked_tokens * config.hidden_size * (config.hidden_size + config.vocab_size)


def vtm_flops(config: AllInOneConfig, clips: int) -> int:
    """FLOPs of the VTM head."""
    return 2 * clips * config.hidden_size * 2


def projection_flops(config: AllInOneConfig, clips: int) -> int:
    """FLOPs of one of the two contrastive projections."""
    return 2 * clips * config.hidden_size * config.projection_dim


_PARTS = {
    "text_embeddings.": "text embeddings",
    "video_embeddings.": "video embeddings",
    "modality.": "modality table",
    "encoder.blocks.": "blocks",
    "encoder.norm.": "final norm",
    "pooler.": "pooler",
    "mlm_head.": "MLM head",
    "vtm_head.": "VTM head",
    "image_mlm_head.": "MLM head of images",
    "image_vtm_head.": "VTM head of images",
    "text_projection.": "contrastive projections",
    "video_projection.": "contrastive projections",
    "logit_scale.": "contrastive projections",
}


def part_of(name: str) -> str | None:
    """The part that a parameter belongs to, by its name; None for an unknown name."""
    name = name.removeprefix("backbone.")
    return next((title for prefix, title in _PARTS.items() if name.startswith(prefix)), None)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Part → number of parameters of AllInOneModel or AllInOneForPreTraining."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        assert part is not None, name
        # ds_numel: under ZeRO 3, numel() of a partitioned parameter is 0
        counts[part] = counts.get(part, 0) + getattr(parameter, "ds_numel", parameter.numel())
    return counts
