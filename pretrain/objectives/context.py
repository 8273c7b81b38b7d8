"""The micro-batch that the objectives of a training step share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from allinone.data.loading.batch import Batch
from allinone.engine.objective import mean_metric
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.objectives.draws import Draws
from allinone.pretrain.objectives.matching_pairs import draw_matching_pairs


@dataclass(frozen=True)
class MatchedPairs:
    """Captions with their own or another clip of the micro-batch."""

    labels: Tensor
    """int64 [B], 1 where the clip is the caption's own."""
    clips: Tensor
    """int64 [B], row of the micro-batch of the clip that each caption is paired with."""
    text: Tensor
    """Text features of the joint pass, [B, L, C]."""
    video: Tensor
    """Visual features, [B, n, C]: prefix tokens (config.num_prefix_tokens), then patches."""
    pooled: Tensor
    """Pooled text class token, [B, C]."""


class ObjectiveContext:
    """One micro-batch of one modality (videos or images), and the metrics recorded on it.

    Args:
        model: The model.
        batch: The micro-batch.
        draws: Its random choices; by default all are drawn from torch's global generator.
        within_dataset: Negatives of VTM are clips of the caption's own data set.
    """

    def __init__(
        self,
        model: AllInOneForPreTraining,
        batch: Batch,
        draws: Draws | None = None,
        within_dataset: bool = True,
    ) -> None:
        self.model = model
        self.batch = batch
        self.draws = draws or Draws()
        self._within_dataset = within_dataset
        self.metrics: dict[str, Tensor] = {}
        """Name → float32 [2] = (sum, count), as in allinone.engine.objective.Losses."""

    @property
    def frames(self) -> int:
        """Frames per clip, T."""
        return self.batch.pixels.shape[1]

    @cached_property
    def matching(self) -> MatchedPairs:
        """The pairs of VTM and their joint pass, drawn and computed on first use."""
        batch, draws = self.batch, self.draws
        datasets = batch.dataset_ids if self._within_dataset else None
        labels, clips = draws.matching_pairs or draw_matching_pairs(batch.text_ids, datasets)
        pixels = batch.pixels.index_select(0, clips)
        output = self.model(pixels, batch.text_ids, batch.text_mask, draws.vtm_patch_order)
        return MatchedPairs(labels, clips, output.text, output.video, output.pooled)

    def record(self, name: str, values: Tensor) -> None:
        """Record the mean of per-item values as a metric."""
        self.metrics[name] = mean_metric(values)

    def record_by_dataset(self, name: str, losses: Tensor, clips: Tensor | None = None) -> None:
        """Record the mean loss of each data set of a mixture; nothing for a single data set.

        Args:
            name: Metric; the data set is appended after a slash.
            losses: Loss per item, [N].
            clips: Clip of each item, int64 [N]; None if item and clip are the same.
        """
        names = self.batch.dataset_names
        if len(names) < 2:
            return
        owner = self.batch.dataset_ids
        if clips is not None:
            owner = owner.index_select(0, clips)
        losses = losses.detach().float()
        sums = losses.new_zeros(len(names)).index_add_(0, owner, losses)
        counts = losses.new_zeros(len(names)).index_add_(0, owner, torch.ones_like(losses))
        for index, dataset in enumerate(names):
            self.metrics[f"{name}/{dataset}"] = torch.stack([sums[index], counts[index]])

    def record_cross_dataset_share(self, name: str, pairs: MatchedPairs) -> None:
        """Record the share of negatives from another data set; nothing for a single data set.

        A pair from two data sets can be recognised without reading the caption. With negatives
        within the data set these are the captions without a suitable clip in the micro-batch.
        """
        if len(self.batch.dataset_names) < 2:
            return
        owner = self.batch.dataset_ids
        negative = pairs.labels == 0
        crossing = negative & (owner.index_select(0, pairs.clips) != owner)
        self.metrics[name] = torch.stack([crossing.sum(), negative.sum()]).float()

    def record_sample_shares(self) -> None:
        """Record each data set's share of the clips; nothing for a single data set."""
        batch = self.batch
        if len(batch.dataset_names) < 2:
            return
        clips = batch.pixels.new_tensor(float(len(batch)))
        for index, name in enumerate(batch.dataset_names):
            own = (batch.dataset_ids == index).sum().float()
            self.metrics[f"sample_share/{name}"] = torch.stack([own, clips])
