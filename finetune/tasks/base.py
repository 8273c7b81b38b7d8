"""What all tasks share.

Letters: B items, C clips, V views, T frames, K texts, L tokens, N items of a split, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from allinone.common.errors import ConfigError
from allinone.engine.objective import Losses
from allinone.finetune.annotations.schema import AnnotationError, Split
from allinone.finetune.cost import BackbonePasses
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.evaluation.results import EvalOutput, MissingItem
from allinone.finetune.inputs.batch import ExampleFn, TaskBatch
from allinone.finetune.task_model.model import HeadSpec, TaskModel
from allinone.finetune.task_model.source import SourceCheckpoint


class Task(ABC):
    """Turns items into examples, batches into losses, and a split into scores. It is sent to reader
    processes, so it holds no tensors."""

    name: ClassVar[str]
    selects: ClassVar[str] = "accuracy"
    """Score that selects the best weights in validation."""

    media: Path
    """The media folder."""
    image_size: int
    """Height and width of the model's input, pixels."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def setup(self, train: Split | None, source: SourceCheckpoint, *, eval_only: bool) -> None:  # noqa: B027 - most tasks need none
        """Derive what the head depends on, such as the answer vocabulary.

        Args:
            train: The training split; None if it is not available.
            source: The checkpoint that training or evaluation starts from.
            eval_only: Nothing will be trained.

        Raises:
            AnnotationError: The annotations do not provide it.
            ConfigError: Options, annotations and checkpoint contradict each other.
        """

    def trainable(self, split: Split) -> Split:
        """The training split, restricted to items that can be learned from."""
        return split

    @abstractmethod
    def head_spec(self, *, zero_shot: bool) -> HeadSpec:
        """What the task adds to the backbone. `zero_shot`: a pre-trained checkpoint is evaluated
        without training."""

    def check_zero_shot(self, source: SourceCheckpoint) -> None:
        """ConfigError if evaluating a checkpoint without this task's head, and without training,
        has no meaning."""
        raise ConfigError(
            f"--checkpoint {source.path} has no {self.name} head, and there is no zero-shot form of"
            " this task. Give a fine-tuned run, or leave out --eval-only to train one"
        )

    @abstractmethod
    def examples(self, split: Split) -> ExampleFn:
        """Items → examples, for training and, where the task has one form only, evaluation."""

    @abstractmethod
    def __call__(self, model: TaskModel, batch: TaskBatch) -> Losses:
        """The loss of a micro-batch (engine.objective.ObjectiveFn)."""

    @abstractmethod
    def evaluate(self, model: TaskModel, evaluator: Evaluator, split: Split) -> EvalOutput:
        """Scores and predictions of a split, equal on all ranks. Collective.

        Args:
            model: In evaluation mode during the call.
            evaluator: Reads items, distributes batches over ranks and caches them.
            split: The items.
        """

    def select(self, output: EvalOutput) -> float:
        """The number that selects the best weights in validation; higher is better."""
        return output.scores[self.selects].value

    def backbone_passes(self) -> BackbonePasses:
        """Backbone passes of one training item, from which FLOPs and memory are planned."""
        return [("joint", 1)]

    def labels(
        self, own: Sequence[str], source: SourceCheckpoint, *, eval_only: bool, what: str
    ) -> tuple[str, ...]:
        """The labels of the head: those of the training split, else the checkpoint's.

        Args:
            own: Labels of the training split; empty if it is not available.
            source: The checkpoint.
            eval_only: Nothing will be trained: the labels must be the checkpoint's, if it has any.
            what: Name of the labels, for messages.

        Raises:
            ConfigError: In evaluation, the two differ, if only in their order.
            AnnotationError: There are none.
        """
        saved = self.saved_labels(source)
        own = tuple(own) or saved
        if eval_only and saved and own != saved:
            raise ConfigError(_difference(saved, own, source, what))
        if not own:
            raise AnnotationError(
                f"the {what} are unknown: there is neither a training split nor a fine-tuned"
                " checkpoint"
            )
        return own

    def reference_labels(
        self, kind: str, train: Split | None, labels: Sequence[str], source: SourceCheckpoint
    ) -> tuple[str, ...]:
        """Name the classes of a head of the original code, whose files hold numbers only.

        Args:
            kind: Kind of the head; must be in `source.heads`.
            train: The training split.
            labels: Its labels in the order of the original's class numbers; empty if unknown.
            source: The checkpoint; its head gets the labels.

        Raises:
            AnnotationError: There are no labels.
            ConfigError: Their number is not that of the head's outputs.
        """
        head = source.heads[kind]
        if train is None or not labels:
            raise AnnotationError(
                f"--checkpoint {source.path} has a head {head.name} of {head.outputs:,} outputs,"
                " whose class numbers are stated by a list of the benchmark (such as"
                " train_ans2label.json, msvd_answer_set.txt, frameqa_trainval_ans2label.json);"
                " --annotations lacks it"
            )
        source.heads[kind] = head.named(labels, ", ".join(train.files))
        return tuple(labels)

    def saved_labels(self, source: SourceCheckpoint) -> tuple[str, ...]:
        """Labels of the checkpoint's head; empty if it was not fine-tuned for this task."""
        same = source.task.get("protocol") == self.name
        return tuple(source.task.get("labels", ())) if same else ()


def missing_items(split: Split, reasons: Mapping[int, str]) -> list[MissingItem]:
    """The items that could not be shown, from item number → reason."""
    return [
        MissingItem(split.items[number].id, split.items[number].media.id, reasons[number])
        for number in sorted(reasons)
    ]


def _difference(
    saved: Sequence[str], own: Sequence[str], source: SourceCheckpoint, what: str
) -> str:
    """Message: how the labels of the annotations differ from those of the checkpoint."""
    before, now = set(saved), set(own)
    removed = [label for label in saved if label not in now]
    added = [label for label in own if label not in before]
    changes = [
        f"{len(labels)} {change} ({', '.join(labels[:3])})"
        for change, labels in (("removed", removed), ("added", added))
        if labels
    ]
    return (
        f"the {what} have changed: {source.path} was trained with {len(saved):,} {what}, the"
        f" training annotations give {len(own):,}; {' and '.join(changes) or 'in another order'}."
        " Evaluate with the annotations and the options of the training, or train again"
    )
