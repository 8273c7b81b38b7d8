"""Open-ended questions as classification over an answer vocabulary (MSR-VTT-QA, MSVD-QA, TGIF
FrameQA, VQAv2).

Sample: one clip, one question. Head: C → C/2 → answers (VQAv2: C → 2C → answers). Loss:
cross-entropy, or VQAv2's binary cross-entropy with soft scores. Scores: accuracy over all
questions, where an answer outside the vocabulary counts as wrong; accuracy over the answerable
questions; and their share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations import vqav2_text
from allinone.finetune.annotations.schema import AnnotationError, QAItem, Split
from allinone.finetune.evaluation import metrics, summaries
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.evaluation.results import EvalOutput, Score, rounded
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.inputs.prompts import plain
from allinone.finetune.task_model.heads import answer_head, head_scores, pooled, vqav2_head
from allinone.finetune.task_model.model import HeadSpec, TaskModel
from allinone.finetune.task_model.source import SourceCheckpoint
from allinone.finetune.tasks.base import Task, missing_items
from allinone.finetune.tasks.options import QAOptions


@dataclass(frozen=True)
class QAExamples:
    """QAItem → Example."""

    items: Sequence[QAItem]
    numbers: dict[str, int]
    """Answer → class."""
    soft: bool
    """Whether targets are VQAv2's soft scores."""

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        item = self.items[number]
        return Example((VisualInput(item.media),), (plain(item.question),), self._target(item))

    def _target(self, item: QAItem) -> int | np.ndarray:
        if not self.soft:
            return next(
                (self.numbers[answer] for answer in item.answers if answer in self.numbers), -1
            )
        # 0.3, 0.6, 0.9 or 1.0 for each answer that annotators gave
        scores = np.zeros(len(self.numbers), np.float32)
        for number, score in vqav2_text.soft_targets(item.answers, self.numbers).items():
            scores[number] = score
        return scores


class OpenEndedQA(Task):
    """Classifies a question about a clip into an answer vocabulary."""

    name = "open_ended_qa"
    options: QAOptions

    vocabulary: tuple[str, ...] = ()

    def setup(self, train: Split | None, source: SourceCheckpoint, *, eval_only: bool) -> None:
        """Take the vocabulary from the training answers; arguments and errors as in
        `Task.labels`."""
        kind = self._kind
        if eval_only and kind in source.heads:
            known = (train.reference_answers or train.answer_space) if train is not None else ()
            self.vocabulary = self.reference_labels(kind, train, known, source)
            return
        own = _vocabulary(train, self.options) if train is not None else ()
        self.vocabulary = self.labels(own, source, eval_only=eval_only, what="answers")

    @property
    def _kind(self) -> str:
        return f"answers_{self.options.loss}"

    def trainable(self, split: Split) -> Split:
        """Return the questions with an answer in the vocabulary; others have no target."""
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

    def head_spec(self, *, zero_shot: bool) -> HeadSpec:
        make = vqav2_head if self.options.loss == "bce" else answer_head
        return HeadSpec(
            lambda config: make(config.hidden_size, len(self.vocabulary)),
            metadata={
                "protocol": self.name,
                "kind": self._kind,
                "labels": list(self.vocabulary),
            },
        )

    def examples(self, split: Split) -> QAExamples:
        numbers = {answer: number for number, answer in enumerate(self.vocabulary)}
        items = [item for item in split.items if isinstance(item, QAItem)]
        return QAExamples(items, numbers, self.options.loss == "bce")

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        logits = _logits(model, batch)
        if self.options.loss == "ce":
            losses = F.cross_entropy(
                logits,
                batch.target,
                reduction="none",
                label_smoothing=self.options.label_smoothing,
            )
            # every training target is a class: `trainable` removes questions without one
            right = (logits.argmax(-1) == batch.target).float()
        else:
            # summed over the answers, as published: the mean times the number of classes
            losses = F.binary_cross_entropy_with_logits(logits, batch.target, reduction="none")
            losses = losses.sum(-1)
            right = batch.target.gather(1, logits.argmax(-1, keepdim=True)).squeeze(1)
        return Losses(
            losses.mean(), {"qa_loss": mean_metric(losses), "qa_accuracy": mean_metric(right)}
        )

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        items = [item for item in split.items if isinstance(item, QAItem)]
        ids = [item.id for item in split.items]
        found = evaluator.run("answers", split.name, ids, self.examples(split), _best)
        predicted = [
            None if n in found.missing else self.vocabulary[int(found.values[n, 0])]
            for n in range(len(items))
        ]
        labelled = all(item.answers for item in items)
        hits, scores = self._score(items, predicted) if labelled else (np.zeros(len(items)), {})
        rows = [
            {
                "id": item.id,
                "media": item.media.id,
                "prediction": predicted[n],
                "score": None if predicted[n] is None else rounded(found.values[n, 1]),
                "answer": list(item.answers[:1]),
                "measures": {"accuracy": float(hits[n])} if labelled else {},
            }
            for n, item in enumerate(items)
        ]
        size = len(self.vocabulary)
        details = {"vocabulary": size, "chance": 100 / size, **found.cut}
        return EvalOutput(scores, rows, missing_items(split, found.missing), details)

    def _score(
        self, items: Sequence[QAItem], predicted: Sequence[str | None]
    ) -> tuple[np.ndarray, dict[str, Score]]:
        """(hit of each item, scores)."""
        answers = [item.answers for item in items]
        kinds = [item.kind for item in items]
        media = [item.media.id for item in items]
        if self.options.loss == "bce":
            hits = metrics.vqa_soft(predicted, answers)
            return hits, summaries.accuracy_scores(hits, kinds, media)
        # questions with an answer outside the vocabulary count as wrong; the original leaves them
        # out of the denominator
        found = metrics.open_ended(predicted, answers, self.vocabulary)
        return found.hits, summaries.open_ended_scores(found, kinds, media)


def _logits(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, answers], the mean over views."""
    tokens = pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask, batch.text_lengths)[
        :, 0
    ]
    return head_scores(model.task_head, tokens).mean(1)


def _best(model: TaskModel, batch: TaskBatch) -> Tensor:
    """[B, 2]: number and logit of the best answer."""
    score, number = _logits(model, batch).max(-1)
    # float32 holds class numbers up to 2**24 exactly
    return torch.stack([number.float(), score], 1)


def _vocabulary(train: Split, options: QAOptions) -> tuple[str, ...]:
    if not options.answers:
        if not train.answer_space:
            raise AnnotationError(
                "--answers 0: this benchmark ships no list of answers; give a number"
            )
        return train.answer_space
    items = [item for item in train.items if isinstance(item, QAItem)]
    # of the training split alone, as the original: test answers outside it count as wrong
    counts = Counter(answer for item in items for answer in item.answers)
    # ties in alphabetical order, so that class numbers do not depend on the order of the file
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[: options.answers])
