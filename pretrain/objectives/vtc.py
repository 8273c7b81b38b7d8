"""Video-text contrast: InfoNCE between clips and captions (CLIP, Radford et al. 2021)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from allinone.pretrain.objectives.base import ClipSize, MicroBatchSize, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from allinone.data.loading.batch import Batch
    from allinone.model import AllInOneForPreTraining
    from allinone.pretrain.evaluation import EvaluationOutput
    from allinone.pretrain.objectives.context import ObjectiveContext


class VideoTextContrast(Objective):
    """Contrasts the uni-modal embeddings of matching pairs with those of all others."""

    name = "vtc"
    title = "contrast (VTC)"
    heads = ("text_projection", "video_projection", "logit_scale")
    loss_metric = "vtc_loss"
    accuracy_metric = "vtc_text_to_video_accuracy"

    @property
    def held_out_metric(self) -> str:
        """Recall among ten; it has no accuracy on held-out clips."""
        return "text_to_video_R@10"

    def chance_loss(self, *, words: int, candidates: int) -> float:
        """As many classes as clips."""
        return math.log(candidates)

    def loss(self, micro_batch: ObjectiveContext) -> Tensor:
        """InfoNCE, both directions averaged: local rows [B] against the columns of all ranks.

        The original sums the directions and takes negatives from the local micro-batch only.
        """
        from allinone.engine.distributed.contrastive import contrast

        found = micro_batch.contrastive
        result = contrast(found.text, found.video, found.scale)
        micro_batch.record("vtc_loss", result.losses)
        micro_batch.record("vtc_text_to_video_accuracy", result.text_right)
        micro_batch.record("vtc_video_to_text_accuracy", result.video_right)
        micro_batch.record("vtc_logit_scale", found.scale)
        return result.losses.mean()

    def training_flops(self, size: ClipSize) -> float:
        """Text pass, video pass, two projections and the two similarity matrices."""
        from allinone.model import flops

        similarities = 2 * 2 * size.candidates * size.model.projection_dim
        heads = 2 * flops.projection_flops(size.model, 1) + similarities
        return size.backbone_flops("text") + size.backbone_flops("video") + 3.0 * heads

    def activation_bytes(self, size: MicroBatchSize) -> list[float]:
        """Text pass, then video pass."""
        return [
            size.backbone_bytes("text"),
            size.backbone_bytes("video"),
        ]

    def embed(self, model: AllInOneForPreTraining, batch: Batch) -> dict[str, Tensor]:
        """Unit-length embeddings of both modalities, float32 [B, D]."""
        from allinone.model.contrast import embed_text, embed_video

        return {
            "text": embed_text(model, batch.text_ids, batch.text_mask, batch.text_lengths),
            "video": embed_video(model, batch.pixels),
        }

    def evaluation_metrics(self, output: EvaluationOutput) -> dict[str, float]:
        """R@K in percent and median rank, both directions."""
        table = output.retrieval_table()
        return {
            f"{way}_{metric}": value
            for way in ("text_to_video", "video_to_text")
            for metric, value in table[way].items()
        }
