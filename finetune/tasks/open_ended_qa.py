"""Open-ended questions as classification over an answer vocabulary (MSR-VTT-QA, MSVD-QA, TGIF
FrameQA, VQAv2).

Sample: one clip, one question. Head: C → C/2 → answers (VQAv2: C → 2C → answers). Loss:
cross-entropy, or VQAv2's binary cross-entropy with soft scores. Score: accuracy over all questions,
an answer outside the vocabulary counts as wrong; and over the answerable ones with their share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.common.errors import ConfigError
from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations import vqav2_text
from allinone.finetune.annotations.schema import AnnotationError, QAItem, Split
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
from allinone.finetune.tasks.heads import answer_head, vqav2_head
from allinone.finetune.tasks.prompts import plain
from allinone.finetune.tasks.task_model import HeadPlan, SourceCheckpoint, TaskModel


@dataclass(frozen=True)
class QAOptions(TaskOptions):
    """Open-ended questions."""

    answers: int = 1500
    """Size of the answer vocabulary: the most frequent answers of the training split. 0 takes the
    list that comes with the benchmark (VQAv2)."""
    loss: Literal["ce", "bce"] = "ce"
    """bce: VQAv2's soft scores of ten annotators, and its official accuracy."""


@dataclass(frozen=True)
class QAExamples:
    """QAItem → Example."""

    items: Sequence[QAItem]
    numbers: dict[str, int]
    """Answer → class."""
    soft: bool

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        item = self.items[number]
        return Example((VisualInput(item.media),), (plain(item.question),), self._target(item))

    def _target(self, item: QAItem) -> int | np.ndarray:
        if not self.soft:
            return next(
                (self.numbers[answer] for answer in item.answers if answer in self.numbers), -1
            )
        scores = np.zeros(len(self.numbers), np.float32)
        for number, score in vqav2_text.soft_targets(item.answers, self.numbers).items():
            scores[number] = score
        return scores


class OpenEndedQA(Task):
    """See the module."""

    name = "open_ended_qa"
    options: QAOptions

    vocabulary: tuple[str, ...] = ()

    def learn(self, train: Split | None, origin: SourceCheckpoint, *, eval_only: bool) -> None:
        """The vocabulary: of the training answers. In evaluation it must be the one that the
        checkpoint was trained with."""
        saved = (
            tuple(origin.task.get("labels", ())) if origin.task.get("protocol") == self.name else ()
        )
        own = _vocabulary(train, self.options) if train is not None else saved
        if eval_only and saved and own != saved:
            raise ConfigError(_difference(saved, own, origin))
        if not own:
            raise AnnotationError(
                "no training split and no fine-tuned checkpoint: there is nothing to take the"
                " answer vocabulary from"
            )
        self.vocabulary = own

    def usable(self, split: Split) -> Split:
        """Training questions with an answer in the vocabulary; the others have no target."""
        numbers = {answer: number for number, answer in enumerate(self.vocabulary)}
        soft = self.options.loss == "bce"
        kept = [
            item
            for item in split.items
            if isinstance(item, QAItem)
            and (
                vqav2_text.soft_targets(item.answers, numbers)
                if soft
                else not numbers.keys().isdisjoint(item.answers)
            )
        ]
        left = len(split.items) - len(kept)
        note = (
            f"{left:,} of {len(split.items):,} questions have no answer in the vocabulary of"
            f" {len(numbers):,} and are not trained on"
        )
        return Split(
            split.name, kept, split.files, notes=(*split.notes, note) if left else split.notes
        )

    def plan(self, *, zero_shot: bool) -> HeadPlan:
        make = vqav2_head if self.options.loss == "bce" else answer_head
        facts = {
            "protocol": self.name,
            "kind": f"answers_{self.options.loss}",
            "labels": list(self.vocabulary),
        }
        return HeadPlan(lambda config: make(config.hidden_size, len(self.vocabulary)), facts=facts)

    def train_examples(self, split: Split) -> QAExamples:
        numbers = {answer: number for number, answer in enumerate(self.vocabulary)}
        items = [item for item in split.items if isinstance(item, QAItem)]
        return QAExamples(items, numbers, self.options.loss == "bce")

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        logits = _logits(model, batch)
        if self.options.loss == "ce":
            losses = F.cross_entropy(logits, batch.target, reduction="none")
            right = (logits.argmax(-1) == batch.target).float()
        else:  # summed over the answers, as published: mean x number of classes
            losses = F.binary_cross_entropy_with_logits(logits, batch.target, reduction="none").sum(
                -1
            )
            right = batch.target.gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
        return Losses(
            losses.mean(), {"qa_loss": mean_metric(losses), "qa_accuracy": mean_metric(right)}
        )

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        found = evaluator.run(
            "answers",
            split.name,
            [item.id for item in split.items],
            self.train_examples(split),
            _best,
        )
        items = [item for item in split.items if isinstance(item, QAItem)]
        said = [
            None if i in found.missing else self.vocabulary[int(found.values[i, 0])]
            for i in range(len(items))
        ]
        answers, kinds = [item.answers for item in items], [item.kind for item in items]
        media = [item.media.id for item in items]
        hits = np.zeros(len(items))
        if all(answers):
            if self.options.loss == "bce":
                hits = metrics.vqa_soft(said, answers)
                scores = metrics.accuracy_scores(hits, kinds, media)
            else:
                opened = metrics.open_ended(said, answers, self.vocabulary)
                hits, scores = opened.hits, metrics.open_ended_scores(opened, kinds, media)
        else:
            scores = {}
        rows = [
            {
                "id": item.id,
                "media": item.media.id,
                "prediction": said[i],
                "score": None if said[i] is None else rounded(found.values[i, 1]),
                "answer": list(item.answers[:1]),
                "measures": {"accuracy": float(hits[i])} if all(answers) else {},
            }
            for i, item in enumerate(items)
        ]
        details = {
            "vocabulary": len(self.vocabulary),
            "chance": 100 / len(self.vocabulary),
            **found.cut,
        }
        return EvalOutput(scores, rows, missing_of(split, found.missing), details)


def _logits(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, answers], the mean over views."""
    return head_scores(
        model.task_head, pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask)[:, 0]
    ).mean(1)


def _best(model: TaskModel, batch: TaskBatch) -> Tensor:
    """[B, 2]: number and logit of the best answer."""
    score, number = _logits(model, batch).max(-1)
    return torch.stack([number.float(), score], 1)


def _vocabulary(train: Split, options: QAOptions) -> tuple[str, ...]:
    if not options.answers:
        if not train.answer_space:
            raise AnnotationError(
                "--answers 0: this benchmark ships no list of answers; give a number"
            )
        return train.answer_space
    items = [item for item in train.items if isinstance(item, QAItem)]
    counts = Counter(answer for item in items for answer in item.answers)
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[: options.answers])


def _difference(saved: Sequence[str], own: Sequence[str], origin: SourceCheckpoint) -> str:
    gone, new = [a for a in saved if a not in set(own)], [a for a in own if a not in set(saved)]
    what = (
        f"{len(gone)} of its answers are gone ({', '.join(gone[:3])})"
        if gone
        else "none of its answers is gone"
    )
    more = (
        f"{len(new)} are new ({', '.join(new[:3])})"
        if new
        else "none is new"
        if gone
        else "their order differs"
    )
    return (
        f"the answer vocabulary has changed: {origin.path} was trained with {len(saved):,} answers,"
        f" the training annotations here give {len(own):,}; {what}, {more}. Evaluate with the"
        " annotations and --answers of the training, or train anew"
    )
