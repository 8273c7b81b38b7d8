"""Compute and memory of a pre-training run, from its options alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from allinone.data.loading.text_padding import computed_tokens
from allinone.engine.planning.estimate import Activations, element_sizes
from allinone.model import AllInOneConfig
from allinone.model.activations import pass_shape, working_bytes
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.objectives.base import ClipSize, MicroBatchSize
from allinone.pretrain.objectives.config import ObjectiveConfig
from allinone.pretrain.objectives.registry import active_objectives, reads_all_tokens

Lengths = Sequence[NDArray[np.int64] | None]
"""Tokens of a sample of the captions of videos, and of those of images, [CLS] and [SEP] included,
not cut; None or left out: the data is not at hand."""
MASK_PROB = 0.15
"""Share of the word pieces that MLM masks by default (DataConfig.mask_prob)."""


TYPICAL_TOKENS = 16
"""Tokens of an average caption, [CLS] and [SEP] included, where the data is not at hand: WebVid's
captions have 12.0 words in the mean (Chen et al., Panda-70M, CVPR 2024, table 1), and a word 1.2
pieces."""


def masked_tokens(
    config: AllInOneConfig,
    clips: int = 1,
    mask_prob: float = MASK_PROB,
    text_tokens: float | None = None,
) -> int:
    """Expected masked tokens, of the tokens of captions less [CLS] and [SEP].

    Args:
        config: The model; gives the length of a caption.
        clips: Captions.
        mask_prob: Share that is masked; at least one token per caption is, as in data/text.py.
        text_tokens: Tokens per caption; None: max_text_len.
    """
    return clips * max(1, round(mask_prob * ((text_tokens or config.max_text_len) - 2)))


def computed_text_tokens(
    config: PretrainConfig, limit: int, lengths: NDArray[np.int64] | None
) -> float:
    """Tokens per caption that the model computes, on average.

    Args:
        config: The run.
        limit: The model's max_text_len.
        lengths: Tokens of a sample of the captions; None: `TYPICAL_TOKENS` on average.
    """
    padding = config.loader.text_padding
    if lengths is not None:
        return computed_tokens(lengths, padding, config.train.micro_batch, limit)
    # how far captions differ is not known: the longest of a micro-batch may fill max_text_len
    return min(TYPICAL_TOKENS, limit) if padding == "packed" else limit


def sample_flops(
    config: AllInOneConfig,
    objective: ObjectiveConfig,
    frames: int,
    masked: int,
    candidates: int = 1,
    patches: int | None = None,
    text_tokens: float | None = None,
) -> dict[str, float]:
    """Training FLOPs of one clip by objective.

    A multiply-add is 2 FLOPs, heads count, and backward is 2 x forward except for the patch
    projection, whose input needs no gradient. Losses, norms and the optimizer are left out. If MLM
    and VTM share a pass, MLM counts the embedding of the patches.

    Args:
        config: The model.
        objective: Weights; objectives with weight 0 are left out.
        frames: Frames per clip, T.
        masked: Masked tokens per caption.
        candidates: Clips that VTC contrasts with, over all ranks.
        patches: Patches of a frame that are used; None: all.
        text_tokens: Tokens per caption that the model computes; None: max_text_len.
    """
    size = ClipSize(
        config,
        frames,
        masked,
        candidates,
        objective.joint_pass,
        reads_all_tokens(objective),
        patches,
        text_tokens,
    )
    flops = {each.name: each.training_flops(size) for each in active_objectives(objective)}
    return {name: value for name, value in flops.items() if value is not None}


@dataclass(frozen=True)
class SampleCost:
    """Training FLOPs per clip of the global batch."""

    video: dict[str, float]
    """Objective → FLOPs of one clip, forward and backward."""
    images: dict[str, float]
    """The same for one image; empty without co-training."""
    images_per_clip: float
    """Images trained on per clip of the global batch, averaged over steps."""
    video_share: float
    """Share of the steps that train on video: 1, less with alternating co-training."""
    kept: SampleCost | None = None
    """Cost in steps with --patch-keep; None: all steps use all patches."""
    kept_share: float = 0.0
    """Share of the steps with --patch-keep."""

    @property
    def all_patches(self) -> float:
        """FLOPs of a step with all patches divided by its global batch, averaged over steps."""
        return self.video_share * sum(self.video.values()) + self.images_per_clip * sum(
            self.images.values()
        )

    @property
    def total(self) -> float:
        """FLOPs of a step divided by its global batch, averaged over steps."""
        return self.kept_share * self.at(True) + (1 - self.kept_share) * self.all_patches

    def at(self, keeps: bool) -> float:
        """The same of the steps with --patch-keep, or of the others."""
        return self.kept.all_patches if keeps and self.kept is not None else self.all_patches


def training_cost(config: PretrainConfig, world: int = 1, lengths: Lengths = ()) -> SampleCost:
    """Cost of one clip; the cost of co-trained images is divided among the clips.

    Args:
        config: The run.
        world: Ranks; affects only the number of VTC's candidates.
        lengths: Of the captions.
    """
    cost = _phase_cost(config, world, None, lengths)
    if not config.kept_steps:
        return cost
    kept = _phase_cost(config, world, _kept_patches(config), lengths)
    return replace(cost, kept=kept, kept_share=config.kept_steps / config.train.steps)


def _kept_patches(config: PretrainConfig) -> int:
    return config.objective.kept_patches(config.model_config().num_patches)


def _phase_cost(
    config: PretrainConfig,
    world: int,
    patches: int | None,
    lengths: Lengths,
) -> SampleCost:
    """Cost of one clip in some of the steps.

    Args:
        config: The run.
        world: Ranks.
        patches: Patches of a frame that these steps use; None: all.
        lengths: As in `training_cost`.
    """
    model, cotrain = config.model_config(), config.cotrain
    # VTC contrasts with the micro-batches of all ranks
    candidates = config.train.micro_batch * world

    def cost(frames: int, sample: int = 0) -> dict[str, float]:
        known = lengths[sample] if sample < len(lengths) else None
        tokens = computed_text_tokens(config, model.max_text_len, known)
        masked = masked_tokens(model, 1, config.loader.mask_prob, tokens)
        return sample_flops(model, config.objective, frames, masked, candidates, patches, tokens)

    if not cotrain.images:
        return SampleCost(cost(model.num_frames), {}, 0.0, 1.0)
    alternate = cotrain.image_mode == "alternate"
    share = cotrain.image_share if alternate else 1.0
    return SampleCost(
        cost(model.num_frames),
        cost(1, 1),
        share * cotrain.image_batch / config.train.global_batch,
        1.0 - share if alternate else 1.0,
    )


def activations(
    config: PretrainConfig,
    element: int,
    mask: int = 1,
    *,
    micro_batch: int | None = None,
    checkpointing: bool | None = None,
) -> Activations:
    """Bytes that one micro-batch keeps for its backward pass.

    Images of joint co-training count as additional passes of one frame. Those of alternating
    co-training need less than the video's and do not count. The bytes are those of steps with all
    patches, unless every step uses --patch-keep.

    Args:
        config: The run.
        element: Bytes of an activation.
        mask: Bytes of an element of a dropout mask: 1 on a GPU, `element` on a CPU.
        micro_batch: Clips; None takes the run's.
        checkpointing: Activation checkpointing; None takes the run's.
    """
    model, cotrain = config.model_config(), config.cotrain
    clips = micro_batch or config.train.micro_batch
    recompute = config.train.activation_checkpointing if checkpointing is None else checkpointing
    images = 0
    if cotrain.images and cotrain.image_mode == "joint":
        images = max(1, round(clips * cotrain.image_batch / config.train.global_batch))
    return model_activations(
        model,
        config.objective,
        clips,
        element,
        mask,
        recompute,
        images,
        mask_prob=config.loader.mask_prob,
        patches=_kept_patches(config) if config.kept_steps == config.train.steps else None,
    )


def model_activations(
    model: AllInOneConfig,
    objective: ObjectiveConfig,
    clips: int,
    element: int,
    mask: int,
    checkpointing: bool = False,
    images: int = 0,
    mask_prob: float = MASK_PROB,
    patches: int | None = None,
) -> Activations:
    """The same for a model and its objectives.

    Args:
        model: The model.
        objective: Weights; objectives with weight 0 are left out.
        clips: Clips of the micro-batch.
        element: Bytes of an activation.
        mask: Bytes of an element of a dropout mask.
        checkpointing: Activation checkpointing.
        images: Images of one frame that pass in addition to the clips.
        mask_prob: Share of the word pieces that MLM masks.
        patches: Patches of a frame that are used; None: all.
    """

    def passes(count: int, frames: int) -> list[float]:
        """Saved bytes of every pass, in the order of the forward pass."""
        masked = masked_tokens(model, count, mask_prob)
        size = MicroBatchSize(
            model,
            count,
            frames,
            masked,
            element,
            mask,
            checkpointing,
            objective.joint_pass,
            reads_all_tokens(objective),
            patches,
        )
        found: list[float] = []
        active = active_objectives(objective)
        if objective.vtm_negatives == "hard":  # VTC's passes run first
            active = tuple(sorted(active, key=lambda each: each.name != "vtc"))
        for each in active:
            added = each.activation_bytes(size)
            if each.requires is None:
                found += added
            else:  # it follows the objective whose pass it uses, see the registry
                found[-1] += sum(added)
        return found

    saved = passes(clips, model.num_frames)
    if images:
        saved += passes(images, 1)
    texts = 2 * clips if objective.joint_pass else clips
    widest = pass_shape(model, texts, model.num_frames, model.max_text_len, patches=patches)
    return Activations(
        sum(saved), saved[-1], working_bytes(model, *widest, element, mask, checkpointing)
    )


def run_activations(config: PretrainConfig) -> Activations:
    """Activations of a run on the kind of device that this machine has."""
    return activations(config, *element_sizes(config.train))
