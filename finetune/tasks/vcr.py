"""Visual commonsense reasoning: Q→A, QA→R and Q→AR (Zellers et al. 2019).

Sample: a still, drawn for the answers and drawn for the rationales; four answers to the question,
and four rationales given the right answer. In evaluation the rationales are scored given each of
the four answers, as the test server wants them. Head: a rank head for each of the two, begun as the
VTM head. Loss: the two cross-entropies, added. Score: Q→A, QA→R given the right answer, and Q→AR,
both right for the same item. The picture for the answers shows nothing that only the rationales
mention. Letters: B items, V views, N items of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations.schema import AnnotationError, Split, VCRItem
from allinone.finetune.annotations.vcr import Tokens, outlines
from allinone.finetune.annotations.vcr_text import mentioned, names_of, sentence
from allinone.finetune.cost import Passes
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
from allinone.finetune.tasks.heads import TwoRanks, from_matching
from allinone.finetune.tasks.prompts import KEEP, LIST, QUESTION, Part, Text
from allinone.finetune.tasks.task_model import HeadPlan, SourceCheckpoint, TaskModel
from allinone.finetune.tasks.vcr_highlight import highlight

CHOICES = 4


@dataclass(frozen=True)
class VCROptions(TaskOptions):
    """VCR."""

    highlight: Literal["masks", "boxes", "none"] = "masks"
    """How the persons and objects that the texts mention are drawn into the picture: MERLOT's
    masks, boxes, or not at all."""
    naming: Literal["merlot", "reference"] = "merlot"
    """How the texts call them: MERLOT's names by the detection's number, or the original's `person
    0` by first mention."""


@dataclass(frozen=True)
class VCRExamples:
    """VCRItem → Example."""

    items: Sequence[VCRItem]
    options: VCROptions
    images: Path
    image_size: int
    every_answer: bool
    """Whether rationales are asked for given each answer (evaluation), or given the right one
    (training)."""

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        item = self.items[number]
        given = range(CHOICES) if self.every_answer else (item.answer or 0,)
        texts = [
            *self._answers(item),
            *(text for answer in given for text in self._rationales(item, answer)),
        ]
        labels = np.array(
            [-1 if label is None else label for label in (item.answer, item.rationale)], np.float32
        )
        return Example(
            tuple(self._look(item, task) for task in ("answer", "rationale")), tuple(texts), labels
        )

    def _look(self, item: VCRItem, task: str) -> VisualInput:
        if self.options.highlight == "none":
            return VisualInput(item.media)
        shown = mentioned(item, task)
        return VisualInput(
            item.media, _Drawing(self, item, shown), f"{self.options.highlight} {shown}"
        )

    def draw(
        self, picture: NDArray[np.uint8], item: VCRItem, shown: Sequence[int]
    ) -> NDArray[np.uint8]:
        """The picture with these detections in their colours."""
        polygons = outlines(self.images, item) if self.options.highlight == "masks" else None
        return highlight(picture, item, shown, polygons=polygons, image_size=self.image_size)

    def _sentence(self, item: VCRItem, tokens: Tokens, task: str) -> str:
        return sentence(tokens, names_of(item, self.options.naming, task))

    def _answers(self, item: VCRItem) -> list[Text]:
        question = Part(
            f"answer question: {self._sentence(item, item.question, 'answer')}", QUESTION
        )
        return [
            (question, Part(self._sentence(item, answer, "answer"), KEEP, after_sep=True))
            for answer in item.answers
        ]

    def _rationales(self, item: VCRItem, answer: int) -> list[Text]:
        question = Part(
            f"provide rationale: {self._sentence(item, item.question, 'rationale')}", LIST
        )
        given = Part(self._sentence(item, item.answers[answer], "rationale"), QUESTION)
        return [
            (
                question,
                given,
                Part(self._sentence(item, rationale, "rationale"), KEEP, after_sep=True),
            )
            for rationale in item.rationales
        ]


@dataclass(frozen=True)
class _Drawing:
    examples: VCRExamples
    item: VCRItem
    shown: tuple[int, ...]

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.examples.draw(picture, self.item, self.shown)


class VCR(Task):
    """See the module."""

    name = "vcr"
    selects = "q2ar"
    options: VCROptions

    def usable(self, split: Split) -> Split:
        if any(item.answer is None or item.rationale is None for item in _items(split)):
            raise AnnotationError(f"split {split.name!r} hides its labels: it cannot be trained on")
        return split

    def plan(self, *, zero_shot: bool) -> HeadPlan:
        def begin(head: nn.Module, weights: Mapping[str, Tensor]) -> None:
            from_matching(head, weights, log_odds=zero_shot)

        return HeadPlan(
            lambda config: TwoRanks(config.hidden_size),
            begin,
            facts={"protocol": self.name, "kind": "two_ranks"},
        )

    def check_zero_shot(self, origin: SourceCheckpoint) -> None:
        """Without training both heads are the VTM head."""

    def train_examples(self, split: Split) -> VCRExamples:
        return VCRExamples(
            _items(split), self.options, self.media, self.image_size, every_answer=False
        )

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        scores = _scores(model, batch)
        found: dict[str, Tensor] = {}
        total = batch.pixels.new_zeros(())
        for name, part, label in (
            ("q2a", scores[:, :CHOICES], 0),
            ("qa2r", scores[:, CHOICES:], 1),
        ):
            target = batch.target[:, label].long()
            losses = F.cross_entropy(part, target, reduction="none")
            total = total + losses.mean()
            found |= {
                f"{name}_loss": mean_metric(losses),
                f"{name}_accuracy": mean_metric(part.argmax(-1) == target),
            }
        return Losses(total, found)

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        items = _items(split)
        make = VCRExamples(items, self.options, self.media, self.image_size, every_answer=True)
        found = evaluator.run("answers", split.name, [item.id for item in items], make, _scores)
        gone = np.isin(np.arange(len(items)), list(found.missing))
        values = (
            found.values
            if found.values.ndim == 2
            else np.full((len(items), CHOICES + CHOICES**2), np.nan, np.float32)
        )
        answers, rationales = values[:, :CHOICES], values[:, CHOICES:].reshape(-1, CHOICES, CHOICES)
        known = all(item.answer is not None and item.rationale is not None for item in items)
        judged = None
        if known:
            judged = metrics.vcr(
                answers,
                rationales,
                [item.answer or 0 for item in items],
                [item.rationale or 0 for item in items],
                gone,
            )
        rows = [
            self._row(item, answers[n], rationales[n], bool(gone[n]), judged, n)
            for n, item in enumerate(items)
        ]
        details = {"chance": {"q2a": 25.0, "qa2r": 25.0, "q2ar": 6.25}, **found.cut}
        return EvalOutput(
            metrics.vcr_scores(judged, [item.media.id for item in items]) if judged else {},
            rows,
            missing_of(split, found.missing),
            details,
        )

    @staticmethod
    def _row(
        item: VCRItem,
        answers: np.ndarray,
        rationales: np.ndarray,
        gone: bool,
        judged: metrics.VCRScores | None,
        n: int,
    ) -> dict[str, object]:
        best = None if gone else int(answers.argmax())
        measures = (
            {}
            if judged is None
            else {name: float(getattr(judged, name)[n]) for name in ("q2a", "qa2r", "q2ar")}
        )
        return {
            "id": item.id,
            "media": item.media.id,
            "prediction": None if best is None else [best, int(rationales[best].argmax())],
            "answer_scores": [] if gone else [rounded(float(x)) for x in answers],
            "rationale_scores": (
                [] if gone else [[rounded(float(x)) for x in row] for row in rationales]
            ),
            "answer": [item.answer, item.rationale],
            "measures": measures,
        }

    def passes(self) -> Passes:
        return [("joint", CHOICES)] * 2


def _items(split: Split) -> list[VCRItem]:
    return [item for item in split.items if isinstance(item, VCRItem)]


def _scores(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, 4 + rationales], the mean over views: answers on the first picture, rationales on
    the second."""
    heads = model.task_head
    assert isinstance(heads, TwoRanks)
    parts = []
    for picture, texts, head in (
        (0, slice(CHOICES), heads.answer),
        (1, slice(CHOICES, None), heads.rationale),
    ):
        pairs = pooled(
            model, batch.pixels[:, picture], batch.text_ids[:, texts], batch.text_mask[:, texts]
        )
        parts.append(head_scores(head, pairs).squeeze(-1).mean(-1))
    return torch.cat(parts, 1)
