"""Retrieval ordered anew by the joint pass: the first candidates of every text, or every pair.

Pairs are grouped by clip, so that each clip is decoded once and its pixels serve all its pairs;
passes are large and of one size; batches of clips are dealt to ranks and kept in the cache like any
other. Letters: Q texts, M media, P pairs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allinone.common.atomic_io import content_hash
from allinone.data.text import Tokenizer
from allinone.engine.distributed.watchdog import keepalive
from allinone.finetune.annotations.schema import RetrievalItem
from allinone.finetune.evaluation.evaluator import Evaluator
from allinone.finetune.inputs.batch import Example, TaskBatch, VisualInput
from allinone.finetune.tasks.base import head_scores
from allinone.finetune.tasks.prompts import encode, plain
from allinone.finetune.tasks.task_model import TaskModel

_ABOVE = 1e3
"""Shortlisted candidates stand above all others by this."""


@dataclass(frozen=True)
class Reranked:
    """Scores of all pairs, float64 [Q, M]: joint scores for the shortlisted, above the contrastive
    ones of the others."""

    by_text: np.ndarray
    """For text → media."""
    by_clip: np.ndarray
    """For media → text; the contrastive one where only texts had shortlists."""
    missing: dict[int, str]
    cost: dict[str, Any]


@dataclass(frozen=True)
class ClipExamples:
    """The clips whose pairs are scored."""

    items: Sequence[RetrievalItem]

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        return Example((VisualInput(self.items[number].media),), ())


def shortlist(similarity: np.ndarray, candidates: int) -> np.ndarray:
    """bool [Q, M]: the `candidates` best columns of every row; NaN columns never."""
    usable = np.where(np.isnan(similarity), -np.inf, similarity)
    order = np.argsort(-usable, axis=1, kind="stable")[:, :candidates]
    chosen = np.zeros(similarity.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen & np.isfinite(usable)


def rerank(
    model: TaskModel,
    evaluator: Evaluator,
    name: str,
    items: Sequence[RetrievalItem],
    texts: Sequence[str],
    similarity: np.ndarray | None,
    *,
    candidates: int,
    both_ways: bool = False,
    pair_batch: int = 256,
) -> Reranked:
    """Score the shortlisted pairs by the joint pass and model.task_head; all pairs where
    `candidates` covers them or there is no similarity."""
    begun, passed_s = time.perf_counter(), evaluator.seconds
    whole = similarity is None or candidates >= len(items)
    if whole or similarity is None:
        text_list = clip_list = np.ones((len(texts), len(items)), bool)
    else:
        text_list = shortlist(similarity, candidates)
        clip_list = shortlist(similarity.T, candidates).T if both_ways else np.zeros_like(text_list)
    wanted = text_list | clip_list
    pairs = [np.flatnonzero(wanted[:, m]) for m in range(len(items))]
    shown = [m for m in range(len(items)) if len(pairs[m])]
    scorer = _PairScorer(evaluator, texts, [pairs[m] for m in shown], pair_batch)
    part = [items[m] for m in shown]
    found = evaluator.run(
        scorer.stage, name, [item.id for item in part], ClipExamples(part), scorer
    )
    joint = np.full(wanted.shape, np.nan, np.float64)
    for row, m in enumerate(shown):
        joint[pairs[m], m] = found.values[row, : len(pairs[m])]
    missing = {shown[number]: reason for number, reason in found.missing.items()}
    scored = int(wanted.sum())
    cost = {
        "candidates": len(items) if whole else candidates,
        "pairs": scored,
        "all_pairs": wanted.size,
        "share": scored / wanted.size,
        "passes_of_rank_0": scorer.passed,
        "seconds": time.perf_counter() - begun,
        "seconds_in_passes": evaluator.seconds - passed_s,
    }
    by_clip = (
        similarity
        if not whole and not both_ways and similarity is not None
        else _merged(joint, clip_list, similarity)
    )
    return Reranked(_merged(joint, text_list, similarity), by_clip, missing, cost)


def _merged(joint: np.ndarray, chosen: np.ndarray, similarity: np.ndarray | None) -> np.ndarray:
    if similarity is None or chosen.all():
        return joint
    lowest = np.nanmin(joint) if np.isfinite(joint).any() else 0.0
    return np.where(chosen, joint - lowest + _ABOVE, similarity.astype(np.float64))


class _PairScorer:
    """Joint scores of the pairs of a batch of clips, [n, most pairs of a clip]; NaN behind a clip's
    last pair."""

    def __init__(
        self,
        evaluator: Evaluator,
        texts: Sequence[str],
        pairs: Sequence[np.ndarray],
        pair_batch: int,
    ) -> None:
        tokenizer, length = Tokenizer(), evaluator.settings.clip.max_text_len
        encoded = [encode(tokenizer, plain(text), length) for text in texts]
        self._ids, self._mask = (
            torch.from_numpy(np.stack([getattr(one, part) for one in encoded])).to(evaluator.device)
            for part in ("ids", "mask")
        )
        self._pairs, self._size = pairs, pair_batch
        self._columns = max(map(len, pairs), default=0)
        self._equal_rounds = (
            -(-evaluator.settings.batch * self._columns // pair_batch)
            if evaluator.collective
            else 0
        )
        content = content_hash(repr([list(texts), [pair.tolist() for pair in pairs]]).encode())
        self.stage = f"pairs-{content}"
        self.passed = 0
        """Joint passes of this rank."""

    def __call__(self, model: TaskModel, batch: TaskBatch) -> Tensor:
        own = [self._pairs[number] for number in batch.items]
        rows = np.repeat(np.arange(len(own)), [len(pair) for pair in own])
        columns = np.concatenate([np.arange(len(pair)) for pair in own])
        texts = np.concatenate(own)
        values = torch.full((len(own), self._columns), float("nan"))
        clip, text = (torch.from_numpy(x).to(batch.pixels.device) for x in (rows, texts))
        scores = []
        rounds = max(-(-len(rows) // self._size), self._equal_rounds)
        for start in range(0, rounds * self._size, self._size):
            keepalive()
            part = slice(start, start + self._size)
            if start >= len(rows):  # under ZeRO 3 all ranks pass equally often
                self._score(model, batch.pixels[:1, 0], self._ids[:1], self._mask[:1])
                continue
            pixels = batch.pixels[:, 0].index_select(0, clip[part])
            scores.append(
                self._score(
                    model,
                    pixels,
                    self._ids.index_select(0, text[part]),
                    self._mask.index_select(0, text[part]),
                )
            )
        values[torch.from_numpy(rows), torch.from_numpy(columns)] = torch.cat(scores).cpu()
        self.passed += len(rows) * batch.pixels.shape[2]
        return values

    def _score(self, model: TaskModel, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """[P] of clips [P, V, T, 3, S, S] with texts [P, L], the mean over views."""
        by_view = [
            head_scores(model.task_head, model(pixels[:, v], ids, mask).pooled).squeeze(-1)
            for v in range(pixels.shape[1])
        ]
        return torch.stack(by_view).mean(0)
