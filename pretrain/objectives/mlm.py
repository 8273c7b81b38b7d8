"""Masked language modelling (BERT, Devlin et al. 2019, section 3.1) on text and video."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from allinone.pretrain.objectives.base import ClipSize, MicroBatchSize, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from allinone.data.loading.batch import Batch
    from allinone.model import AllInOneForPreTraining
    from allinone.pretrain.objectives.context import ObjectiveContext


class MaskedLanguageModelling(Objective):
    """Predicts the masked words from the rest of the caption and the clip."""

    name = "mlm"
    title = "masked words (MLM)"
    heads = ("mlm_head",)
    loss_metric = "mlm_loss"
    accuracy_metric = "mlm_accuracy"

    def count_items(self, batch: Batch) -> int:
        """Masked tokens."""
        return batch.mlm_positions.shape[0]

    def chance_loss(self, *, words: int, candidates: int) -> float:
        """As many classes as words."""
        return math.log(words)

    def loss(self, micro_batch: ObjectiveContext) -> Tensor:
        """Cross-entropy averaged over the masked tokens; 0 if nothing is masked.

        Logits are computed at the M masked tokens only: [M, V] instead of [B, L, V].
        """
        import torch.nn.functional as F

        batch = micro_batch.batch
        target = _masked_ids(batch)
        # images may have their own head
        mlm_head, _ = micro_batch.model.heads(micro_batch.frames)
        logits = mlm_head(micro_batch.masked_words).float()
        losses = F.cross_entropy(logits, target, reduction="none")
        micro_batch.record("mlm_loss", losses)
        micro_batch.record("mlm_accuracy", logits.argmax(-1) == target)
        clips = batch.mlm_positions // batch.text_ids.shape[1]
        micro_batch.record_by_dataset("mlm_loss", losses, clips)
        return micro_batch.mean(self.name, losses)

    def training_flops(self, size: ClipSize) -> float:
        """Joint pass and MLM head."""
        from allinone.model import flops

        head = 3.0 * flops.mlm_flops(size.model, size.masked)
        if size.joint_pass and size.all_tokens:  # the pooler too runs on the texts of both
            return size.backbone_flops("joint") + head
        last = flops.LastBlock(size.text_tokens, size.masked)
        return size.backbone_flops("joint", last) - 3.0 * flops.pooler_flops(size.model) + head

    def activation_bytes(self, size: MicroBatchSize) -> list[float]:
        """Joint pass, of twice the texts if VTM shares it, and MLM head."""
        from allinone.model.activations import mlm_head_bytes
        from allinone.model.flops import LastBlock

        texts, rows = size.clips, size.masked
        if size.joint_pass:
            texts, rows = 2 * size.clips, size.masked + size.clips
        last = LastBlock(size.model.max_text_len, rows / texts)
        complete = size.joint_pass and size.all_tokens
        backbone = size.backbone_bytes("joint", None if complete else last, texts=texts)
        return [backbone + mlm_head_bytes(size.model, size.masked, size.element)]

    def count_correct(self, model: AllInOneForPreTraining, batch: Batch) -> tuple[Tensor, int]:
        """Masked tokens whose most probable word piece is the original one."""
        masked = model(
            batch.pixels,
            batch.mlm_ids,
            batch.text_mask,
            read=batch.mlm_positions,
            text_lengths=batch.text_lengths,
        ).read
        target = _masked_ids(batch)
        return (model.mlm_head(masked).argmax(-1) == target).sum(), target.numel()


def _masked_ids(batch: Batch) -> Tensor:
    """Original ids [M] of the masked tokens."""
    return batch.mlm_labels.flatten().index_select(0, batch.mlm_positions)
