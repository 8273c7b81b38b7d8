"""The training objective of a run: the weighted sum of its active objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from allinone.data.loading.batch import Batch, CoBatch
from allinone.engine.objective import Losses
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.objectives.base import Objective
from allinone.pretrain.objectives.config import ObjectiveConfig
from allinone.pretrain.objectives.context import ObjectiveContext
from allinone.pretrain.objectives.draws import DrawFn, draw_everything
from allinone.pretrain.objectives.registry import active_objectives, reads_all_tokens


class PretrainObjective:
    """Weighted sum of the objectives of the registry, on videos, images or both.

    Args:
        config: Weights and options of the objectives.
        draws: Returns the random choices of a micro-batch (of one modality); by default all are
            drawn from torch's global generator.
        all_patches_from: Position in the stream, and in that of co-trained images, from which all
            patches are used; before it, `config.patch_keep` of them.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        draws: DrawFn = draw_everything,
        all_patches_from: tuple[float, float] = (math.inf, math.inf),
    ) -> None:
        self.config = config
        self._draws = draws
        self._all_patches_from = all_patches_from
        self._active = active_objectives(config)
        # `mlm_mean` is about MLM alone; an added objective with such a loss has no other way
        self._counted = [
            each
            for each in self._active
            if type(each).count_items is not Objective.count_items
            and (each.name != "mlm" or config.mlm_mean == "global-batch")
        ]
        self.counts_items = bool(self._counted)
        """See engine.objective.CountingObjective."""

    def count_items(self, batch: Batch | CoBatch) -> Sequence[int]:
        """Items of each loss with a varying number of them: of the video, then of the images."""
        return [
            0 if part is None else objective.count_items(part) or 0
            for part in _modalities(batch)
            for objective in self._counted
        ]

    def with_mean_items(self, batch: Batch | CoBatch, means: Tensor) -> Batch | CoBatch:
        """The batch with what these losses are divided by; `means` is ordered as `count_items`."""
        names = [objective.name for objective in self._counted]
        parts = [
            None if part is None else replace(part, mean_items=dict(zip(names, items, strict=True)))
            for part, items in zip(_modalities(batch), means.split(len(names)), strict=True)
        ]
        if isinstance(batch, CoBatch):
            return CoBatch(*parts)
        assert parts[0] is not None
        return parts[0]

    def __call__(self, model: AllInOneForPreTraining, batch: Batch | CoBatch) -> Losses:
        """Compute the loss and metrics of a micro-batch.

        In co-training the weighted losses of the images are added, and their metrics get the prefix
        `image_`.
        """
        if isinstance(batch, Batch):
            return self._losses(model, batch, self._all_patches_from[0])
        total = batch.parts[0].pixels.new_zeros(())
        metrics: dict[str, Tensor] = {}
        for part, weight, prefix, all_from in (
            (batch.video, 1.0, "", self._all_patches_from[0]),
            (batch.images, self.config.image_weight, "image_", self._all_patches_from[1]),
        ):
            if part is not None:
                losses = self._losses(model, part, all_from)
                total = total + weight * losses.total
                metrics |= {f"{prefix}{name}": value for name, value in losses.metrics.items()}
        return Losses(total, metrics)

    def _losses(self, model: AllInOneForPreTraining, batch: Batch, all_from: float) -> Losses:
        config = self.config
        kept = None
        if config.patch_keep < 1 and batch.first_position < all_from:
            kept = config.kept_patches(model.config.num_patches)
        micro_batch = ObjectiveContext(
            model,
            batch,
            self._draws(batch),
            within_dataset=config.vtm_negatives != "any",
            joint_pass=config.joint_pass,
            all_tokens=reads_all_tokens(config),
            kept_patches=kept,
            hard_negatives=config.vtm_negatives == "hard",
        )
        total = batch.pixels.new_zeros(())
        # the registry's order fixes the order of random draws and of floating-point additions
        for objective in self._active:
            total = total + config.weight(objective.name) * objective.loss(micro_batch)
        micro_batch.record_sample_shares()
        if config.patch_keep < 1:
            share = 1.0 if kept is None else kept / model.config.num_patches
            micro_batch.record("patch_keep", batch.pixels.new_full((len(batch),), share))
        return Losses(total, micro_batch.metrics)


def _modalities(batch: Batch | CoBatch) -> tuple[Batch | None, ...]:
    return (batch.video, batch.images) if isinstance(batch, CoBatch) else (batch,)
