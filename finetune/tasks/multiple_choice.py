"""Multiple choice: one clip with several texts (TGIF action and transition, TVQA, MSR-VTT, LSMDC),
or one text with several clips (EgoMCQ).

Sample: a clip and K texts, one joint pass each; the options are shuffled in training. Head: the
rank head, initialised from the VTM head, or C → 256 → 1. Loss: cross-entropy over the options.
Score: accuracy. Zero-shot, the VTM head scores the options, by its match logit and by its log-odds.
Letters: B items, C clips, K texts, V views, N items of a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
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
from allinone.finetune.cost import BackbonePasses
from allinone.finetune.evaluation import metrics, summaries
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.evaluation.results import EvalOutput, rounded
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.inputs.prompts import option, plain
from allinone.finetune.task_model.heads import (
    copy_matching,
    from_matching,
    head_scores,
    option_head,
    pooled,
    rank_head,
)
from allinone.finetune.task_model.model import HeadSpec, TaskModel
from allinone.finetune.task_model.source import SourceCheckpoint
from allinone.finetune.tasks.base import Task, missing_items
from allinone.finetune.tasks.options import ChoiceOptions
from allinone.finetune.tasks.retrieval import other_captions

ZERO_SHOT = "match"
"""Kind of the head of a zero-shot evaluation: the VTM head."""
ZERO_SHOT_SCORES = ("match", "log-odds")
"""Values of `ChoiceOptions.zero_shot_score`."""


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
        # evaluation keeps the order of the file: predictions are option numbers
        order = list(range(len(item.choices)))
        if random is not None:
            # some training files always put the correct option in the same place (LSMDC)
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
        """The item's caption among captions of others; in evaluation always the same ones."""
        # keyed by the item's number: the options do not depend on batches, ranks or workers
        drawn = random if random is not None else generator(0, "options", 0, number)
        captions = [other for other in self.items if isinstance(other, RetrievalItem)]
        own = item.captions[int(drawn.integers(len(item.captions)))]
        others = other_captions(captions, number, self.options.false_texts, drawn)
        return ChoiceItem(item.id, item.media, "", (own, *others), 0)


def _label(answer: int | None) -> int:
    return -1 if answer is None else answer


def _option_count(item: Item, options: ChoiceOptions) -> int:
    if isinstance(item, ClipChoiceItem):
        return len(item.clips)
    return len(item.choices) if isinstance(item, ChoiceItem) else 1 + options.false_texts


def _answer(item: Item) -> int | None:
    """Number of the correct option; the first where it is made of captions."""
    return item.answer if isinstance(item, (ChoiceItem, ClipChoiceItem)) else 0


class MultipleChoice(Task):
    """Scores each option by a joint pass and takes the best."""

    name = "multiple_choice"
    options: ChoiceOptions

    def trainable(self, split: Split) -> Split:
        """The split; AnnotationError if it hides its answers."""
        _check_options(split, self.options)
        if any(_answer(item) is None for item in split.items):
            raise AnnotationError(
                f"split {split.name!r} hides its answers: it cannot be trained on"
            )
        return split

    def head_spec(self, *, zero_shot: bool) -> HeadSpec:
        if zero_shot:
            return HeadSpec(
                lambda config: nn.Linear(config.hidden_size, 2),
                copy_matching,
                metadata={"protocol": self.name, "kind": ZERO_SHOT},
            )
        ranks = self.options.head == "rank"
        make = rank_head if ranks else option_head
        return HeadSpec(
            lambda config: make(config.hidden_size),
            from_matching if ranks else None,
            metadata={"protocol": self.name, "kind": "rank" if ranks else "option"},
        )

    def check_zero_shot(self, source: SourceCheckpoint) -> None:
        """A pre-trained VTM head scores options; the head of another task does not."""
        if source.task:
            raise ConfigError(
                f"--checkpoint {source.path} was fine-tuned for {source.task.get('protocol')} with"
                f" another head; give one that was trained for {self.name}, or a pre-trained model"
            )

    def examples(self, split: Split) -> ChoiceExamples:
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
        ids = [item.id for item in items]
        zero_shot = model.config.task["kind"] == ZERO_SHOT
        score = zero_shot_scores if zero_shot else option_scores
        found = evaluator.run("options", split.name, ids, self.examples(split), score)
        missing = np.isin(np.arange(len(items)), list(found.missing))
        answers = [_answer(item) for item in items]
        known = all(answer is not None for answer in answers)
        scored = self._scored(found.values, zero_shot=zero_shot)
        # a hidden answer counts as option 0 here; its hit is not reported
        numbers = [answer or 0 for answer in answers]
        hits = {name: metrics.option_hits(way, numbers, missing) for name, way in scored.items()}
        values = scored["accuracy"]
        rows = [
            {
                "id": item.id,
                "media": item.media.id,
                # float32 ties go to the first option here, and count half in the hit
                "prediction": None if missing[n] else int(values[n].argmax()),
                "score": [] if missing[n] else [rounded(float(x)) for x in values[n]],
                "answer": answers[n],
                "measures": {name: float(hit[n]) for name, hit in hits.items()} if known else {},
            }
            for n, item in enumerate(items)
        ]
        scores = {}
        if known:
            kinds = [
                item.kind if isinstance(item, (ChoiceItem, ClipChoiceItem)) else ""
                for item in items
            ]
            media = [item.media.id for item in items]
            scores = summaries.accuracy_scores(
                hits.pop("accuracy"), kinds if any(kinds) else (), media
            )
            for name, hit in hits.items():
                scores[name] = summaries.accuracy_scores(hit, media=media)["accuracy"]
        details = {"options": options, "chance": 100 / options, **found.cut}
        return EvalOutput(scores, rows, missing_items(split, found.missing), details)

    def _scored(self, values: np.ndarray, *, zero_shot: bool) -> dict[str, np.ndarray]:
        """Name of an accuracy → the scores [N, K] that it is of; the chosen ones first."""
        if not zero_shot:
            return {"accuracy": values}
        both = dict(zip(ZERO_SHOT_SCORES, values.swapaxes(0, 1), strict=True))
        named = {f"accuracy_{way.replace('-', '_')}": scores for way, scores in both.items()}
        return {"accuracy": both[self.options.zero_shot_score], **named}

    def backbone_passes(self) -> BackbonePasses:
        # one pass per text: five options cost five joint passes of the repeated clip
        return [("joint", 1 + self.options.false_texts)]


def option_scores(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, options], the mean over views."""
    return _head_outputs(model, batch).squeeze(-1)


def zero_shot_scores(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, 2, options] of a VTM head, in the order of ZERO_SHOT_SCORES."""
    no_match, match = _head_outputs(model, batch).unbind(-1)
    # of a softmax over the two rows, the log-odds are the logarithm of p / (1 - p)
    return torch.stack([match, match - no_match], 1)


def _head_outputs(model: TaskModel, batch: TaskBatch) -> Tensor:
    """float32 [B, options, outputs of the head], the mean over views."""
    clips, lengths = batch.pixels.shape[1], batch.text_lengths
    if clips == 1:
        pairs = pooled(model, batch.pixels[:, 0], batch.text_ids, batch.text_mask, lengths)
    else:  # one text with several clips: pass each clip as an item
        # the text is the same for all clips: five passes per question of EgoMCQ
        ids = batch.text_ids[:, :1].repeat_interleave(clips, 0)
        mask = batch.text_mask[:, :1].repeat_interleave(clips, 0)
        if lengths is not None:
            lengths = lengths[:, :1].repeat_interleave(clips, 0)
        pairs = pooled(model, batch.pixels.flatten(0, 1), ids, mask, lengths)[:, 0]
        pairs = pairs.unflatten(0, (-1, clips))
    return head_scores(model.task_head, pairs).mean(2)


def _check_options(split: Split, options: ChoiceOptions) -> int:
    """The number of options; AnnotationError if items differ in it."""
    numbers = {_option_count(item, options) for item in split.items}
    if len(numbers) != 1:
        raise AnnotationError(
            f"split {split.name!r} has items of {sorted(numbers)} options; all must have the same"
            " number"
        )
    return numbers.pop()
