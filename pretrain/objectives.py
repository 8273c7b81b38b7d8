"""The pre-training objectives: MLM, VTM, VTC and optional word-patch alignment, each with a weight
and its own metrics.

Letters: B clips of the micro-batch, L text tokens, M masked tokens, V vocabulary, D projection
width, W data ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.data.loading.batch import Batch, CoBatch
from allinone.engine.distributed.contrastive import contrast
from allinone.engine.objective import Losses, mean_metric
from allinone.model import AllInOneForPreTraining
from allinone.model.contrast import embed_text, embed_video
from allinone.pretrain.wpa import word_patch_distance


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the objectives; 0 switches one off. The paper's recipes use MLM + VTM."""

    mlm: float = 1.0
    """Weight of masked language modelling."""
    vtm: float = 1.0
    """Weight of video-text matching; needs a micro-batch of at least 2."""
    vtc: float = 0.0
    """Weight of video-text contrast (both directions averaged; the negatives are the clips of the
    same micro-batch on all ranks, so their number, and with it this loss, changes with the number
    of ranks)."""
    wpa: float = 0.0
    """Weight of word-patch alignment in the VTM pass; the original code uses 0.1, the paper does
    not mention it."""

    image_weight: float = 1.0
    """Weight of the images' losses beside the video's in co-training (the original adds them,
    weight 1)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"objective weight {name} must be a number >= 0, got {value}")
        if self.mlm == self.vtm == self.vtc == 0:
            raise ValueError(
                "all objectives are off; give a weight > 0 to at least one of --mlm, --vtm, --vtc"
            )
        if self.wpa and not self.vtm:
            raise ValueError(
                "--wpa works on the pairs of the VTM pass; give --vtm a weight > 0 or set --wpa 0"
            )

    def joint_passes(self) -> int:
        """Joint backbone passes per sample."""
        return int(self.mlm > 0) + int(self.vtm > 0)


def draw_matching_pairs(text_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Choose which clip each caption meets in VTM: (labels [B], video_index [B]).

    Half of the captions (rounded up), chosen at random, keep their clip: label 1. Each other one
    gets a clip drawn uniformly from those of the micro-batch whose caption differs: label 0. A
    caption that has no such clip stays a positive. No clip is decoded twice, nothing waits for the
    device.
    """
    batch = text_ids.shape[0]
    same_text = (text_ids[:, None] == text_ids[None]).all(-1)
    scores = torch.rand(batch, batch, device=text_ids.device).masked_fill(same_text, -1.0)
    best, other = scores.max(1)
    rank = torch.randperm(batch, device=text_ids.device)
    negative = (rank >= (batch + 1) // 2) & (best >= 0)
    own = torch.arange(batch, device=text_ids.device)
    return (~negative).long(), torch.where(negative, other, own)


class PretrainObjective:
    """MLM on the masked text, VTM on the true text with half of the clips exchanged, VTC on the
    uni-modal passes."""

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config

    def __call__(self, model: AllInOneForPreTraining, batch: Batch | CoBatch) -> Losses:
        """Co-training adds the images' losses, weighted; their metrics begin with `image_`."""
        if isinstance(batch, Batch):
            return self._losses(model, batch)
        total = batch.parts[0].pixels.new_zeros(())
        metrics: dict[str, Tensor] = {}
        for part, weight, prefix in (
            (batch.video, 1.0, ""),
            (batch.images, self.config.image_weight, "image_"),
        ):
            if part is not None:
                losses = self._losses(model, part)
                total = total + weight * losses.total
                metrics |= {f"{prefix}{name}": value for name, value in losses.metrics.items()}
        return Losses(total, metrics)

    def _losses(self, model: AllInOneForPreTraining, batch: Batch) -> Losses:
        config = self.config
        total = batch.pixels.new_zeros(())
        metrics: dict[str, Tensor] = {}
        if config.mlm:
            total = total + config.mlm * self._mlm(model, batch, metrics)
        if config.vtm:
            matching, alignment = self._vtm(model, batch, metrics)
            total = total + config.vtm * matching
            if alignment is not None:
                total = total + config.wpa * alignment
        if config.vtc:
            total = total + config.vtc * self._vtc(model, batch, metrics)
        if len(batch.dataset_names) > 1:
            whole = batch.pixels.new_tensor(float(len(batch)))
            for index, name in enumerate(batch.dataset_names):
                metrics[f"sample_share/{name}"] = torch.stack(
                    [(batch.dataset_ids == index).sum().float(), whole]
                )
        return Losses(total, metrics)

    def _mlm(
        self, model: AllInOneForPreTraining, batch: Batch, metrics: dict[str, Tensor]
    ) -> Tensor:
        """Cross-entropy at the masked tokens, mean over them; logits [M, V] exist for those only. 0
        where nothing is masked."""
        text = model(batch.pixels, batch.mlm_ids, batch.text_mask).text
        chosen = text.flatten(0, 1).index_select(0, batch.mlm_positions)
        target = batch.mlm_labels.flatten().index_select(0, batch.mlm_positions)
        logits = model.heads(batch.pixels.shape[1])[0](chosen).float()
        # sum / max(M, 1), not mean: a micro-batch of captions without a real word must give 0, not
        # NaN
        losses = F.cross_entropy(logits, target, reduction="none")
        metrics["mlm_loss"] = mean_metric(losses)
        metrics["mlm_accuracy"] = mean_metric(logits.argmax(-1) == target)
        if len(batch.dataset_names) > 1:
            owner = batch.dataset_ids.index_select(
                0, batch.mlm_positions // batch.text_ids.shape[1]
            )
            _by_dataset("mlm_loss", losses, owner, batch.dataset_names, metrics)
        return losses.sum() / max(target.shape[0], 1)

    def _vtm(
        self, model: AllInOneForPreTraining, batch: Batch, metrics: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Binary cross-entropy over B pairs (class 1 = match), and the alignment distance if it is
        on."""
        labels, video = draw_matching_pairs(batch.text_ids)
        output = model(batch.pixels.index_select(0, video), batch.text_ids, batch.text_mask)
        logits = model.heads(batch.pixels.shape[1])[1](output.pooled).float()
        losses = F.cross_entropy(logits, labels, reduction="none")
        metrics["vtm_loss"] = mean_metric(losses)
        metrics["vtm_accuracy"] = mean_metric(logits.argmax(-1) == labels)
        if len(batch.dataset_names) > 1:
            _by_dataset("vtm_loss", losses, batch.dataset_ids, batch.dataset_names, metrics)
        if not self.config.wpa:
            return losses.mean(), None
        distance = word_patch_distance(output.text, output.video, batch.text_mask)
        alignment = (
            distance * (2 * labels - 1)
        ).mean()  # pull true pairs together, push false ones apart: (sum+ - sum-) / B
        metrics["wpa_distance"] = torch.stack(
            [(distance.detach() * labels).sum(), labels.sum().float()]
        )
        return losses.mean(), alignment

    def _vtc(
        self, model: AllInOneForPreTraining, batch: Batch, metrics: dict[str, Tensor]
    ) -> Tensor:
        """InfoNCE over the clips of all ranks, both directions averaged; local rows against all W *
        B columns."""
        scale = model.logit_scale()
        found = contrast(
            embed_text(model, batch.text_ids, batch.text_mask),
            embed_video(model, batch.pixels),
            scale,
        )
        metrics["vtc_loss"] = mean_metric(found.losses)
        metrics["vtc_text_to_video_accuracy"] = mean_metric(found.text_right)
        metrics["vtc_video_to_text_accuracy"] = mean_metric(found.video_right)
        metrics["vtc_logit_scale"] = mean_metric(scale)
        return found.losses.mean()


def _by_dataset(
    name: str, losses: Tensor, owner: Tensor, names: tuple[str, ...], metrics: dict[str, Tensor]
) -> None:
    losses = losses.detach().float()
    sums = losses.new_zeros(len(names)).index_add_(0, owner, losses)
    counts = losses.new_zeros(len(names)).index_add_(0, owner, torch.ones_like(losses))
    for index, dataset in enumerate(names):
        metrics[f"{name}/{dataset}"] = torch.stack([sums[index], counts[index]])
