"""Action recognition by a probe (Kinetics-400, HMDB51, UCF101).

Sample: a clip with the prompt "A person is doing [MASK]". The backbone is frozen and a classifier
is trained on the class token. Head: `published`, the pooler and C → C/2 → classes; `linear`, a
single layer. Frozen parameters have no optimizer state; the backbone's dropout is active in
training, as in the original, or off (--no-probe-dropout). Loss: cross-entropy, with label smoothing
and mixup as options. Scores: top-1, top-5, top-10. Letters: B items, N items of a split, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations.schema import AnnotationError, LabelItem, Split
from allinone.finetune.evaluation import metrics, summaries
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.evaluation.results import EvalOutput, rounded
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.inputs.prompts import Part
from allinone.finetune.task_model.heads import answer_head, head_scores, pooled
from allinone.finetune.task_model.model import TASK_HEAD, HeadSpec, TaskModel
from allinone.finetune.task_model.source import SourceCheckpoint
from allinone.finetune.tasks.base import Task, missing_items
from allinone.finetune.tasks.options import ActionOptions
from allinone.model import AllInOneConfig

_LISTED = 5
"""Classes that a prediction lists."""


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
    """Classification of clips by a probe on the backbone."""

    name = "action_recognition"
    selects = "top1"
    options: ActionOptions

    classes: tuple[str, ...] = ()

    def setup(self, train: Split | None, source: SourceCheckpoint, *, eval_only: bool) -> None:
        """Take the classes from the training split; arguments and errors as in `Task.labels`."""
        own = train.classes if train is not None else ()
        if eval_only and self._kind in source.heads:
            self.classes = self.reference_labels(self._kind, train, own, source)
            return
        self.classes = self.labels(own, source, eval_only=eval_only, what="classes")

    @property
    def _kind(self) -> str:
        return f"classes_{self.options.probe}"

    def trainable(self, split: Split) -> Split:
        self._labels(split)
        return split

    def head_spec(self, *, zero_shot: bool) -> HeadSpec:
        probe = self.options.probe

        def build(config: AllInOneConfig) -> nn.Module:
            # one output per class; the original has a further one that is never a target
            width, classes = config.hidden_size, len(self.classes)
            return nn.Linear(width, classes) if probe == "linear" else answer_head(width, classes)

        return HeadSpec(
            build,
            frozen=probe != "full",
            frozen_dropout=self.options.probe_dropout,
            trained=(TASK_HEAD,) if probe == "linear" else (TASK_HEAD, "backbone.pooler."),
            metadata={
                "protocol": self.name,
                "kind": self._kind,
                "labels": list(self.classes),
            },
        )

    def examples(self, split: Split) -> ActionExamples:
        return ActionExamples(
            [item for item in split.items if isinstance(item, LabelItem)], self.options.prompt
        )

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        # every clip has a label: `trainable` has checked them
        parts: Sequence[tuple[Tensor | float, Tensor]] = [(1.0, batch.target)]
        if self.options.mixup:
            own = draw_share(self.options.mixup, batch.pixels.device)
            batch, parts = mix(batch, own)
        logits = _logits(model, batch)
        losses = right = logits.new_zeros(len(batch))
        for share, target in parts:
            losses = losses + share * F.cross_entropy(
                logits, target, reduction="none", label_smoothing=self.options.label_smoothing
            )
            right = right + share * (logits.argmax(-1) == target)
        return Losses(
            losses.mean(),
            {"class_loss": mean_metric(losses), "class_accuracy": mean_metric(right)},
        )

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        labels, items = self._labels(split), list(split.items)
        ids = [item.id for item in items]
        found = evaluator.run("classes", split.name, ids, self.examples(split), _logits)
        missing = np.isin(np.arange(len(items)), list(found.missing))
        # top-k of k classes is always 100 %
        tops = [k for k in metrics.TOPS if k < len(self.classes)] or [1]
        hits = {k: metrics.topk_hits(found.values, labels, k, missing) for k in tops}
        # stable: tied classes are listed by number, so prediction files are reproducible
        best = np.argsort(-found.values, axis=1, kind="stable")[:, :_LISTED]
        rows = []
        for n, item in enumerate(items):
            listed = [] if missing[n] else best[n].tolist()
            rows.append(
                {
                    "id": item.id,
                    "media": item.media.id,
                    "prediction": [self.classes[k] for k in listed],
                    "score": [rounded(float(found.values[n, k])) for k in listed],
                    "answer": self.classes[labels[n]],
                    "measures": {f"top{k}": float(hits[k][n]) for k in tops},
                }
            )
        details = {"classes": len(self.classes), "chance": 100 / len(self.classes), **found.cut}
        return EvalOutput(
            summaries.action_scores([hits]), rows, missing_items(split, found.missing), details
        )

    def _labels(self, split: Split) -> list[int]:
        """Return the labels; AnnotationError if classes differ from training or one is invalid."""
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


def draw_share(alpha: float, device: torch.device) -> Tensor:
    """Draw a clip's share in its mixture from Beta(alpha, alpha), from torch's global generator,
    which the trainer seeds per micro-batch. A float32 scalar; nothing waits for the device."""
    both = torch.full((2,), alpha, device=device)
    return torch.distributions.Dirichlet(both, validate_args=False).sample()[0]


def mix(batch: TaskBatch, share: Tensor) -> tuple[TaskBatch, list[tuple[Tensor, Tensor]]]:
    """Mix every clip with that of the mirrored row, as timm's batch mode does.

    Args:
        batch: B clips.
        share: Scalar, the share of the own clip.

    Returns:
        The mixed batch; and the shares with the classes [B] that have them.
    """
    pixels = share * batch.pixels + (1 - share) * batch.pixels.flip(0)
    mixed = replace(batch, pixels=pixels.to(batch.pixels.dtype))
    return mixed, [(share, batch.target), (1 - share, batch.target.flip(0))]


def _logits(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, K], the mean over views."""
    tokens = pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask, batch.text_lengths)[
        :, 0
    ]
    # logits are averaged, not probabilities: a view that is sure counts more
    return head_scores(model.task_head, tokens).mean(1)
