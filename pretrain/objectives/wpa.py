"""Word-patch alignment (UNITER, Chen et al. 2020; ViLT, Kim et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allinone.pretrain.objectives.base import ClipSize, MicroBatchSize, Objective

if TYPE_CHECKING:
    from torch import Tensor

    from allinone.pretrain.objectives.context import ObjectiveContext


class WordPatchAlignment(Objective):
    """Optimal-transport distance between words and patches, on the pairs of the VTM pass."""

    name = "wpa"
    title = "word-patch alignment (WPA)"
    heads = ()
    loss_metric = "wpa_loss"
    requires = "vtm"
    reads_all_tokens = True

    def loss(self, micro_batch: ObjectiveContext) -> Tensor:
        """Pull matching pairs together and push others apart: (sum+ - sum-) / B."""
        import torch

        from allinone.pretrain.objectives.optimal_transport import word_patch_distance

        pairs, labels = micro_batch.matching, micro_batch.matching.labels
        assert pairs.text is not None
        assert pairs.video is not None
        prefix = micro_batch.model.config.num_prefix_tokens
        distance = word_patch_distance(pairs.text, pairs.video, micro_batch.batch.text_mask, prefix)
        # the metric covers matching pairs only: that of the others is meant to grow
        matching_distance = (distance.detach() * labels).sum()
        micro_batch.metrics["wpa_distance"] = torch.stack([matching_distance, labels.sum().float()])
        # 2 * label - 1 is +1 for matching pairs and -1 for the others
        losses = distance * (2 * labels - 1)
        micro_batch.record("wpa_loss", losses)
        return losses.mean()

    def training_flops(self, size: ClipSize) -> float:
        """Cosines of words and patches, and the two products of each iteration of the plan.

        The plan needs no gradient. Class tokens are left out of it, but computed.
        """
        from allinone.pretrain.objectives.optimal_transport import ITERATIONS

        patches = size.model.num_patches if size.patches is None else size.patches
        pairs = size.model.max_text_len * patches
        return 3.0 * 2 * pairs * size.model.hidden_size + ITERATIONS * 2 * 2 * pairs

    def activation_bytes(self, size: MicroBatchSize) -> list[float]:
        """Unit vectors of words and patches, and the plan, all float32.

        Features in another precision are kept as float32 too. Each norm keeps 2 numbers per token.
        """
        model = size.model
        patches = model.num_patches if size.patches is None else size.patches
        tokens = model.max_text_len + patches
        copies = 1 if size.element == 4 else 2
        numbers = tokens * (copies * model.hidden_size + 2) + model.max_text_len * patches
        return [4.0 * size.clips * numbers]
