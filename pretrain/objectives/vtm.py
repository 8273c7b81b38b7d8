"""Video-text matching: does this caption describe this clip?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allinone.pretrain.objectives.base import ClipSize, MicroBatchSize, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from allinone.data.loading.batch import Batch
    from allinone.model import AllInOneForPreTraining
    from allinone.pretrain.config import PretrainConfig
    from allinone.pretrain.objectives.context import ObjectiveContext


class VideoTextMatching(Objective):
    """Binary classification of pairs, half of which have another clip of the micro-batch."""

    name = "vtm"
    title = "matching (VTM)"
    heads = ("vtm_head",)
    loss_metric = "vtm_loss"
    accuracy_metric = "vtm_accuracy"
    chance = 0.5
    min_clips = 2

    def loss(self, micro_batch: ObjectiveContext) -> Tensor:
        """Cross-entropy over the B pairs; class 1 is a match."""
        import torch.nn.functional as F

        pairs = micro_batch.matching
        _, vtm_head = micro_batch.model.heads(micro_batch.frames)
        logits = vtm_head(pairs.pooled).float()
        losses = F.cross_entropy(logits, pairs.labels, reduction="none")
        micro_batch.record("vtm_loss", losses)
        micro_batch.record("vtm_accuracy", logits.argmax(-1) == pairs.labels)
        micro_batch.record_by_dataset("vtm_loss", losses)
        micro_batch.record_cross_dataset_share("vtm_cross_dataset_negatives", pairs)
        return losses.mean()

    def training_flops(self, size: ClipSize) -> float:
        """Joint pass and VTM head."""
        from allinone.model import flops

        last: flops.LastBlock | None = flops.CLASS_TOKEN
        if size.all_tokens:
            last = None
        elif size.joint_pass:  # the queries of MLM's half and of this one are equally many
            last = flops.LastBlock(size.text_tokens, 1)
        backbone = size.backbone_flops("joint", last, embeds=not size.joint_pass)
        return backbone + 3.0 * flops.vtm_flops(size.model, 1)

    def activation_bytes(self, size: MicroBatchSize) -> list[float]:
        """Joint pass; nothing if it is a part of MLM's."""
        from allinone.model.flops import CLASS_TOKEN

        if size.joint_pass:
            return []
        return [size.backbone_bytes("joint", None if size.all_tokens else CLASS_TOKEN)]

    def check(self, config: PretrainConfig) -> None:
        """Refuse micro-batches of one clip: all pairs would match, and VTM would learn nothing."""
        train, images = config.train, config.cotrain.image_batch
        if train.micro_batch < self.min_clips:
            raise ValueError(
                "VTM draws its false pairs from the micro-batch: --micro-batch must be at least"
                f" {self.min_clips} (or set --vtm 0)"
            )
        least = self.min_clips * train.global_batch
        if config.cotrain.images and images * train.micro_batch < least:
            raise ValueError(
                "VTM draws its false pairs from the micro-batch, but a micro-batch of images would"
                f" hold --image-batch {images} x --micro-batch {train.micro_batch} / --global-batch"
                f" {train.global_batch} = {images * train.micro_batch / train.global_batch:g} of"
                f" them and needs at least {self.min_clips}: --image-batch"
                f" {-(-least // train.micro_batch)} or more, or a larger --micro-batch (or --vtm 0)"
            )

    def count_correct(self, model: AllInOneForPreTraining, batch: Batch) -> tuple[Tensor, int]:
        """Pairs classified correctly; the same pairs in every evaluation of an item set."""
        import torch

        from allinone.pretrain.objectives.matching_pairs import draw_matching_pairs

        device = batch.pixels.device
        # the pairs depend on the position alone, and training's random state is not disturbed
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            torch.manual_seed(batch.first_position)
            # within a data set, whatever the option: the source must not reveal the answer
            labels, video = draw_matching_pairs(batch.text_ids, batch.dataset_ids)
        pooled = model(
            batch.pixels,
            batch.text_ids,
            batch.text_mask,
            clips=video,
            read="pooled",
            text_lengths=batch.text_lengths,
        ).pooled
        return (model.vtm_head(pooled).argmax(-1) == labels).sum(), labels.numel()
