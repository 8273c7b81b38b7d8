"""Action recognition by a probe: the backbone is frozen, a classifier on the class token is trained
(Kinetics-400, HMDB51, UCF101).

Sample: a clip with the prompt "A person is doing [MASK]". Head: published, the pooler and C → C/2 →
classes; linear, one layer alone. Frozen parameters have no optimizer state, and dropout is off.
Loss: cross-entropy. Score: top-1, top-5, top-10. Letters: B items, N items, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from allinone.common.errors import ConfigError
from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations.schema import AnnotationError, LabelItem, Split
from allinone.finetune.evaluation import metrics
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.tasks.base import (
    EvalOutput,
    Task,
    TaskOptions,
    head_scores,
    missing_of,
    pooled,
    rounded,
)
from allinone.finetune.tasks.heads import answer_head
from allinone.finetune.tasks.prompts import Part
from allinone.finetune.tasks.task_model import TASK_HEAD, HeadPlan, SourceCheckpoint, TaskModel
from allinone.model import AllInOneConfig

_SHOWN = 5


@dataclass(frozen=True)
class ActionOptions(TaskOptions):
    """Action recognition."""

    probe: Literal["published", "linear", "full"] = "published"
    """What is trained: the pooler and a classifier of two layers, as the original's linear
    evaluation does; one linear layer; or everything."""
    prompt: str = "A person is doing [MASK]"
    """The text beside every clip."""


@dataclass(frozen=True)
class ActionExamples:
    """LabelItem → Example."""

    items: Sequence[LabelItem]
    prompt: str

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        item = self.items[number]
        return Example(
            (VisualInput(item.media),),
            ((Part(self.prompt),),),
            -1 if item.label is None else item.label,
        )


class ActionRecognition(Task):
    """See the module."""

    name = "action_recognition"
    selects = "top1"
    options: ActionOptions

    classes: tuple[str, ...] = ()

    def learn(self, train: Split | None, origin: SourceCheckpoint, *, eval_only: bool) -> None:
        """The classes: of the training split. In evaluation they must be those of the
        checkpoint."""
        saved = (
            tuple(origin.task.get("labels", ())) if origin.task.get("protocol") == self.name else ()
        )
        own = train.classes if train is not None else saved
        if eval_only and saved and own != saved:
            raise ConfigError(
                f"{origin.path} was trained on {len(saved)} classes, the annotations here name"
                f" {len(own)} or others"
            )
        if not own:
            raise AnnotationError(
                "no training split and no fine-tuned checkpoint: the classes are not known"
            )
        self.classes = own

    def usable(self, split: Split) -> Split:
        self._labels(split)
        return split

    def plan(self, *, zero_shot: bool) -> HeadPlan:
        probe = self.options.probe

        def make(config: AllInOneConfig) -> nn.Module:
            classes = len(self.classes)
            return (
                nn.Linear(config.hidden_size, classes)
                if probe == "linear"
                else answer_head(config.hidden_size, classes)
            )

        trained = (TASK_HEAD,) if probe == "linear" else (TASK_HEAD, "backbone.pooler.")
        facts = {"protocol": self.name, "kind": f"classes_{probe}", "labels": list(self.classes)}
        return HeadPlan(make, frozen=probe != "full", trained=trained, facts=facts)

    def train_examples(self, split: Split) -> ActionExamples:
        return ActionExamples(
            [item for item in split.items if isinstance(item, LabelItem)], self.options.prompt
        )

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        logits = _logits(model, batch)
        losses = F.cross_entropy(logits, batch.target, reduction="none")
        return Losses(
            losses.mean(),
            {
                "class_loss": mean_metric(losses),
                "class_accuracy": mean_metric(logits.argmax(-1) == batch.target),
            },
        )

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        labels, items = self._labels(split), list(split.items)
        found = evaluator.run(
            "classes", split.name, [item.id for item in items], self.train_examples(split), _logits
        )
        gone = np.isin(np.arange(len(items)), list(found.missing))
        tops = [k for k in metrics.TOPS if k < len(self.classes)] or [1]
        hits = {k: metrics.topk_hits(found.values, labels, k, gone) for k in tops}
        order = np.argsort(-found.values, axis=1, kind="stable")[:, :_SHOWN]
        rows = [
            {
                "id": item.id,
                "media": item.media.id,
                "prediction": [] if gone[n] else [self.classes[place] for place in order[n]],
                "score": (
                    []
                    if gone[n]
                    else [rounded(float(found.values[n, place])) for place in order[n]]
                ),
                "answer": self.classes[labels[n]],
                "measures": {f"top{k}": float(hits[k][n]) for k in tops},
            }
            for n, item in enumerate(items)
        ]
        details = {"classes": len(self.classes), "chance": 100 / len(self.classes), **found.cut}
        return EvalOutput(
            metrics.action_scores([hits]), rows, missing_of(split, found.missing), details
        )

    def _labels(self, split: Split) -> list[int]:
        """The labels; AnnotationError for one outside the range or for other classes than those of
        training."""
        if split.classes and split.classes != self.classes:
            raise AnnotationError(
                f"split {split.name!r} has {len(split.classes)} classes that are not the"
                f" {len(self.classes)} of training"
            )
        labels = []
        for item in split.items:
            label = item.label if isinstance(item, LabelItem) else None
            if label is None or not 0 <= label < len(self.classes):
                raise AnnotationError(
                    f"split {split.name!r}: item {item.id} has the label {label}, outside 0 to"
                    f" {len(self.classes) - 1}: {', '.join(split.files)}"
                )
            labels.append(label)
        return labels


def _logits(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, K], the mean over views."""
    return head_scores(
        model.task_head, pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask)[:, 0]
    ).mean(1)
