"""Base class of the pre-training objectives, and the sizes that their cost depends on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from allinone.data.loading.batch import Batch
    from allinone.model import AllInOneConfig, AllInOneForPreTraining
    from allinone.model.flops import LastBlock, Part
    from allinone.pretrain.config import PretrainConfig
    from allinone.pretrain.evaluation import EvaluationOutput
    from allinone.pretrain.objectives.context import ObjectiveContext


@dataclass(frozen=True)
class ClipSize:
    """What the FLOPs of one clip depend on."""

    model: AllInOneConfig
    frames: int
    """Frames per clip, T."""
    masked: int
    """Masked tokens per caption."""
    candidates: int = 1
    """Clips that VTC contrasts with, over all ranks."""
    joint_pass: bool = False
    """MLM and VTM share one forward pass."""
    all_tokens: bool = False
    """An active objective `reads_all_tokens`."""
    patches: int | None = None
    """Patches of a frame that are used; None: all."""
    computed_tokens: float | None = None
    """Tokens per caption that the passes compute, on average; None: max_text_len."""

    @property
    def text_tokens(self) -> float:
        """Tokens per caption that the passes compute, on average."""
        return self.computed_tokens or self.model.max_text_len

    def backbone_flops(
        self, part: Part, last: LastBlock | None = None, *, embeds: bool = True
    ) -> float:
        """FLOPs of one pass through the backbone, forward and backward.

        Args:
            part: Joint pass, or one modality alone.
            last: What the last block of a joint pass computes; None: all tokens.
            embeds: The pass embeds the patches of its clip; otherwise another objective's half of
                the same pass does.
        """
        from allinone.model import flops

        forward = flops.forward_flops(
            self.model,
            frames=self.frames,
            text_tokens=self.text_tokens,
            part=part,
            last=last,
            patches=self.patches,
        )
        # backward = 2 x forward, except for the patch projection: pixels need no gradient
        patches = 0.0 if part == "text" else flops.patch_flops(self.model, self.frames)
        return 3.0 * forward - patches * (1 if embeds else 3)


@dataclass(frozen=True)
class MicroBatchSize:
    """What the activation memory of one micro-batch depends on."""

    model: AllInOneConfig
    clips: int
    """Clips of the micro-batch, B."""
    frames: int
    """Frames per clip, T."""
    masked: int
    """Masked tokens of all captions, M."""
    element: int
    """Bytes of an activation."""
    mask: int
    """Bytes of an element of a dropout mask: 1 on a GPU, `element` on a CPU."""
    checkpointing: bool = False
    """Blocks are recomputed in the backward pass."""
    joint_pass: bool = False
    """MLM and VTM share one forward pass."""
    all_tokens: bool = False
    """An active objective `reads_all_tokens`."""
    patches: int | None = None
    """Patches of a frame that are used; None: all."""

    def backbone_bytes(
        self, part: Part, last: LastBlock | None = None, *, texts: int | None = None
    ) -> float:
        """Bytes that one pass through the backbone saves.

        Args:
            part: Joint pass, or one modality alone.
            last: What the last block of a joint pass computes; None: all tokens.
            texts: Texts of the pass, each with one of the clips; None: as many as clips.
        """
        from allinone.model.activations import pass_bytes

        return pass_bytes(
            self.model,
            clips=self.clips if texts is None else texts,
            embedded=self.clips,
            frames=self.frames,
            text_tokens=self.model.max_text_len,
            part=part,
            element=self.element,
            mask=self.mask,
            checkpointing=self.checkpointing,
            last=last,
            patches=self.patches,
        )


class Objective(ABC):
    """One pre-training objective: what it is called, what it computes and what that costs."""

    name: ClassVar[str]
    """Field of ObjectiveConfig, option (--NAME), and prefix of the metrics."""
    title: ClassVar[str]
    """What reports call it."""
    heads: ClassVar[tuple[str, ...]]
    """Modules of AllInOneForPreTraining that only this objective trains; empty if it shares."""
    loss_metric: ClassVar[str | None] = None
    """Training metric that reports draw as its loss."""
    accuracy_metric: ClassVar[str | None] = None
    """Training metric that reports draw as its accuracy, between 0 and 1."""
    chance: ClassVar[float | None] = None
    """Accuracy of guessing, between 0 and 1; None if it depends on the data."""
    min_clips: ClassVar[int] = 1
    """Smallest micro-batch, in clips, that it can learn from."""
    requires: ClassVar[str | None] = None
    """Name of the objective whose forward pass it uses, so that it cannot be trained alone."""

    reads_all_tokens: ClassVar[bool] = False
    """It reads `text` or `video` of ObjectiveContext.matching. The last block then runs on all
    tokens, otherwise only where MLM and VTM read."""

    @property
    def label(self) -> str:
        """Its abbreviation in messages, such as "MLM"."""
        return self.name.upper()

    @property
    def held_out_metric(self) -> str:
        """Score of `evaluation_metrics` that reports draw next to the training accuracy."""
        return f"{self.name}_accuracy"

    def chance_loss(self, *, words: int, candidates: int) -> float | None:
        """Loss of a model that guesses evenly, nats; None if the loss is no cross-entropy.

        Args:
            words: Size of the vocabulary.
            candidates: Clips that VTC contrasts with, over all ranks.
        """
        return None if self.chance is None else -math.log(self.chance)

    def count_items(self, batch: Batch) -> int | None:
        """Number of items that the loss is averaged over, where it varies between batches of one
        size; None if it does not. Such a loss uses `ObjectiveContext.mean`."""
        return None

    @abstractmethod
    def loss(self, micro_batch: ObjectiveContext) -> Tensor:
        """Compute the unweighted loss, a scalar, and record training metrics."""

    def training_flops(self, size: ClipSize) -> float | None:
        """FLOPs of one clip, forward and backward; a multiply-add is 2 FLOPs, heads included.

        None leaves the objective out of the plan.
        """
        return None

    def activation_bytes(self, size: MicroBatchSize) -> list[float]:
        """Bytes saved for the backward pass, per pass in forward order, heads included.

        An objective that `requires` another one gives the bytes that it adds to that one's pass. If
        MLM and VTM share a pass, MLM gives the bytes of both.
        """
        return []

    def check(self, config: PretrainConfig) -> None:
        """Raise ValueError if the options of a run do not suit this objective."""
        return

    def count_correct(
        self, model: AllInOneForPreTraining, batch: Batch
    ) -> tuple[Tensor, int] | None:
        """Predictions on a held-out batch: (correct, total); None without such a metric."""
        return None

    def embed(self, model: AllInOneForPreTraining, batch: Batch) -> Mapping[str, Tensor]:
        """Embeddings [B, D] of a held-out batch that metrics over the complete set need."""
        return {}

    def evaluation_metrics(self, output: EvaluationOutput) -> dict[str, float]:
        """Metrics of an evaluation set, by name."""
        if self.name not in output.correct:
            return {}
        return {f"{self.name}_accuracy": output.accuracy(self.name)}
