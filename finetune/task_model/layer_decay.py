"""Layer-wise decay of the learning rate: earlier layers, which are more general, change less."""

from __future__ import annotations

import re
from collections.abc import Callable

_EMBEDDINGS = ("text_embeddings.", "video_embeddings.", "modality.")
_BLOCK = re.compile(r"encoder\.blocks\.(\d+)\.")


def layer_of(name: str, blocks: int) -> int:
    """Number of a parameter's layer, as timm's `param_groups_layer_decay` counts a ViT's.

    Args:
        name: Of the parameter, with any prefix.
        blocks: Number of transformer blocks, N.

    Returns:
        0 for embeddings, k + 1 for block k, N for the norm after the last block, and N + 1 for the
        pooler and all heads.
    """
    if any(part in name for part in _EMBEDDINGS):
        return 0
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    return blocks if "encoder.norm." in name else blocks + 1


def layer_scale(decay: float, blocks: int) -> Callable[[str], float] | None:
    """Multiple of the learning rate by parameter name: decay ** (N + 1 - layer).

    The method is BEiT's (Bao et al. 2022, arXiv 2106.08254).

    Args:
        decay: Ratio of the rates of a layer and the next one; 1 gives None, equal rates.
        blocks: Number of transformer blocks, N.
    """
    if decay == 1:
        return None
    return lambda name: decay ** (blocks + 1 - layer_of(name, blocks))
