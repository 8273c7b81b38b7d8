"""Weights and options of the pre-training objectives. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from allinone.common.options import option
from allinone.pretrain.objectives.registry import OBJECTIVES


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the objectives; 0 disables an objective. The paper's recipes use MLM + VTM."""

    mlm: float = 1.0
    """Weight of masked language modelling."""
    vtm: float = 1.0
    """Weight of video-text matching; needs a micro-batch of at least 2 clips."""
    vtc: float = 0.0
    """Weight of video-text contrast, averaged over both directions. Its negatives are the clips of
    the micro-batches of all ranks, so this loss depends on the number of ranks."""
    wpa: float = option(0.0, earlier=0.0)
    """Weight of word-patch alignment in the VTM pass; the original code uses 0.1, the paper does
    not mention it."""

    passes: Literal["joint", "separate"] = option("joint", earlier="separate")
    """How MLM and VTM run, if both are on. joint: as one forward pass of twice the micro-batch, in
    which the patches of a clip are embedded once. separate: one after the other, as in the original
    code and in earlier versions; a block's backward pass then needs half the working memory. The
    losses are the same up to rounding; with dropout the random draws differ."""
    mlm_mean: Literal["global-batch", "micro-batch"] = option("global-batch", earlier="micro-batch")
    """What the MLM loss is averaged over. global-batch: all masked tokens of the optimizer step,
    videos and images separately, so that the loss does not depend on micro-batch and ranks; a rank
    holds its micro-batches of a step at the same time (29 MB for 16 clips of 3 frames of 224 px).
    micro-batch: the masked tokens of each micro-batch, and then the mean over micro-batches and
    ranks, as in the original code and in earlier versions: a token counts more in a micro-batch
    with few of them."""
    image_weight: float = 1.0
    """Weight of the image losses in co-training, relative to the video losses; the original adds
    them with weight 1."""
    patch_keep: float = option(1.0, earlier=1.0)
    """Share of the patches of each frame that training uses, drawn at random per clip and pass, the
    same in all frames of a clip (FLIP, arXiv 2212.00794). The paper uses all, and so does every
    evaluation. See docs/fast-recipe.md."""
    patch_keep_until: float = option(0.95, earlier=0.95)
    """Share of the steps, from the first, that use --patch-keep; the others use all patches, as
    evaluation does."""
    vtm_negatives: Literal["dataset", "any", "hard"] = option("dataset", earlier="any")
    """Where the clips of VTM's false pairs come from. dataset: clips of the micro-batch from the
    caption's own data set, and any other clip if there is none, as the original code draws from one
    data set. any: any clip of the micro-batch; in a mixture, which data set a clip comes from then
    reveals many false pairs. hard: as dataset, but drawn by the softmax of VTC's similarities
    (ALBEF, arXiv 2107.07651) instead of uniformly; it needs --vtc."""

    def __post_init__(self) -> None:
        weights = [objective.name for objective in OBJECTIVES] + ["image_weight"]
        for name in weights:
            value = self.weight(name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"objective weight {name} must be a number >= 0, got {value}")
        if not 0 < self.patch_keep <= 1:
            raise ValueError(
                "--patch-keep is a share of the patches, above 0 and at most 1 (all), got"
                f" {self.patch_keep}"
            )
        if not 0 <= self.patch_keep_until <= 1:
            raise ValueError(
                "--patch-keep-until is a share of the steps, from 0 to 1, got"
                f" {self.patch_keep_until}"
            )
        alone = [objective.name for objective in OBJECTIVES if objective.requires is None]
        if not any(self.weight(name) for name in alone):
            options = ", ".join(f"--{name}" for name in alone)
            raise ValueError(
                f"all objectives are off; give a weight > 0 to at least one of {options}"
            )
        if self.vtm_negatives == "hard" and not (self.vtm and self.vtc):
            raise ValueError(
                "--vtm-negatives hard draws VTM's false pairs by the similarities of VTC; give"
                " --vtm and --vtc a weight > 0, or choose --vtm-negatives dataset"
            )
        for objective in OBJECTIVES:
            needed = objective.requires
            if needed is not None and self.weight(objective.name) and not self.weight(needed):
                raise ValueError(
                    f"--{objective.name} works on the pairs of the {needed.upper()} pass; give"
                    f" --{needed} a weight > 0 or set --{objective.name} 0"
                )

    @property
    def joint_pass(self) -> bool:
        """Whether MLM and VTM share one forward pass."""
        return self.passes == "joint" and bool(self.mlm) and bool(self.vtm)

    def kept_patches(self, patches: int) -> int:
        """Number of a frame's patches that --patch-keep keeps.

        Raises:
            ValueError: It rounds to none.
        """
        kept = round(self.patch_keep * patches)
        if not kept:
            raise ValueError(
                f"--patch-keep {self.patch_keep} keeps none of the {patches} patches of a frame;"
                f" give at least {1 / patches:.3f}"
            )
        return kept

    def weight(self, name: str) -> float:
        """Weight of an objective by name."""
        return float(getattr(self, name))
