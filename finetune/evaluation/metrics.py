"""Metrics of all tasks, one value per item; evaluation/summaries.py summarises them with intervals.

Per-item values are float64 arrays [N], hits in 0..1. Rules:

- Ties: equal scores count as a random order, and an item's value is the expectation over all orders
  (the correct option tied with one other: 0.5).
- Scores must be float32 or float64. Half precision creates ties that the model does not have, and
  is refused, as is NaN.
- A missing item (media that cannot be decoded) is wrong: hit 0, rank = number of candidates.

Letters: N items, K options, C classes, Q texts, M media.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from allinone.common.retrieval_metrics import rank_counts
from allinone.finetune.annotations.vqav2_text import accuracy as vqa_accuracy
from allinone.finetune.evaluation.bootstrap import Array

RECALLS = (1, 5, 10, 50)
"""K of R@K."""
TOPS = (1, 5, 10)
"""K of top-K accuracy."""


def _scores(name: str, values: Array | Tensor, ndim: int, ignored: Array | None = None) -> Array:
    """Check scores and return them as an array on the CPU.

    Args:
        name: For messages.
        values: The scores.
        ndim: Number of dimensions that they must have.
        ignored: bool, broadcast to the scores: where NaN is allowed.

    Raises:
        ValueError: Another shape, half precision, or NaN elsewhere.
    """
    # by name: dtypes of numpy and torch are different types
    kind = str(values.dtype).removeprefix("torch.")
    if kind not in ("float32", "float64"):
        raise ValueError(
            f"{name} are {kind}; scores must be float32: half precision makes ties. Call .float()"
            " on the embeddings or features that they are computed from; converting the scores"
            " themselves is too late"
        )
    array: Array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    if array.ndim != ndim:
        raise ValueError(f"{name} need {ndim} dimensions, got the shape {list(array.shape)}")
    nan = np.isnan(array)
    if ignored is not None:
        nan &= ~ignored
    if nan.any():
        rows = np.unique(np.nonzero(nan)[0])
        raise ValueError(
            f"{name} hold NaN in {len(rows)} of {len(array)} rows, first in row {rows[0]}: the"
            " weights or the inputs are broken"
        )
    return array


def _numbers(name: str, values: Array | Tensor | Sequence[int], size: int, below: int) -> Array:
    """Class numbers as int64 [size]; ValueError if one is outside 0..below-1."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape != (size,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be {size} integers, one per row of the scores; got {array.dtype}"
            f" {list(array.shape)}"
        )
    wrong = np.nonzero((array < 0) | (array >= below))[0]
    if len(wrong):
        raise ValueError(
            f"{name}[{wrong[0]}] is {array[wrong[0]]}, outside 0..{below - 1} ({len(wrong)} such"
            " rows)"
        )
    return array.astype(np.int64)


def _mask(missing: Array | Tensor | Sequence[bool] | None, size: int) -> Array:
    """`missing` as bool [size]; None: no item is missing."""
    if missing is None:
        return np.zeros(size, bool)
    array = missing.detach().cpu().numpy() if isinstance(missing, Tensor) else np.asarray(missing)
    if array.shape != (size,) or array.dtype != np.bool_:
        raise ValueError(f"`missing` must be {size} bools, got {array.dtype} {list(array.shape)}")
    return array


def topk_hits(
    scores: Array | Tensor,
    labels: Array | Tensor | Sequence[int],
    k: int,
    missing: Array | Sequence[bool] | None = None,
) -> Array:
    """Top-k accuracy per item.

    Args:
        scores: [N, C]. -inf marks a class that an item does not have (fewer options); it is never a
            hit.
        labels: The correct class of each item.
        k: The label must be among the k highest scores.
        missing: bool [N]; scores of missing items are ignored.

    Returns:
        float64 [N], the expectation over the orders of tied classes.
    """
    gone = _mask(missing, len(scores))
    kept = _scores("scores", scores, 2, gone[:, None])
    right = _numbers("labels", labels, len(kept), kept.shape[1])
    own = np.take_along_axis(kept, right[:, None], 1)
    # level is 0 for a missing item, because NaN equals nothing: hence the maximum below
    above, level = (kept > own).sum(1), (kept == own).sum(1)
    # `level` tied classes share the places after `above`; k - above of these places are hits.
    hits = np.clip((k - above) / np.maximum(level, 1), 0.0, 1.0)
    # a label without a score is not a hit, even if all scores are -inf
    return np.where(gone | np.isneginf(own[:, 0]), 0.0, hits)


def option_hits(
    scores: Array | Tensor,
    answers: Array | Tensor | Sequence[int],
    missing: Array | Sequence[bool] | None = None,
) -> Array:
    """Accuracy of multiple choice per item.

    Args:
        scores: [N, K].
        answers: The correct option of each item.
        missing: bool [N]; scores of missing items are ignored.

    Returns:
        float64 [N]: 1 if the correct option has the highest score, 1/m if it shares it with m - 1
        others, else 0.
    """
    return topk_hits(scores, answers, 1, missing)


@dataclass(frozen=True)
class OpenEnded:
    """Open-ended answers, per item."""

    hits: Array
    """float64 [N]"""
    answerable: Array
    """bool [N], whether a correct answer is in the vocabulary. By convention, a question without
    one stays in the denominator and counts as wrong."""


def open_ended(
    predicted: Sequence[str | None], answers: Sequence[Sequence[str]], vocabulary: Collection[str]
) -> OpenEnded:
    """Exact match of predictions with answers, as spelled in the annotation files.

    Args:
        predicted: One answer per item; None for a missing item.
        answers: The correct answers of each item.
        vocabulary: All answers that the model can give.

    Raises:
        ValueError: A prediction is not in the vocabulary, or the lengths differ.
    """
    _same_length(predicted, answers)
    # a set: 72,821 questions of MSR-VTT-QA against 1,500 answers
    known = frozenset(vocabulary)
    foreign = next((text for text in predicted if text is not None and text not in known), None)
    if foreign is not None:
        raise ValueError(
            f"the prediction {foreign!r} is not in the vocabulary of {len(known)} answers: it"
            " belongs to another checkpoint"
        )
    hits = np.array(
        [
            float(text is not None and text in right)
            for text, right in zip(predicted, answers, strict=True)
        ]
    )
    return OpenEnded(hits, np.array([not known.isdisjoint(right) for right in answers], dtype=bool))


def vqa_soft(predicted: Sequence[str | None], answers: Sequence[Sequence[str]]) -> Array:
    """VQAv2's official accuracy per question (`vqav2_text.accuracy`), float64 [N] in 0..1."""
    _same_length(predicted, answers)
    return np.array(
        [
            # no answer was given for missing media: wrong, but in the denominator
            0.0 if text is None else vqa_accuracy(text, right)
            for text, right in zip(predicted, answers, strict=True)
        ]
    )


def _same_length(predicted: Sequence[object], answers: Sequence[object]) -> None:
    if len(predicted) != len(answers):
        raise ValueError(f"{len(predicted)} predictions for {len(answers)} questions")


@dataclass(frozen=True)
class VCRScores:
    """VCR's three scores per item, float64 [N] each."""

    q2a: Array
    """Q→A: the answer."""
    qa2r: Array
    """QA→R: the rationale, given the correct answer."""
    q2ar: Array
    """Q→AR: both for the same item, not the product of the averages."""


def vcr(
    answer_scores: Array | Tensor,
    rationale_scores: Array | Tensor,
    answers: Array | Tensor | Sequence[int],
    rationales: Array | Tensor | Sequence[int],
    missing: Array | Sequence[bool] | None = None,
) -> VCRScores:
    """VCR accuracy per item.

    Args:
        answer_scores: [N, 4].
        rationale_scores: [N, 4, 4]; [n, a] holds the scores of the four rationales given answer a.
        answers: Correct answers [N].
        rationales: Correct rationales [N].
        missing: bool [N].
    """
    q2a = option_hits(answer_scores, answers, missing)
    conditioned = _scores(
        "rationale_scores", rationale_scores, 3, _mask(missing, len(q2a))[:, None, None]
    )
    given = _numbers("answers", answers, len(conditioned), conditioned.shape[1])
    qa2r = option_hits(conditioned[np.arange(len(given)), given], rationales, missing)
    # per item, so ties in the two parts are independent and their probabilities multiply
    return VCRScores(q2a, qa2r, q2a * qa2r)


@dataclass(frozen=True)
class Retrieved:
    """One direction of retrieval, per query."""

    ranks: Array
    """float64 [queries], expected rank of the best relevant candidate; 1 is best."""
    hits: Mapping[int, Array]
    """K → float64 [queries], probability that a relevant candidate is among the first K."""
    candidates: int
    clusters: Array
    """int64 [queries], the media item that a query belongs to."""


def retrieval_ranks(
    similarity: Array | Tensor,
    relevant: Array | Tensor | None = None,
    missing: Array | Sequence[bool] | None = None,
) -> tuple[Retrieved, Retrieved]:
    """Ranks and hits of both directions.

    If a media item has several captions, each caption is one query, and the media item as a query
    counts its best caption.

    Args:
        similarity: [Q texts, M media].
        relevant: bool [Q, M], see `relevance`; default: the diagonal.
        missing: bool [M]. Missing media are never retrieved: their captions get rank M, and they
            themselves rank Q.

    Returns:
        (text → media, media → text).
    """
    lost_media = _mask(missing, similarity.shape[-1])
    scores = torch.from_numpy(
        np.ascontiguousarray(_scores("similarities", similarity, 2, lost_media))
    )
    (texts, media), gone = scores.shape, torch.from_numpy(lost_media)
    if relevant is None:
        if texts != media:
            raise ValueError(
                f"without `relevant` the similarity must be square, got {list(scores.shape)}"
            )
        relevant = torch.eye(texts, dtype=torch.bool)
    pairs = torch.as_tensor(relevant)
    if pairs.shape != scores.shape or pairs.dtype != torch.bool:
        raise ValueError(
            f"`relevant` must be bool {list(scores.shape)}, got {pairs.dtype} {list(pairs.shape)}"
        )
    if gone.any():
        # ranked after all other candidates
        scores = scores.masked_fill(gone, float("-inf"))
    # texts whose media are all missing cannot be retrieved correctly
    lost = ~(pairs & ~gone).any(1)
    # the first relevant media item of each text, for clustered intervals
    owners = pairs.to(torch.uint8).argmax(1).numpy()
    return _retrieved(scores, pairs, lost, owners), _retrieved(
        scores.T, pairs.T, gone, np.arange(media)
    )


def _retrieved(scores: Tensor, relevant: Tensor, lost: Tensor, clusters: Array) -> Retrieved:
    found = rank_counts(scores, relevant)
    candidates = scores.shape[1]
    # rank M of M candidates and no hit: a missing item counts as the last one
    places = found.expected.masked_fill(lost, float(candidates)).numpy()
    hits = {k: found.hits(k).masked_fill(lost, 0.0).numpy() for k in RECALLS}
    return Retrieved(places, hits, candidates, clusters)


def relevance(owners: Sequence[int] | Array, media: int) -> Array:
    """bool [Q, M]: text q belongs to media item owners[q]."""
    return _numbers("owners", owners, len(owners), media)[:, None] == np.arange(media)


def fold_ranks(
    similarity: Array | Tensor,
    owners: Sequence[int] | Array,
    folds: int = 5,
    missing: Array | Sequence[bool] | None = None,
) -> list[tuple[Retrieved, Retrieved]]:
    """Compute `retrieval_ranks` inside equal folds of the media, each with its own captions.

    COCO 1K: the 5,000 media in their order form five folds of 1,000.

    Args:
        similarity: [Q texts, M media].
        owners: Media item of each text [Q].
        folds: Number of folds; must divide M.
        missing: bool [M].
    """
    gone = _mask(missing, similarity.shape[-1])
    scores = _scores("similarities", similarity, 2, gone)
    texts, media = scores.shape
    if media % folds:
        raise ValueError(
            f"{media} media do not divide into {folds} equal folds; the protocol needs the complete"
            " test split"
        )
    owner, size = _numbers("owners", owners, texts, media), media // folds
    parts = []
    for start in range(0, media, size):
        inside = np.nonzero((owner >= start) & (owner < start + size))[0]
        part = scores[inside, start : start + size]
        parts.append(
            retrieval_ranks(
                part, relevance(owner[inside] - start, size), gone[start : start + size]
            )
        )
    return parts
