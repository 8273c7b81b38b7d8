"""What a pre-training run computes and keeps, from its options alone: training FLOPs per clip and
the activations of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

from allinone.engine.planning.estimate import Activations, element_sizes
from allinone.model import AllInOneConfig, flops
from allinone.model.activations import mlm_head_bytes, pass_bytes, pass_shape, working_bytes
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.objectives import ObjectiveConfig

MASKED_SHARE = 0.15
"""Share of the words that MLM masks (data/text.py). Captions are counted as full: max_text_len less
[CLS] and [SEP]."""


def masked_tokens(config: AllInOneConfig, clips: int = 1) -> int:
    """Expected masked tokens of `clips` full captions."""
    return clips * max(1, round(MASKED_SHARE * (config.max_text_len - 2)))


def sample_flops(
    config: AllInOneConfig,
    objective: ObjectiveConfig,
    frames: int,
    masked: int,
    candidates: int = 1,
) -> dict[str, float]:
    """Objective → FLOPs of one clip's forward and backward pass: a multiply-add is 2, heads count,
    backward is 2 x forward except for the patch convolution, whose input needs no gradient.
    `candidates`: clips that VTC contrasts with, over all ranks. Word-patch alignment, losses, norms
    and the optimizer are left out."""
    words = config.max_text_len
    patches = 2.0 * frames * config.num_patches * 3 * config.patch_size**2 * config.hidden_size

    def both(part: flops.Part) -> float:
        forward = flops.forward_flops(config, frames=frames, text_tokens=words, part=part)
        return 3.0 * forward - (patches if part != "text" else 0.0)

    found = {}
    if objective.mlm:
        # MLM does not read the pooled vector: its pooler has a forward pass only
        found["mlm"] = (
            both("joint") - 4 * config.hidden_size**2 + 3.0 * flops.mlm_flops(config, masked)
        )
    if objective.vtm:
        found["vtm"] = both("joint") + 3.0 * flops.vtm_flops(config, 1)
    if objective.vtc:
        contrast = 2 * 2 * candidates * config.projection_dim
        found["vtc"] = (
            both("text") + both("video") + 3.0 * (2 * flops.projection_flops(config, 1) + contrast)
        )
    return found


@dataclass(frozen=True)
class SampleCost:
    """Training FLOPs per clip of the global batch."""

    video: dict[str, float]
    """Objective → FLOPs of one clip, forward and backward."""
    images: dict[str, float]
    """The same for one image of co-training; empty without."""
    images_per_clip: float
    """Images that a step trains on, per clip of its global batch, on average over steps."""
    video_share: float
    """Share of the steps that hold video: 1, less with alternating co-training."""

    @property
    def total(self) -> float:
        """FLOPs of a step divided by its global batch, on average over steps."""
        return self.video_share * sum(self.video.values()) + self.images_per_clip * sum(
            self.images.values()
        )


def training_cost(config: PretrainConfig, world: int = 1) -> SampleCost:
    """What one clip costs; images of co-training are spread over the clips. `world` counts for
    VTC's candidates only."""
    model, cotrain = config.model_config(), config.cotrain
    candidates = config.train.micro_batch * world

    def cost(frames: int) -> dict[str, float]:
        return sample_flops(model, config.objective, frames, masked_tokens(model), candidates)

    if not cotrain.images:
        return SampleCost(cost(model.num_frames), {}, 0.0, 1.0)
    alternate = cotrain.image_mode == "alternate"
    share = cotrain.image_share if alternate else 1.0
    return SampleCost(
        cost(model.num_frames),
        cost(1),
        share * cotrain.image_batch / config.train.global_batch,
        1.0 - share if alternate else 1.0,
    )


def training_flops_per_sample(config: PretrainConfig, world: int = 1) -> float:
    """FLOPs of a step per clip of the global batch: all passes with their heads, forward and
    backward, FMA = 2."""
    return training_cost(config, world).total


def activations(
    config: PretrainConfig,
    element: int,
    mask: int = 1,
    *,
    micro_batch: int | None = None,
    checkpointing: bool | None = None,
) -> Activations:
    """Bytes that one micro-batch keeps for its backward pass. `element`: bytes of an activation;
    `mask`: of a dropout mask (1 on a GPU, `element` on a CPU). Images of joint co-training count as
    passes of one frame beside the video's; alternating ones are smaller than the video's and do
    not.
    """
    model, cotrain = config.model_config(), config.cotrain
    clips = micro_batch or config.train.micro_batch
    recompute = config.train.activation_checkpointing if checkpointing is None else checkpointing
    joint_images = bool(cotrain.images) and cotrain.image_mode == "joint"
    images = (
        max(1, round(clips * cotrain.image_batch / config.train.global_batch))
        if joint_images
        else 0
    )
    return model_activations(model, config.objective, clips, element, mask, recompute, images)


def model_activations(
    model: AllInOneConfig,
    objective: ObjectiveConfig,
    clips: int,
    element: int,
    mask: int,
    checkpointing: bool = False,
    images: int = 0,
) -> Activations:
    """The same for a model and its objectives; `images` of one frame pass beside the clips."""
    passes = _passes(model, objective, clips, model.num_frames, element, mask, checkpointing)
    if images:
        passes += _passes(model, objective, images, 1, element, mask, checkpointing)
    widest = pass_shape(model, clips, model.num_frames, model.max_text_len)
    return Activations(
        sum(passes), passes[-1], working_bytes(model, *widest, element, mask, checkpointing)
    )


def run_activations(config: PretrainConfig) -> Activations:
    """The activations of a run on this machine's kind of device."""
    return activations(config, *element_sizes(config.train))


def _passes(
    model: AllInOneConfig,
    objective: ObjectiveConfig,
    clips: int,
    frames: int,
    element: int,
    mask: int,
    checkpointing: bool,
) -> list[float]:
    """Saved bytes of every pass, heads included, in the order of the forward pass."""

    def one(part: flops.Part, own_pixels: bool) -> float:
        return pass_bytes(
            model,
            clips=clips,
            frames=frames,
            text_tokens=model.max_text_len,
            part=part,
            element=element,
            mask=mask,
            checkpointing=checkpointing,
            own_pixels=own_pixels,
        )

    cast = element != 4  # pixels arrive as fp32
    passes = []
    if objective.mlm:
        passes.append(
            one("joint", cast) + mlm_head_bytes(model, masked_tokens(model, clips), element)
        )
    if objective.vtm:
        passes.append(one("joint", True))
    if objective.vtc:
        passes += [one("text", False), one("video", cast)]
    return passes
