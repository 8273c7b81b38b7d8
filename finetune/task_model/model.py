"""The backbone with the pre-training heads that a task uses and its own head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from allinone.common.errors import ConfigError
from allinone.finetune.task_model.source import SourceCheckpoint, config_fields
from allinone.model import AllInOneConfig, AllInOneModel, AllInOneOutput
from allinone.model.all_in_one import AllInOnePreTrainedModel
from allinone.model.contrast import UniModalPasses
from allinone.model.convert import CONTRASTIVE, LoadReport, fit, fitted_weights
from allinone.model.heads import LogitScale, MLMHead

TASK_HEAD = "task_head."
MATCHING = "vtm_head."
WORDS = "mlm_head."
_NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0}
"""Config of a frozen backbone whose features are the same in training and evaluation."""


class TaskModel(UniModalPasses, AllInOnePreTrainedModel):
    """The backbone, `task_head`, and the pre-training heads that the task trains. Other heads are
    left out: without training, weight decay would only shrink them.

    Args:
        config: Shape of the backbone.
        head: The task's head, on pooled tokens [.., C]; None: there is none.
        contrastive: Add the contrastive projections and the temperature.
        matching: Add the VTM head.
        words: Add the MLM head.
    """

    def __init__(
        self,
        config: AllInOneConfig,
        head: nn.Module | None,
        *,
        contrastive: bool = False,
        matching: bool = False,
        words: bool = False,
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.backbone = AllInOneModel(config)
        if contrastive:
            self.text_projection = nn.Linear(width, config.projection_dim)
            self.video_projection = nn.Linear(width, config.projection_dim)
            # starts at 1 / 0.05, the original's fixed temperature, and is trained
            self.logit_scale = LogitScale()
        if matching:
            self.vtm_head = nn.Linear(width, 2)
        if words:
            self.mlm_head = MLMHead(width, config.vocab_size)
        if head is not None:
            self.task_head = head
        self.post_init()

    def forward(
        self,
        pixels: Tensor,
        text_ids: Tensor,
        text_mask: Tensor,
        *,
        clips: Tensor | None = None,
        read: Literal["pooled"] | None = None,
        text_lengths: Tensor | None = None,
        **kwargs: Any,
    ) -> AllInOneOutput:
        """The joint pass of the backbone. Tasks call the heads themselves.

        Args:
            pixels: float32 [B, T, 3, S, S], normalised.
            text_ids: int64 [S, L].
            text_mask: [S, L], 1 at tokens.
            clips: int64 [S], the clip of each text; None: S = B, text i has clip i.
            read: "pooled": the last block computes the pooled class token only.
            text_lengths: int64 [S] on the CPU, tokens of each text; None: padding is computed.
            **kwargs: Ignored.
        """
        return self.backbone(
            pixels, text_ids, text_mask, clips=clips, read=read, text_lengths=text_lengths
        )


@dataclass(frozen=True)
class HeadSpec:
    """What a task adds to the backbone."""

    build: Callable[[AllInOneConfig], nn.Module] | None = None
    """Makes the task's head; None: the task uses the contrastive projections only."""
    initialize: Callable[[nn.Module, Mapping[str, Tensor]], None] | None = None
    """Sets the first weights of a new head from the checkpoint's tensors; None: random."""
    contrastive: bool = False
    """Add the contrastive projections."""
    matching: bool = False
    """Add the VTM head."""
    words: bool = False
    """Add the MLM head."""
    frozen: bool = False
    """Train only the parameters whose name contains one of `trained`."""
    frozen_dropout: bool = False
    """Keep the dropout of a frozen backbone in training."""
    trained: tuple[str, ...] = (TASK_HEAD,)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """protocol, kind and labels of the head, stored in config.json as "task". A checkpoint's head
    is reused if its kind and labels are equal."""


def has_head(source: SourceCheckpoint, spec: HeadSpec) -> bool:
    """Whether the checkpoint holds the task's head: the same kind, with the same labels."""
    if source.heads:
        head = source.heads.get(spec.metadata.get("kind", ""))
        return head is not None and list(head.labels) == list(spec.metadata.get("labels", ()))
    same = bool(source.task) and all(
        source.task.get(key) == spec.metadata.get(key) for key in ("kind", "labels")
    )
    return same and any(name.startswith(TASK_HEAD) for name in source.tensors)


def check_head(source: SourceCheckpoint, spec: HeadSpec) -> None:
    """ConfigError if a new head is to be initialised from a VTM head that is not there."""
    new = spec.build and spec.initialize and not has_head(source, spec)
    if new and f"{MATCHING}weight" not in source.tensors:
        raise ConfigError(
            f"--checkpoint {source.path} has no VTM head, from which the rank head is initialised;"
            " give a model pre-trained with VTM, or one that was fine-tuned with the same head"
        )


def check_fit(source: SourceCheckpoint, config: AllInOneConfig, spec: HeadSpec) -> None:
    """Check the checkpoint's weights against the task's model, without memory for the model.

    Raises:
        ConversionError: The weights do not fit.
    """
    with torch.device("meta"):
        model = _new_model(config, spec)
    report = LoadReport(source.report.source)
    fitted_weights(
        model,
        _used_weights(source, spec, model)[0],
        report,
        unexpected=source.unexpected,
        may_be_new=_may_be_new(source, spec),
    )


def _new_model(config: AllInOneConfig, spec: HeadSpec) -> TaskModel:
    constant = spec.frozen and not spec.frozen_dropout
    config = AllInOneConfig(**{**config_fields(config), **(_NO_DROPOUT if constant else {})})
    # saved with the weights, so that an evaluation knows the labels without the annotations
    config.task = dict(spec.metadata)
    return TaskModel(
        config,
        spec.build(config) if spec.build else None,
        contrastive=spec.contrastive,
        matching=spec.matching,
        words=spec.words,
    )


def _used_weights(
    source: SourceCheckpoint, spec: HeadSpec, model: TaskModel
) -> tuple[dict[str, Tensor], list[str]]:
    """The checkpoint's tensors that the model has, without the head of another task, and the names
    of the parts that are dropped."""
    own, reuse_head = model.state_dict(), has_head(source, spec)
    found = dict(source.tensors)
    heads = {head.name for head in source.heads.values() if head.tensors}
    if source.heads and reuse_head:
        head = source.heads[spec.metadata["kind"]]
        found |= head.tensors
        heads -= {head.name}
    kept = {
        name: tensor
        for name, tensor in found.items()
        if name in own and (reuse_head or not name.startswith(TASK_HEAD))
    }
    return kept, sorted({name.split(".")[0] for name in found if name not in kept} | heads)


def _may_be_new(source: SourceCheckpoint, spec: HeadSpec) -> tuple[str, ...]:
    """Prefixes of parameters that the checkpoint may lack."""
    # a reused head must be complete: new layers between trained ones would score at random
    if has_head(source, spec):
        return CONTRASTIVE
    # a checkpoint that was fine-tuned for something else has no MLM head
    return (TASK_HEAD, *CONTRASTIVE, *((WORDS,) if spec.words else ()))


def build_model(
    source: SourceCheckpoint, config: AllInOneConfig, spec: HeadSpec, seed: int
) -> TaskModel:
    """The task's model with the checkpoint's weights.

    Position tables of another length are resized and reported in `source.report`; the head of
    another task is dropped.

    Args:
        source: The checkpoint.
        config: The task's config, see `task_config`.
        spec: What the task adds to the backbone.
        seed: Seed of new weights.

    Raises:
        ConversionError: The weights do not fit the model.
    """
    torch.manual_seed(seed)  # new weights are equal on every rank
    model = _new_model(config, spec)
    # a head of other labels would load if their number is equal, and name wrong answers
    reuse_head = has_head(source, spec)
    kept, dropped = _used_weights(source, spec, model)
    report = source.report
    report.ignored += [f"{name}: this task does not use it" for name in dropped]
    fit(model, kept, report, unexpected=source.unexpected, may_be_new=_may_be_new(source, spec))
    if spec.build and not reuse_head and spec.initialize:
        spec.initialize(model.task_head, source.tensors)
        report.notes.append("the rank head is initialised from the VTM head")
    # frozen parameters have no gradient, so the optimizer keeps no state for them
    if spec.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(pattern in name for pattern in spec.trained))
    return model
