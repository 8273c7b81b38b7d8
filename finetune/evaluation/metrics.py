"""Metrics of all protocols: one value per item first, then a summary with its bootstrap interval.

Per-item values are float64 arrays [N] of numpy, 0..1 for hits. Rules that hold everywhere:
- Ties: equal scores stand in a random order, and the item's value is the expectation over all
  orders (a right option tied with one wrong: 0.5).
- Scores are float32 or float64; half precision makes ties that the model did not mean, and is
  refused. So is NaN.
- A missing item (media that cannot be decoded) is a wrong item: hit 0, rank = number of candidates.
Letters: N items, K options, C classes, Q texts, M media.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from allinone.common.retrieval_metrics import ranked
from allinone.finetune.annotations.vqav2_text import accuracy as vqa_accuracy
from allinone.finetune.evaluation.bootstrap import (
    Array,
    Statistic,
    groups_of,
    interval,
    mean,
    median,
    ratio,
)
from allinone.finetune.evaluation.results import Score

RECALLS = (1, 5, 10, 50)
TOPS = (1, 5, 10)


def _scores(name: str, values: Array | Tensor, ndim: int, ignored: Array | None = None) -> Array:
    """The scores as an array on the CPU; ValueError for another shape, another precision, or NaN
    outside of what is `ignored` (broadcast)."""
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
    """Class numbers as int64 [size]; ValueError where one is outside 0..below-1."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape != (size,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be {size} whole numbers, one per row of the scores; got {array.dtype}"
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
    """bool [size]; none missing where none are named."""
    if missing is None:
        return np.zeros(size, bool)
    array = missing.detach().cpu().numpy() if isinstance(missing, Tensor) else np.asarray(missing)
    if array.shape != (size,) or array.dtype != np.bool_:
        raise ValueError(f"`missing` must be {size} bools, got {array.dtype} {list(array.shape)}")
    return array


# One value per item


def topk_hits(
    scores: Array | Tensor,
    labels: Array | Tensor | Sequence[int],
    k: int,
    missing: Array | Sequence[bool] | None = None,
) -> Array:
    """Whether the labelled class is among the k highest of scores [N, C]: float64 [N], the
    expectation where it is tied with others.

    Scores of missing items are ignored. -inf marks a class that an item does not have (fewer
    options): it is never a hit.
    """
    gone = _mask(missing, len(scores))
    kept = _scores("scores", scores, 2, gone[:, None])
    right = _numbers("labels", labels, len(kept), kept.shape[1])
    own = np.take_along_axis(kept, right[:, None], 1)
    above, level = (kept > own).sum(1), (kept == own).sum(1)
    hits = np.clip((k - above) / np.maximum(level, 1), 0.0, 1.0)
    return np.where(gone | np.isneginf(own[:, 0]), 0.0, hits)


def option_hits(
    scores: Array | Tensor,
    answers: Array | Tensor | Sequence[int],
    missing: Array | Sequence[bool] | None = None,
) -> Array:
    """Multiple choice: whether the right option of scores [N, K] is the highest; 1/m where m
    options, it among them, share the top."""
    return topk_hits(scores, answers, 1, missing)


@dataclass(frozen=True)
class OpenEnded:
    """Open-ended answers, item by item."""

    hits: Array
    """float64 [N]"""
    answerable: Array
    """bool [N], whether a right answer is in the vocabulary. Community rule: one that is not stays
    in the denominator, as wrong."""


def open_ended(
    predicted: Sequence[str | None], answers: Sequence[Sequence[str]], vocabulary: Collection[str]
) -> OpenEnded:
    """Exact match of each prediction (None = missing item) with one of the item's right answers, as
    the files spell them."""
    _same_length(predicted, answers)
    known = frozenset(vocabulary)
    strange = next((text for text in predicted if text is not None and text not in known), None)
    if strange is not None:
        raise ValueError(
            f"the prediction {strange!r} is not in the vocabulary of {len(known)} answers: it"
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
    """VQAv2's official accuracy per question, float64 [N] in 0..1: strings normalised and compared
    as `vqav2_text.accuracy` says."""
    _same_length(predicted, answers)
    return np.array(
        [
            0.0 if text is None else vqa_accuracy(text, right)
            for text, right in zip(predicted, answers, strict=True)
        ]
    )


def _same_length(predicted: Sequence[object], answers: Sequence[object]) -> None:
    if len(predicted) != len(answers):
        raise ValueError(f"{len(predicted)} predictions for {len(answers)} questions")


@dataclass(frozen=True)
class VCRScores:
    """VCR's three scores, item by item, float64 [N] each."""

    q2a: Array
    """Q→A: the answer."""
    qa2r: Array
    """QA→R: the rationale, given the right answer."""
    q2ar: Array
    """Q→AR: both for the same item, not the product of the averages."""


def vcr(
    answer_scores: Array | Tensor,
    rationale_scores: Array | Tensor,
    answers: Array | Tensor | Sequence[int],
    rationales: Array | Tensor | Sequence[int],
    missing: Array | Sequence[bool] | None = None,
) -> VCRScores:
    """answer_scores [N, 4]; rationale_scores [N, 4, 4], where [n, a] holds the scores of the four
    rationales given answer a."""
    q2a = option_hits(answer_scores, answers, missing)
    conditioned = _scores(
        "rationale_scores", rationale_scores, 3, _mask(missing, len(q2a))[:, None, None]
    )
    given = _numbers("answers", answers, len(conditioned), conditioned.shape[1])
    qa2r = option_hits(conditioned[np.arange(len(given)), given], rationales, missing)
    return VCRScores(q2a, qa2r, q2a * qa2r)


@dataclass(frozen=True)
class Retrieved:
    """One direction of retrieval, query by query."""

    ranks: Array
    """float64 [queries], expected 1-based rank of the best relevant candidate."""
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
    """(text → media, media → text) from similarity [Q texts, M media]; `relevant` bool [Q, M],
    default the diagonal, see `relevance`.

    With several captions per media item every caption is a query of its own, and a media query
    counts its best caption. Missing media (bool [M]) are never retrieved; their captions get rank
    M, they themselves rank Q.
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
        scores = scores.masked_fill(gone, float("-inf"))
    lost = ~(pairs & ~gone).any(1)
    owners = pairs.to(torch.uint8).argmax(1).numpy()
    return _retrieved(scores, pairs, lost, owners), _retrieved(
        scores.T, pairs.T, gone, np.arange(media)
    )


def _retrieved(scores: Tensor, relevant: Tensor, lost: Tensor, clusters: Array) -> Retrieved:
    found = ranked(scores, relevant)
    candidates = scores.shape[1]
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
    """COCO 1K: the 5,000 media in their order make five folds of 1,000, each with its own captions;
    `retrieval_scores` averages over them."""
    gone = _mask(missing, similarity.shape[-1])
    scores = _scores("similarities", similarity, 2, gone)
    texts, media = scores.shape
    if media % folds:
        raise ValueError(
            f"{media} media do not divide into {folds} equal folds; the protocol needs the whole"
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


# Summaries


def percent(
    per_item: Array | Sequence[Array],
    statistic: Statistic = mean,
    clusters: Array | Sequence[Array] | None = None,
) -> Score:
    """A share of 0..1 per item as percent with its interval; a list of arrays is averaged over them
    (the three splits of HMDB51)."""
    return _score(per_item, statistic, clusters, 100.0, "%")


def _score(
    per_item: Array | Sequence[Array],
    statistic: Statistic,
    clusters: Array | Sequence[Array] | None,
    scale: float = 1.0,
    unit: str = "rank",
) -> Score:
    low, high = interval(per_item, statistic, clusters=clusters)
    value = float(np.mean([statistic(group) for group in groups_of(per_item)]))
    return Score(scale * value, scale * low, scale * high, unit)


def retrieval_scores(
    found: tuple[Retrieved, Retrieved] | Sequence[tuple[Retrieved, Retrieved]],
) -> dict[str, Score]:
    """t2v/R@1, R@5, R@10, R@50 (percent), t2v/MdR, t2v/MnR, then v2t/…; of several folds the mean.
    t2v is IR and v2t is TR where media are images.

    An R@K with K >= candidates says nothing and is left out. The captions of one media item are one
    cluster of the bootstrap.
    """
    folds = [found] if isinstance(found[0], Retrieved) else list(found)
    scores: dict[str, Score] = {}
    for way, parts in zip(("t2v", "v2t"), zip(*folds, strict=True), strict=True):
        ranks, clusters = [part.ranks for part in parts], [part.clusters for part in parts]
        shown = [k for k in RECALLS if k < min(part.candidates for part in parts)]
        scores |= {
            f"{way}/R@{k}": percent([part.hits[k] for part in parts], clusters=clusters)
            for k in shown
        }
        scores |= {
            f"{way}/MdR": _score(ranks, median, clusters),
            f"{way}/MnR": _score(ranks, mean, clusters),
        }
    return scores


def accuracy_scores(
    hits: Array, kinds: Sequence[str] = (), media: Sequence[str] = ()
) -> dict[str, Score]:
    """accuracy, and accuracy/<kind> for each kind of question that is named (what, yes/no, inter,
    …), most frequent first.

    media: the media id of each item, the clusters of the bootstrap.
    """
    for names in (kinds, media):
        if len(names) not in (0, len(hits)):
            raise ValueError(f"{len(names)} kinds or media for {len(hits)} items")
    clusters = np.asarray(media) if media else None
    scores = {"accuracy": percent(hits, clusters=clusters)}
    counts = Counter(kind for kind in kinds if kind)
    for kind in sorted(counts, key=lambda kind: (-counts[kind], kind)):
        mine = np.asarray(kinds) == kind
        scores[f"accuracy/{kind}"] = percent(
            hits[mine], clusters=None if clusters is None else clusters[mine]
        )
    return scores


def open_ended_scores(
    found: OpenEnded, kinds: Sequence[str] = (), media: Sequence[str] = ()
) -> dict[str, Score]:
    """accuracy over all questions, accuracy_answerable over those whose answer is in the
    vocabulary, coverage = their share; then per kind.

    accuracy_answerable is what code reports that drops unknown answers from the denominator; it is
    never the lower one.
    """
    answerable = found.answerable.astype(float)
    clusters = np.asarray(media) if media else None
    scores = accuracy_scores(found.hits, kinds, media)
    own = {"accuracy": scores.pop("accuracy")}
    if answerable.any():
        own["accuracy_answerable"] = percent(
            np.stack([found.hits * answerable, answerable], axis=1), ratio, clusters
        )
    return {**own, "coverage": percent(answerable, clusters=clusters), **scores}


def vcr_scores(found: VCRScores, media: Sequence[str] = ()) -> dict[str, Score]:
    """q2a, qa2r, q2ar in percent. media: the media id of each item, the clusters of the
    bootstrap."""
    clusters = np.asarray(media) if media else None
    return {name: percent(hits, clusters=clusters) for name, hits in vars(found).items()}


def action_scores(splits: Sequence[Mapping[int, Array]]) -> dict[str, Score]:
    """top1, top5, top10 from K → hits per split; the mean over the splits (HMDB51 and UCF101:
    three; Kinetics: one)."""
    shared = [k for k in TOPS if all(k in split for split in splits)]
    return {f"top{k}": percent([split[k] for split in splits]) for k in shared}
