"""What every protocol has. Letters: B items, C clips, V views, T frames, K texts, L tokens, N items
of a split, W width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from allinone.common.errors import ConfigError
from allinone.engine.objective import Losses
from allinone.finetune.annotations.schema import Split
from allinone.finetune.cost import Passes
from allinone.finetune.evaluation.results import Missing, Score
from allinone.finetune.inputs.batch import Maker, TaskBatch
from allinone.finetune.tasks.task_model import HeadPlan, SourceCheckpoint, TaskModel

if TYPE_CHECKING:
    from allinone.finetune.evaluation.evaluator import Evaluator


@dataclass(frozen=True)
class TaskOptions:
    """Options of a protocol."""


@dataclass(frozen=True)
class EvalOutput:
    """One evaluation of one split."""

    scores: Mapping[str, Score]
    """By the fixed names of finetune.metrics, the headline first."""
    rows: Sequence[Mapping[str, Any]]
    """Predictions, see results.write_predictions."""
    missing: Sequence[Missing] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """A task: from items to examples, from batches to losses and scores. Sent to reader processes,
    so it holds no tensors."""

    name: ClassVar[str]
    selects: ClassVar[str] = "accuracy"
    """Name of the score that the validation chooses the best weights by."""

    media: Path
    """The media folder."""
    image_size: int
    """Side of the pictures that the model sees, pixels."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def learn(self, train: Split | None, origin: SourceCheckpoint, *, eval_only: bool) -> None:  # noqa: B027 - most have nothing to learn
        """Take from the training split what the head depends on, such as an answer vocabulary;
        AnnotationError, ConfigError."""

    def usable(self, split: Split) -> Split:
        """The training split without items that nothing can be learned from."""
        return split

    @abstractmethod
    def plan(self, *, zero_shot: bool) -> HeadPlan:
        """What the task adds to the backbone; `zero_shot`: a pre-trained checkpoint is evaluated as
        it is."""

    def check_zero_shot(self, origin: SourceCheckpoint) -> None:
        """ConfigError where an evaluation without training, of a checkpoint without this task's
        head, has no meaning."""
        raise ConfigError(
            f"--checkpoint {origin.path} has no {self.name} head: there is no zero-shot form of"
            " this task. Give a fine-tuned run, or leave out --eval-only to train one"
        )

    @abstractmethod
    def train_examples(self, split: Split) -> Maker:
        """Items of the training split → examples."""

    @abstractmethod
    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        """The loss of a micro-batch (engine.objective.Objective)."""

    @abstractmethod
    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        """Scores and predictions of a split, equal on all ranks."""

    def select(self, outcome: EvalOutput) -> float:
        """What the validation chooses the best weights by, the higher the better."""
        return outcome.scores[self.selects].value

    def passes(self) -> Passes:
        """Part of the backbone and clips of a training item that run through it at once, in the
        order of the forward pass: for the plan of FLOPs and memory (finetune/cost.py)."""
        return [("joint", 1)]


def pooled(model: TaskModel, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Joint pass of every text with every view: pixels [B, V, T, 3, S, S] and ids [B, K, L] → class
    tokens [B, K, V, W]."""
    items, views, texts = pixels.shape[0], pixels.shape[1], ids.shape[1]
    shown = pixels[:, None].expand(-1, texts, *pixels.shape[1:]).flatten(0, 2)
    read, real = (x[:, :, None].expand(-1, -1, views, -1).flatten(0, 2) for x in (ids, mask))
    return model(shown, read, real).pooled.unflatten(0, (items, texts, views))


def head_scores(head: nn.Module, features: Tensor) -> Tensor:
    """float32 output of a head in the head's own precision. Evaluation keeps heads in float32
    (`Job.evaluate`): in bf16, with its 8 bits, options and candidates tie that the model tells
    apart."""
    return head(features.to(next(head.parameters()).dtype)).float()


def missing_of(split: Split, reasons: Mapping[int, str]) -> list[Missing]:
    """The items that could not be shown, by number → reason."""
    return [
        Missing(split.items[number].id, split.items[number].media.id, reasons[number])
        for number in sorted(reasons)
    ]


def rounded(value: float) -> float:
    """A score as predictions show it: six significant digits."""
    return float(f"{value:.6g}")
