"""The micro-batch that the objectives of a training step share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from allinone.data.loading.batch import Batch
from allinone.engine.objective import mean_metric
from allinone.model import AllInOneForPreTraining
from allinone.model.contrast import embed_text, embed_video
from allinone.pretrain.objectives.draws import Draws
from allinone.pretrain.objectives.matching_pairs import draw_matching_pairs


@dataclass(frozen=True)
class MatchedPairs:
    """Captions with their own or another clip of the micro-batch."""

    labels: Tensor
    """int64 [B], 1 where the clip is the caption's own."""
    clips: Tensor
    """int64 [B], row of the micro-batch of the clip that each caption is paired with."""
    pooled: Tensor
    """Pooled text class token, [B, C]."""
    text: Tensor | None = None
    """Text features, [B, L, C]; None unless an active objective `reads_all_tokens`."""
    video: Tensor | None = None
    """Visual features, [B, n, C]: prefix tokens (config.num_prefix_tokens), then patches; None
    unless an active objective `reads_all_tokens`."""


@dataclass(frozen=True)
class ContrastiveEmbeddings:
    """What VTC contrasts."""

    text: Tensor
    """Unit length, float32 [B, D]."""
    video: Tensor
    """Unit length, float32 [B, D]."""
    scale: Tensor
    """Scalar that multiplies the cosines, the inverse temperature."""


class ObjectiveContext:
    """One micro-batch of one modality (videos or images), and the metrics recorded on it.

    Args:
        model: The model.
        batch: The micro-batch.
        draws: Its random choices; by default all are drawn from torch's global generator.
        within_dataset: Negatives of VTM are clips of the caption's own data set.
        joint_pass: MLM and VTM share one forward pass.
        all_tokens: `matching` has the features of all tokens.
        kept_patches: Patches of a frame that are kept, K, chosen at random in each pass; None: all.
        hard_negatives: Negatives of VTM are drawn by the similarities of VTC, whose passes then run
            first.
    """

    def __init__(
        self,
        model: AllInOneForPreTraining,
        batch: Batch,
        draws: Draws | None = None,
        within_dataset: bool = True,
        *,
        joint_pass: bool = False,
        all_tokens: bool = True,
        kept_patches: int | None = None,
        hard_negatives: bool = False,
    ) -> None:
        self.model = model
        self.batch = batch
        self.draws = draws or Draws()
        self._within_dataset = within_dataset
        self._joint_pass = joint_pass
        self._all_tokens = all_tokens
        self._kept_patches = kept_patches
        self._hard_negatives = hard_negatives
        self.metrics: dict[str, Tensor] = {}
        """Name → float32 [2] = (sum, count), as in allinone.engine.objective.Losses."""

    @property
    def frames(self) -> int:
        """Frames per clip, T."""
        return self.batch.pixels.shape[1]

    @property
    def masked_words(self) -> Tensor:
        """Features of the masked words in the MLM pass, [M, C], computed on first use."""
        return self._both[0] if self._joint_pass else self._masked_words

    @cached_property
    def contrastive(self) -> ContrastiveEmbeddings:
        """The uni-modal passes of VTC, computed on first use."""
        model, batch = self.model, self.batch
        scale = model.logit_scale()
        text = embed_text(model, batch.text_ids, batch.text_mask, batch.text_lengths)
        patches = self._kept_order(self.draws.vtc_patches)
        return ContrastiveEmbeddings(text, embed_video(model, batch.pixels, patches), scale)

    @property
    def matching(self) -> MatchedPairs:
        """The pairs of VTM and their joint pass, drawn and computed on first use."""
        return self._both[1] if self._joint_pass else self._matching

    @cached_property
    def _masked_words(self) -> Tensor:
        batch, order = self.batch, self._kept_order(self.draws.mlm_patch_order)
        return self.model(
            batch.pixels,
            batch.mlm_ids,
            batch.text_mask,
            order,
            read=batch.mlm_positions,
            text_lengths=batch.text_lengths,
        ).read

    @cached_property
    def _matching(self) -> MatchedPairs:
        batch, order = self.batch, self._kept_order(self.draws.vtm_patch_order)
        labels, clips = self._draw_pairs()
        output = self.model(
            batch.pixels,
            batch.text_ids,
            batch.text_mask,
            order,
            clips=clips,
            read=None if self._all_tokens else "pooled",
            text_lengths=batch.text_lengths,
        )
        return MatchedPairs(labels, clips, output.pooled, output.text, output.video)

    @cached_property
    def _both(self) -> tuple[Tensor, MatchedPairs]:
        """Masked words and matching pairs by one pass of 2B texts: those of MLM, then of VTM."""
        batch, words = self.batch, self.batch.mlm_positions
        size, length = batch.text_ids.shape
        labels, clips = self._draw_pairs()
        own = torch.arange(size, device=clips.device)
        first_words = (size + own) * length
        lengths = batch.text_lengths
        output = self.model(
            batch.pixels,
            torch.cat([batch.mlm_ids, batch.text_ids]),
            torch.cat([batch.text_mask, batch.text_mask]),
            self._patch_orders(),
            clips=torch.cat([own, clips]),
            read=None if self._all_tokens else torch.cat([words, first_words]),
            text_lengths=None if lengths is None else torch.cat([lengths, lengths]),
        )
        if self._all_tokens:
            masked = output.text[:size].flatten(0, 1).index_select(0, words)
            text, video = output.text[size:], output.video[size:]
            return masked, MatchedPairs(labels, clips, output.pooled[size:], text, video)
        masked, first = output.read.split([words.shape[0], size])
        return masked, MatchedPairs(labels, clips, self.model.backbone.pooler(first))

    def _draw_pairs(self) -> tuple[Tensor, Tensor]:
        """(labels, clips) of VTM."""
        if self.draws.matching_pairs is not None:
            return self.draws.matching_pairs
        datasets = self.batch.dataset_ids if self._within_dataset else None
        if not self._hard_negatives:
            return draw_matching_pairs(self.batch.text_ids, datasets)
        found = self.contrastive
        # of this rank's clips alone, as in ALBEF: the joint pass needs their pixels here
        cosines = found.text.detach() @ found.video.detach().T
        similarity = found.scale.detach() * cosines
        labels, clips = draw_matching_pairs(self.batch.text_ids, datasets, similarity)
        negative, drawn = 1 - labels, cosines.gather(1, clips[:, None]).squeeze(1)
        self.metrics["vtm_negative_cosine"] = torch.stack(
            [(drawn * negative).sum(), negative.sum().float()]
        )
        return labels, clips

    def _patch_orders(self) -> Tensor | None:
        """Patch orders of the MLM pass and of the VTM pass; None leaves both to the model."""
        given = [self.draws.mlm_patch_order, self.draws.vtm_patch_order]
        if self._kept_patches is None and all(order is None for order in given):
            return None
        return torch.cat([self._draw_order() if order is None else order for order in given])

    def _kept_order(self, given: Tensor | None) -> Tensor | None:
        """The given patch order of a pass, or a draw of the kept patches; None leaves all patches
        to the model."""
        return self._draw_order() if given is None and self._kept_patches is not None else given

    def _draw_order(self) -> Tensor:
        rows, device = len(self.batch) * self.frames, self.batch.pixels.device
        embeddings = self.model.backbone.video_embeddings
        return embeddings.draw_order(rows, self.frames, device, self._kept_patches)

    def mean(self, objective: str, losses: Tensor) -> Tensor:
        """Mean over a number of items that varies, 0 if there is none.

        Args:
            objective: Its name; it has a method `count_items`.
            losses: Loss per item, [N].
        """
        items = self.batch.mean_items.get(objective)
        # sum / max(N, 1), not mean: a micro-batch without an item must give 0, not NaN
        return losses.sum() / (max(losses.shape[0], 1) if items is None else items)

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
        clips = batch.pixels.new_full((), float(len(batch)), dtype=torch.float32)
        for index, name in enumerate(batch.dataset_names):
            own = (batch.dataset_ids == index).sum().float()
            self.metrics[f"sample_share/{name}"] = torch.stack([own, clips])
