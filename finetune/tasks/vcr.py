"""Visual commonsense reasoning: Q→A, QA→R and Q→AR (Zellers et al. 2019).

Sample: a still, highlighted once for the answers and once for the rationales; four answers to the
question, and four rationales given the correct answer. In evaluation the rationales are scored
given each of the four answers, as the test server requires. Head: one rank head each for answers
and rationales, initialised from the VTM head. Loss: the sum of the two cross-entropies. Scores:
Q→A; QA→R given the correct answer; Q→AR, both correct for the same item. The picture for the
answers shows nothing that only the rationales mention. Letters: B items, V views, N items of a
split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations.schema import AnnotationError, Split, VCRItem
from allinone.finetune.annotations.vcr import Tokens, outlines
from allinone.finetune.annotations.vcr_text import mentioned, names_of, sentence
from allinone.finetune.cost import BackbonePasses
from allinone.finetune.evaluation import metrics, summaries
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.evaluation.results import EvalOutput, rounded
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.inputs.prompts import KEEP, LIST, QUESTION, Part, Text
from allinone.finetune.task_model.heads import VCRHead, from_matching, head_scores, pooled
from allinone.finetune.task_model.model import HeadSpec, TaskModel
from allinone.finetune.task_model.source import SourceCheckpoint
from allinone.finetune.tasks.base import Task, missing_items
from allinone.finetune.tasks.options import VCROptions
from allinone.finetune.tasks.vcr_highlight import highlight

CHOICES = 4


@dataclass(frozen=True)
class VCRExamples:
    """VCRItem → Example."""

    items: Sequence[VCRItem]
    options: VCROptions
    images: Path
    image_size: int
    every_answer: bool
    """Ask for rationales given each answer (evaluation), or given the correct answer only
    (training)."""

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        item = self.items[number]
        # Q→AR needs the rationale scores given the predicted answer, whichever it is
        given = range(CHOICES) if self.every_answer else (item.answer or 0,)
        texts = [
            *self._answers(item),
            *(text for answer in given for text in self._rationales(item, answer)),
        ]
        # float, because batches hold int64 [B] or float32 [B, …] targets
        labels = np.array(
            [-1 if label is None else label for label in (item.answer, item.rationale)], np.float32
        )
        return Example(
            tuple(self._visual(item, part) for part in ("answer", "rationale")),
            tuple(texts),
            labels,
        )

    def _visual(self, item: VCRItem, part: str) -> VisualInput:
        if self.options.highlight == "none":
            return VisualInput(item.media)
        # Q→A shows nothing that only rationales mention: the original does, which gives answers
        # away
        shown = mentioned(item, part)
        return VisualInput(
            item.media, _Drawing(self, item, shown), f"{self.options.highlight} {shown}"
        )

    def draw(
        self, picture: NDArray[np.uint8], item: VCRItem, shown: Sequence[int]
    ) -> NDArray[np.uint8]:
        """Highlight detections in their colours.

        Args:
            picture: uint8 RGB [H, W, 3].
            item: The question, with its regions.
            shown: Indices of the regions to draw.

        Returns:
            A copy of the picture.
        """
        # read when drawn: the outlines of 290,000 items do not fit into memory
        polygons = outlines(self.images, item) if self.options.highlight == "masks" else None
        return highlight(picture, item, shown, polygons=polygons, image_size=self.image_size)

    def _sentence(self, item: VCRItem, tokens: Tokens, part: str) -> str:
        return sentence(tokens, names_of(item, self.options.naming, part))

    # "answer question:" and "provide rationale:" are MERLOT's prompts
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
    """The `paint` of a visual input; a class, so that it can be sent to reader processes."""

    examples: VCRExamples
    item: VCRItem
    shown: tuple[int, ...]

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.examples.draw(picture, self.item, self.shown)


class VCR(Task):
    """Scores answers and rationales by joint passes with the still."""

    name = "vcr"
    selects = "q2ar"
    options: VCROptions

    def trainable(self, split: Split) -> Split:
        if any(item.answer is None or item.rationale is None for item in _items(split)):
            raise AnnotationError(f"split {split.name!r} hides its labels: it cannot be trained on")
        return split

    def head_spec(self, *, zero_shot: bool) -> HeadSpec:
        def initialize(head: nn.Module, weights: Mapping[str, Tensor]) -> None:
            from_matching(head, weights, log_odds=zero_shot)

        return HeadSpec(
            lambda config: VCRHead(config.hidden_size),
            initialize,
            metadata={"protocol": self.name, "kind": "two_ranks"},
        )

    def check_zero_shot(self, source: SourceCheckpoint) -> None:
        """Zero-shot, both heads are the VTM head."""

    def examples(self, split: Split) -> VCRExamples:
        return VCRExamples(
            _items(split), self.options, self.media, self.image_size, every_answer=False
        )

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        scores = _scores(model, batch)
        total = batch.pixels.new_zeros(())
        reported: dict[str, Tensor] = {}
        parts = (("q2a", scores[:, :CHOICES]), ("qa2r", scores[:, CHOICES:]))
        for column, (name, part) in enumerate(parts):
            # stored as float32, which holds the numbers 0 to 3 exactly
            target = batch.target[:, column].long()
            losses = F.cross_entropy(part, target, reduction="none")
            # the original sums the two losses unweighted
            total = total + losses.mean()
            reported[f"{name}_loss"] = mean_metric(losses)
            reported[f"{name}_accuracy"] = mean_metric(part.argmax(-1) == target)
        return Losses(total, reported)

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        items = _items(split)
        make = VCRExamples(items, self.options, self.media, self.image_size, every_answer=True)
        found = evaluator.run("answers", split.name, [item.id for item in items], make, _scores)
        missing = np.isin(np.arange(len(items)), list(found.missing))
        answers = found.values[:, :CHOICES]
        # [item, given answer, rationale]
        rationales = found.values[:, CHOICES:].reshape(-1, CHOICES, CHOICES)
        hits = None
        if all(item.answer is not None and item.rationale is not None for item in items):
            hits = metrics.vcr(
                answers,
                rationales,
                [item.answer or 0 for item in items],
                [item.rationale or 0 for item in items],
                missing,
            )
        rows = [
            _row(item, None if missing[n] else (answers[n], rationales[n]), _hits_of(hits, n))
            for n, item in enumerate(items)
        ]
        details = {"chance": {"q2a": 25.0, "qa2r": 25.0, "q2ar": 6.25}, **found.cut}
        scores = summaries.vcr_scores(hits, [item.media.id for item in items]) if hits else {}
        return EvalOutput(scores, rows, missing_items(split, found.missing), details)

    def backbone_passes(self) -> BackbonePasses:
        return [("joint", CHOICES)] * 2


def _hits_of(hits: metrics.VCRScores | None, n: int) -> dict[str, float]:
    """Hits of item n by name; empty if the split hides its labels."""
    return {} if hits is None else {name: float(values[n]) for name, values in vars(hits).items()}


def _row(
    item: VCRItem, scores: tuple[np.ndarray, np.ndarray] | None, hits: dict[str, float]
) -> dict[str, object]:
    """The prediction of one item, from its answer scores [4] and rationale scores [4, 4]; None for
    missing media."""
    row: dict[str, object] = {
        "id": item.id,
        "media": item.media.id,
        "prediction": None,
        "answer_scores": [],
        "rationale_scores": [],
        "answer": [item.answer, item.rationale],
        "measures": hits,
    }
    if scores is not None:
        answers, rationales = scores
        # the rationale given the predicted answer, not given the correct one
        best = int(answers.argmax())
        row |= {
            "prediction": [best, int(rationales[best].argmax())],
            "answer_scores": [rounded(float(x)) for x in answers],
            "rationale_scores": [[rounded(float(x)) for x in given] for given in rationales],
        }
    return row


def _items(split: Split) -> list[VCRItem]:
    return [item for item in split.items if isinstance(item, VCRItem)]


def _scores(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, 4 + rationales], the mean over views: answers on the first picture of an item,
    rationales on the second."""
    heads = model.task_head
    assert isinstance(heads, VCRHead)
    parts = []
    for picture, texts, head in (
        (0, slice(CHOICES), heads.answer),
        (1, slice(CHOICES, None), heads.rationale),
    ):
        # VCR shows 4 + 4 texts in training and 4 + 16 in evaluation
        lengths = batch.text_lengths
        pairs = pooled(
            model,
            batch.pixels[:, picture],
            batch.text_ids[:, texts],
            batch.text_mask[:, texts],
            None if lengths is None else lengths[:, texts],
        )
        parts.append(head_scores(head, pairs).squeeze(-1).mean(-1))
    return torch.cat(parts, 1)
