"""Re-ranks retrieval with the joint pass: the first candidates of every text, or every pair.

Pairs are grouped by clip, so that each clip is decoded once for all its pairs. Joint passes are
large and have one size. Batches of clips are distributed over ranks and cached like any other.
Letters: Q texts, M media, P pairs.
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
from allinone.finetune.inputs.prompts import encode, plain
from allinone.finetune.task_model.heads import head_scores
from allinone.finetune.task_model.model import TaskModel

_MARGIN = 1e3
"""Added to the scores of shortlisted candidates, so that they rank above all others."""


@dataclass(frozen=True)
class RerankedScores:
    """Scores of all pairs, float64 [Q, M].

    Shortlisted pairs have joint scores, which are above the contrastive scores of the rest.
    """

    by_text: np.ndarray
    """For text → media."""
    by_clip: np.ndarray
    """For media → text; contrastive if only texts had shortlists."""
    missing: dict[int, str]
    """Number of a media item that could not be shown → reason."""
    cost: dict[str, Any]
    """Pairs, passes and seconds, for the details of the result."""


@dataclass(frozen=True)
class MediaExamples:
    """RetrievalItem → its clip alone."""

    items: Sequence[RetrievalItem]

    def __call__(self, number: int, random: np.random.Generator | None) -> Example:
        return Example((VisualInput(self.items[number].media),), ())


def shortlist(similarity: np.ndarray, candidates: int) -> np.ndarray:
    """bool [Q, M]: the `candidates` highest columns of every row, never NaN."""
    usable = np.where(np.isnan(similarity), -np.inf, similarity)
    # stable: ties at the end of a shortlist are cut in the same way in every run
    order = np.argsort(-usable, axis=1, kind="stable")[:, :candidates]
    chosen = np.zeros(similarity.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen & np.isfinite(usable)


def rerank(
    evaluator: Evaluator,
    name: str,
    items: Sequence[RetrievalItem],
    texts: Sequence[str],
    similarity: np.ndarray | None,
    *,
    candidates: int,
    both_ways: bool = False,
    pair_batch: int = 256,
) -> RerankedScores:
    """Score shortlisted pairs by the joint pass and the task head of the evaluator's model.

    Collective.

    Args:
        evaluator: Reads clips and distributes batches.
        name: Name of the split.
        items: M media items.
        texts: Q texts.
        similarity: Contrastive scores [Q, M]; None: all pairs are scored.
        candidates: Length of each shortlist; M or more scores all pairs.
        both_ways: Also score the shortlist of each clip's texts.
        pair_batch: Pairs per joint pass.
    """
    start, passes_s = time.perf_counter(), evaluator.seconds
    if candidates >= len(items):
        similarity = None  # every pair gets a joint score
    if similarity is None:
        candidates = len(items)
        text_list = clip_list = np.ones((len(texts), len(items)), bool)
    else:
        text_list = shortlist(similarity, candidates)
        clip_list = shortlist(similarity.T, candidates).T if both_ways else np.zeros_like(text_list)
    wanted = text_list | clip_list
    # by clip: a clip is decoded once for all its texts
    pairs = [np.flatnonzero(wanted[:, m]) for m in range(len(items))]
    shown = [m for m in range(len(items)) if len(pairs[m])]
    scorer = _PairScorer(evaluator, texts, [pairs[m] for m in shown], pair_batch)
    part = [items[m] for m in shown]
    ids = [item.id for item in part]
    found = evaluator.run(scorer.stage, name, ids, MediaExamples(part), scorer)
    joint = np.full(wanted.shape, np.nan, np.float64)
    for row, m in enumerate(shown):
        joint[pairs[m], m] = found.values[row, : len(pairs[m])]
    missing = {shown[number]: reason for number, reason in found.missing.items()}
    scored = int(wanted.sum())
    cost = {
        "candidates": candidates,
        "pairs": scored,
        "all_pairs": wanted.size,
        "share": scored / wanted.size,
        "passes_of_rank_0": scorer.passed,
        "seconds": time.perf_counter() - start,
        "seconds_in_passes": evaluator.seconds - passes_s,
    }
    by_text = _merged(joint, text_list, similarity)
    if similarity is not None and not both_ways:
        return RerankedScores(by_text, similarity, missing, cost)
    return RerankedScores(by_text, _merged(joint, clip_list, similarity), missing, cost)


def _merged(joint: np.ndarray, chosen: np.ndarray, similarity: np.ndarray | None) -> np.ndarray:
    """Joint scores of the chosen pairs, shifted above the contrastive scores of the rest."""
    if similarity is None or chosen.all():
        return joint
    # one shift for all pairs keeps the order of joint scores across texts and clips
    lowest = np.nanmin(joint) if np.isfinite(joint).any() else 0.0
    return np.where(chosen, joint - lowest + _MARGIN, similarity.astype(np.float64))


class _PairScorer:
    """Joint scores of the pairs of a batch of clips, [n, most pairs of any clip].

    Rows of clips with fewer pairs are padded with NaN.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        texts: Sequence[str],
        pairs: Sequence[np.ndarray],
        pair_batch: int,
    ) -> None:
        tokenizer, length = Tokenizer(), evaluator.settings.clip.max_text_len
        encoded = [encode(tokenizer, plain(text), length) for text in texts]
        ids = torch.from_numpy(np.stack([text.ids for text in encoded]))
        mask = torch.from_numpy(np.stack([text.mask for text in encoded]))
        packed = evaluator.settings.data.text_padding == "packed"
        self._lengths = mask.sum(1) if packed else None  # on the CPU
        self._ids = ids.to(evaluator.device)
        self._mask = mask.to(evaluator.device)
        self._pairs = pairs
        self._size = pair_batch
        self._columns = max(map(len, pairs), default=0)
        self._min_rounds = 0
        if evaluator.collective:  # under ZeRO 3 all ranks must make the same number of passes
            self._min_rounds = -(-evaluator.settings.batch * self._columns // pair_batch)
        # part of the cache key: other texts or shortlists must not reuse cached scores
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
        rounds = max(-(-len(rows) // self._size), self._min_rounds)
        for start in range(0, rounds * self._size, self._size):
            keepalive()
            part = slice(start, start + self._size)
            if start >= len(rows):  # a pass that only keeps ranks in step
                self._score(model, batch.pixels[:1, 0], text[:1], texts[:1])
                continue
            pixels = batch.pixels[:, 0].index_select(0, clip[part])
            scores.append(self._score(model, pixels, text[part], texts[part]))
        values[torch.from_numpy(rows), torch.from_numpy(columns)] = torch.cat(scores).cpu()
        self.passed += len(rows) * batch.pixels.shape[2]
        return values

    def _score(self, model: TaskModel, pixels: Tensor, texts: Tensor, host: np.ndarray) -> Tensor:
        """Scores [P] of pairs, the mean over views.

        Args:
            model: The model.
            pixels: Clips, [P, V, T, 3, S, S].
            texts: Numbers of their texts, int64 [P], on the device.
            host: The same on the host.
        """
        ids, mask = (x.index_select(0, texts) for x in (self._ids, self._mask))
        lengths = None if self._lengths is None else self._lengths[torch.from_numpy(host)]
        # view by view: all views at once would multiply the memory of a pass
        by_view = [
            head_scores(
                model.task_head,
                model(pixels[:, v], ids, mask, read="pooled", text_lengths=lengths).pooled,
            ).squeeze(-1)
            for v in range(pixels.shape[1])
        ]
        return torch.stack(by_view).mean(0)
