"""Held-out evaluation of pre-training: retrieval by contrastive embeddings, MLM and VTM accuracy.

Letters: N items, D projection width, B clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from allinone.common.retrieval_metrics import chance_metrics, retrieval_metrics
from allinone.data import EvalSet
from allinone.data.config import DatasetSpec
from allinone.data.loading.batch import BadClip, Batch
from allinone.engine.distributed import topology
from allinone.engine.distributed.watchdog import keepalive
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.objectives.base import Objective
from allinone.pretrain.objectives.registry import OBJECTIVES


@dataclass
class EvaluationOutput:
    """Results on the items of an evaluation set, in the order of their names, on the CPU."""

    items: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    embedded: dict[str, Tensor] = field(default_factory=dict)
    """What the objectives embed: with VTC, "text" and "video", float32 [N, D] of unit length."""
    bad: list[BadClip] = field(default_factory=list)
    """Items that could not be decoded; they are not in `items`."""
    correct: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Objective → (correct predictions, predictions)."""

    def accuracy(self, objective: str) -> float:
        """Percent of an objective's predictions that are correct."""
        correct, total = self.correct[objective]
        return 100 * correct / max(total, 1)

    def similarity(self) -> Tensor:
        """Cosine similarity, float32 [N texts, N clips]."""
        return self.embedded["text"] @ self.embedded["video"].T

    def retrieval_table(self) -> dict[str, dict[str, float]]:
        """R@1/5/10 in percent and median rank, both directions, and the expectation at chance."""
        similarity = self.similarity()
        return {
            "text_to_video": retrieval_metrics(similarity),
            "video_to_text": retrieval_metrics(similarity.T),
            "chance": chance_metrics(len(self.items)),
        }


def set_name(spec: DatasetSpec) -> str:
    """What scores in the log, in history.jsonl and in TensorBoard call a validation set."""
    return f"{spec.path.name}_{spec.split}"


def chance_scores(
    objective: Objective, metrics: Mapping[str, float], items: int
) -> dict[str, float]:
    """What guessing gives, by metric: of retrieval among `items`, and of an accuracy if known.

    Args:
        objective: The objective that is evaluated.
        metrics: Its `evaluation_metrics`.
        items: Items of the evaluation set.
    """
    table = chance_metrics(items)
    found = {name: table[name.rpartition("_")[2]] for name in metrics if "_to_" in name}
    if objective.chance is not None:
        found |= {name: 100 * objective.chance for name in metrics if name.endswith("_accuracy")}
    return found


@torch.inference_mode()
def evaluate(
    model: AllInOneForPreTraining,
    dataset: EvalSet,
    device: torch.device,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    objectives: Sequence[Objective] = OBJECTIVES,
) -> EvaluationOutput:
    """Evaluate every item once, shared among the data ranks; every rank gets the result.

    Args:
        model: In eval mode during the call; its mode is restored.
        dataset: Items to evaluate.
        device: Where the model is.
        batch_size: Clips per forward pass.
        limit: Evaluate at most this many items; None or 0 evaluates all.
        objectives: Objectives to evaluate; all by default.

    Returns:
        The results. Items that cannot be decoded are listed in `bad`.

    Raises:
        ValueError: No item could be decoded.
    """
    layout = topology.current()
    rank, world = layout.data_rank, layout.data_world
    items = min(len(dataset), limit or len(dataset))
    # the same number of forward passes on every rank, that of the rank with most items
    rounds = math.ceil(math.ceil(items / world) / batch_size)
    # evaluation may run in the middle of training
    training = model.training
    model.eval()
    try:
        computed = [
            _evaluate_batch(model, batch, objectives, real)
            for batch, real in _rounds(dataset, rank, world, batch_size, device, rounds, items)
        ]
    finally:
        model.train(training)
    shares: list[dict[str, Any]] = [share for share in computed if share is not None]
    if world > 1:
        gathered: list[Any] = [None] * world
        dist.all_gather_object(gathered, shares, group=layout.data_group)
        shares = [share for part in gathered for share in part]
    return _collect(shares)


def _rounds(
    dataset: EvalSet,
    rank: int,
    world: int,
    batch_size: int,
    device: torch.device,
    rounds: int,
    items: int,
) -> Iterator[tuple[Batch, bool]]:
    """Yield exactly `rounds` batches on every rank, and whether each is to be recorded.

    Every forward pass is collective with ZeRO-3, so a rank that has run out of items repeats one.
    """
    batches = dataset.batches(
        rank=rank, world=world, batch_size=batch_size, device=device, limit=items
    )
    last: Batch | None = None
    for _ in range(rounds):
        batch = next(batches, None)
        if batch is None and last is None:
            last = next(dataset.batches(rank=0, world=1, batch_size=1, device=device))
        last = batch or last
        assert last is not None
        yield last, batch is not None
        # a long evaluation is not a hang
        keepalive()


def _evaluate_batch(
    model: AllInOneForPreTraining, batch: Batch, objectives: Sequence[Objective], real: bool
) -> dict[str, Any] | None:
    """All forward passes on one batch; None for a repeated one."""
    embedded: dict[str, Tensor] = {}
    correct: dict[str, tuple[Tensor, int]] = {}
    for objective in objectives:
        embedded |= objective.embed(model, batch)
        counts = objective.count_correct(model, batch)
        if counts is not None:
            correct[objective.name] = counts
    if not real:
        return None
    return {
        "items": list(batch.clips),
        "captions": list(batch.captions),
        "bad": list(batch.bad),
        "embedded": {name: tensor.cpu() for name, tensor in embedded.items()},
        # read from the device after all passes have been queued
        "correct": {name: (float(right), float(total)) for name, (right, total) in correct.items()},
    }


def _collect(shares: list[dict[str, Any]]) -> EvaluationOutput:
    """Join the shares in the order of item names, so that results do not depend on the ranks."""
    names = [name for share in shares for name in share["items"]]
    order = sorted(range(len(names)), key=names.__getitem__)
    captions = [caption for share in shares for caption in share["captions"]]
    if not names:
        raise ValueError(
            "no item of the evaluation set could be decoded; run tools/prepare.py on it again"
        )
    correct = {
        name: (
            sum(share["correct"][name][0] for share in shares),
            sum(share["correct"][name][1] for share in shares),
        )
        for name in shares[0]["correct"]
    }
    embedded = {
        name: torch.cat([share["embedded"][name] for share in shares])[order]
        for name in shares[0]["embedded"]
    }
    return EvaluationOutput(
        items=[names[i] for i in order],
        captions=[captions[i] for i in order],
        bad=[clip for share in shares for clip in share["bad"]],
        correct=correct,
        embedded=embedded,
    )
