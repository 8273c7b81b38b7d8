"""Multiple choice: one clip with several texts (TGIF action and transition, TVQA, MSR-VTT and
LSMDC), or one text with several clips (EgoMCQ).

Sample: a clip and K texts, each a joint pass; the options are shuffled in training. Head: the rank
head, begun as the VTM head, or C → 256 → 1. Loss: cross-entropy over the options. Score: accuracy.
Without training the log-odds of the VTM head score the options. Letters: B items, C clips, K texts,
V views, N items of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from allinone.common.errors import ConfigError
from allinone.data.loading.sampling import generator
from allinone.engine.objective import Losses, mean_metric
from allinone.finetune.annotations.schema import (
    AnnotationError,
    ChoiceItem,
    ClipChoiceItem,
    Item,
    RetrievalItem,
    Split,
)
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
from allinone.finetune.tasks.heads import from_matching, option_head, rank_head
from allinone.finetune.tasks.prompts import option, plain
from allinone.finetune.tasks.retrieval import other_captions
from allinone.finetune.tasks.task_model import HeadPlan, SourceCheckpoint, TaskModel


@dataclass(frozen=True)
class ChoiceOptions(TaskOptions):
    """Multiple choice."""

    head: Literal["rank", "mlp"] = "rank"
    """rank: C → 1, begun as the VTM head; mlp: C → 256 → 1 (the original's for TGIF-QA and
    TVQA)."""
    list_options: bool = True
    """Whether every text lists all options before its own answer, where there is a question."""
    false_texts: int = 4
    """Captions of other clips beside the true one, where training items are captioned clips
    (MSR-VTT has no training questions)."""


@dataclass(frozen=True)
class ChoiceExamples:
    """ChoiceItem, ClipChoiceItem or RetrievalItem → Example."""

    items: Sequence[Item]
    options: ChoiceOptions

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        item = self.items[number]
        if isinstance(item, ClipChoiceItem):
            return Example(
                tuple(VisualInput(clip) for clip in item.clips),
                (plain(item.text),),
                _label(item.answer),
            )
        if isinstance(item, RetrievalItem):
            item = self._from_captions(item, number, random)
        assert isinstance(item, ChoiceItem)
        order = list(range(len(item.choices)))
        if (
            random is not None
        ):  # a training file may have the right option always in the same place (LSMDC)
            order = random.permutation(len(order)).tolist()
        choices = [item.choices[place] for place in order]
        listed = choices if self.options.list_options else ()
        texts = tuple(option(item.question, choice, listed, item.context) for choice in choices)
        return Example(
            (VisualInput(item.media),),
            texts,
            -1 if item.answer is None else order.index(item.answer),
        )

    def _from_captions(
        self, item: RetrievalItem, number: int, random: np.random.Generator | None
    ) -> ChoiceItem:
        """The item's caption among those of others; in evaluation always the same ones."""
        drawn = random if random is not None else generator(0, "options", 0, number)
        captions = [other for other in self.items if isinstance(other, RetrievalItem)]
        own = item.captions[int(drawn.integers(len(item.captions)))]
        return ChoiceItem(
            item.id,
            item.media,
            "",
            (own, *other_captions(captions, number, self.options.false_texts, drawn)),
            0,
        )


def _label(answer: int | None) -> int:
    return -1 if answer is None else answer


def _options_of(item: Item, options: ChoiceOptions) -> int:
    if isinstance(item, ClipChoiceItem):
        return len(item.clips)
    return len(item.choices) if isinstance(item, ChoiceItem) else 1 + options.false_texts


def _right(item: Item) -> int | None:
    return item.answer if isinstance(item, (ChoiceItem, ClipChoiceItem)) else 0


class MultipleChoice(Task):
    """See the module."""

    name = "multiple_choice"
    options: ChoiceOptions

    def usable(self, split: Split) -> Split:
        """Training questions with a known answer."""
        _check_options(split, self.options)
        if any(_right(item) is None for item in split.items):
            raise AnnotationError(
                f"split {split.name!r} hides its answers: it cannot be trained on"
            )
        return split

    def plan(self, *, zero_shot: bool) -> HeadPlan:
        ranks = zero_shot or self.options.head == "rank"

        def begin(head: nn.Module, weights: Mapping[str, Tensor]) -> None:
            from_matching(head, weights, log_odds=zero_shot)

        facts = {"protocol": self.name, "kind": "rank" if ranks else "option"}
        make = rank_head if ranks else option_head
        return HeadPlan(
            lambda config: make(config.hidden_size), begin if ranks else None, facts=facts
        )

    def check_zero_shot(self, origin: SourceCheckpoint) -> None:
        if origin.task:
            raise ConfigError(
                f"--checkpoint {origin.path} was fine-tuned for {origin.task.get('protocol')} with"
                f" another head; give one that was trained for {self.name}, or a pre-trained model"
            )

    def train_examples(self, split: Split) -> ChoiceExamples:
        return ChoiceExamples(split.items, self.options)

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        scores = option_scores(model, batch)
        losses = F.cross_entropy(scores, batch.target, reduction="none")
        return Losses(
            losses.mean(),
            {
                "choice_loss": mean_metric(losses),
                "choice_accuracy": mean_metric(scores.argmax(-1) == batch.target),
            },
        )

    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        options = _check_options(split, self.options)
        items = list(split.items)
        found = evaluator.run(
            "options",
            split.name,
            [item.id for item in items],
            self.train_examples(split),
            option_scores,
        )
        gone = np.isin(np.arange(len(items)), list(found.missing))
        answers = [_right(item) for item in items]
        known = all(answer is not None for answer in answers)
        hits = metrics.option_hits(found.values, [answer or 0 for answer in answers], gone)
        rows = [
            {
                "id": item.id,
                "media": item.media.id,
                "prediction": None if gone[n] else int(found.values[n].argmax()),
                "score": [] if gone[n] else [rounded(float(score)) for score in found.values[n]],
                "answer": answers[n],
                "measures": {"accuracy": float(hits[n])} if known else {},
            }
            for n, item in enumerate(items)
        ]
        kinds = [item.kind if isinstance(item, ClipChoiceItem) else "" for item in items]
        scores = (
            metrics.accuracy_scores(
                hits, kinds if any(kinds) else (), [item.media.id for item in items]
            )
            if known
            else {}
        )
        details = {"options": options, "chance": 100 / options, **found.cut}
        return EvalOutput(scores, rows, missing_of(split, found.missing), details)

    def passes(self) -> Passes:
        return [("joint", 1 + self.options.false_texts)]


def option_scores(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, options], the mean over views."""
    clips = batch.pixels.shape[1]
    if clips == 1:
        pairs = pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask)
    else:  # one text with several clips: each clip is an item of its own
        ids, mask = (
            x[:, :1].repeat_interleave(clips, 0) for x in (batch.text_ids, batch.text_mask)
        )
        pairs = pooled(model, batch.pixels.flatten(0, 1), ids, mask)[:, 0].unflatten(0, (-1, clips))
    return head_scores(model.task_head, pairs).squeeze(-1).mean(-1)


def _check_options(split: Split, options: ChoiceOptions) -> int:
    """The number of options, which must be the same for all items."""
    numbers = {_options_of(item, options) for item in split.items}
    if len(numbers) != 1:
        raise AnnotationError(
            f"split {split.name!r} has items of {sorted(numbers)} options; all must have the same"
            " number"
        )
    return numbers.pop()
