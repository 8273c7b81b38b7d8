"""Word-patch alignment (UNITER, Chen et al. 2020; ViLT, Kim et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allinone.pretrain.objectives.base import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from allinone.pretrain.objectives.context import ObjectiveContext


class WordPatchAlignment(Objective):
    """Optimal-transport distance between words and patches, on the pairs of the VTM pass.

    It adds no pass, so the planner counts neither FLOPs nor memory for it.
    """

    name = "wpa"
    title = "word-patch alignment (WPA)"
    heads = ()
    requires = "vtm"

    def loss(self, micro_batch: ObjectiveContext) -> Tensor:
        """Pull matching pairs together and push others apart: (sum+ - sum-) / B."""
        import torch

        from allinone.pretrain.objectives.optimal_transport import word_patch_distance

        pairs, labels = micro_batch.matching, micro_batch.matching.labels
        prefix = micro_batch.model.config.num_prefix_tokens
        distance = word_patch_distance(pairs.text, pairs.video, micro_batch.batch.text_mask, prefix)
        # the metric covers matching pairs only: that of the others is meant to grow
        matching_distance = (distance.detach() * labels).sum()
        micro_batch.metrics["wpa_distance"] = torch.stack([matching_distance, labels.sum().float()])
        # 2 * label - 1 is +1 for matching pairs and -1 for the others
        return (distance * (2 * labels - 1)).mean()
