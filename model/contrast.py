"""Embeddings in the contrastive space, from the uni-modal passes.

Letters: B items, D projection width.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


class TwoTower(Protocol):
    """A model with uni-modal passes and projections (AllInOneForPreTraining, fine-tuned ones)."""

    text_projection: nn.Linear
    video_projection: nn.Linear

    def encode_text(
        self, text_ids: Tensor, text_mask: Tensor, text_lengths: Tensor | None = None
    ) -> Tensor: ...

    def encode_video(self, pixels: Tensor, patch_order: Tensor | None = None) -> Tensor: ...


def embed_text(
    model: TwoTower, text_ids: Tensor, text_mask: Tensor, text_lengths: Tensor | None = None
) -> Tensor:
    """Unit-length text embeddings.

    Args:
        model: Its text-only pass and projection are used.
        text_ids: Word pieces, int64 [B, L].
        text_mask: int64 [B, L], 1 at tokens.
        text_lengths: int64 [B] on the CPU, tokens of each text; None: padding is computed.

    Returns:
        float32 [B, D].
    """
    # float32 before the normalisation: similarities in half precision create ties
    tokens = model.encode_text(text_ids, text_mask, text_lengths)
    return F.normalize(model.text_projection(tokens).float(), dim=-1, eps=1e-8)


def embed_video(model: TwoTower, pixels: Tensor, patch_order: Tensor | None = None) -> Tensor:
    """Unit-length clip embeddings.

    Args:
        model: Its video-only pass and projection are used.
        pixels: Normalised frames, [B, T, 3, H, W].
        patch_order: int64 [B*T, K], the patches to use; None: all.

    Returns:
        float32 [B, D].
    """
    return F.normalize(
        model.video_projection(model.encode_video(pixels, patch_order)).float(), dim=-1, eps=1e-8
    )


class UniModalPasses:
    """The passes over texts or clips alone, for models with a backbone."""

    backbone: Any
    """An AllInOneModel."""

    def encode_text(
        self, text_ids: Tensor, text_mask: Tensor, text_lengths: Tensor | None = None
    ) -> Tensor:
        """See AllInOneModel.encode_text."""
        return self.backbone.encode_text(text_ids, text_mask, text_lengths)

    def encode_video(self, pixels: Tensor, patch_order: Tensor | None = None) -> Tensor:
        """See AllInOneModel.encode_video."""
        return self.backbone.encode_video(pixels, patch_order)


class ContrastiveFeatures(UniModalPasses):
    """transformers' names for the two towers, for models that have them (TwoTower)."""

    def get_text_features(
        self: TwoTower, text_ids: Tensor, text_mask: Tensor
    ) -> BaseModelOutputWithPooling:
        """Unit-length text embeddings: `pooler_output`, float32 [B, D]."""
        return BaseModelOutputWithPooling(pooler_output=embed_text(self, text_ids, text_mask))

    def get_video_features(self: TwoTower, pixels: Tensor) -> BaseModelOutputWithPooling:
        """Unit-length clip embeddings of [B, T, 3, S, S]: `pooler_output`, float32 [B, D].

        The product of a text's and a clip's embedding is the cosine that retrieval ranks by.
        """
        return BaseModelOutputWithPooling(pooler_output=embed_video(self, pixels))
