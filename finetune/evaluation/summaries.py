"""Summaries of per-item metrics: scores with bootstrap intervals, by their names in results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from allinone.finetune.evaluation.bootstrap import (
    Array,
    Statistic,
    groups_of,
    interval,
    mean,
    median,
    ratio,
)
from allinone.finetune.evaluation.metrics import RECALLS, TOPS, OpenEnded, Retrieved, VCRScores
from allinone.finetune.evaluation.results import Score


def percent(
    per_item: Array | Sequence[Array],
    statistic: Statistic = mean,
    clusters: Array | Sequence[Array] | None = None,
) -> Score:
    """A share of 0..1 per item as percent with its interval.

    Args:
        per_item: [N] or [N, columns]; a list of arrays (folds) is averaged over them.
        statistic: Of the items.
        clusters: Names of clusters of dependent items, in the same form.
    """
    return _score(per_item, statistic, clusters, 100.0, "%")


def scaled(per_item: Array, statistic: Statistic, clusters: Array | None = None) -> Score:
    """A plain number times 100 with its interval; arguments as in `percent`."""
    return _score(per_item, statistic, clusters, 100.0, "")


def _score(
    per_item: Array | Sequence[Array],
    statistic: Statistic,
    clusters: Array | Sequence[Array] | None,
    scale: float = 1.0,
    unit: str = "rank",
) -> Score:
    # clusters: MSR-VTT-QA asks 24 questions about each test video, which are not independent
    low, high = interval(per_item, statistic, clusters=clusters)
    # every fold counts the same, whatever its size, as in the protocols of HMDB51 and UCF101
    value = float(np.mean([statistic(group) for group in groups_of(per_item)]))
    return Score(scale * value, scale * low, scale * high, unit)


def retrieval_scores(
    found: tuple[Retrieved, Retrieved] | Sequence[tuple[Retrieved, Retrieved]],
) -> dict[str, Score]:
    """t2v/R@1, R@5, R@10, R@50 (percent), t2v/MdR, t2v/MnR, then v2t/…; of several folds the mean.

    If media are images, t2v is IR and v2t is TR. R@K with K >= candidates is always 100 and left
    out. The captions of one media item are one cluster of the bootstrap.
    """
    folds = [found] if isinstance(found[0], Retrieved) else list(found)
    scores: dict[str, Score] = {}
    for way, parts in zip(("t2v", "v2t"), zip(*folds, strict=True), strict=True):
        ranks, clusters = [part.ranks for part in parts], [part.clusters for part in parts]
        # R@K of K candidates is 100 % whatever the model does
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
    """accuracy, and accuracy/<kind> for each kind of question, most frequent first.

    Args:
        hits: float64 [N].
        kinds: Kind of each question (what, yes/no, inter, …); "" has no score of its own. A kind
            `free:color` also counts in its group, accuracy/free.
        media: Media id of each item, the clusters of the bootstrap.
    """
    for names in (kinds, media):
        if len(names) not in (0, len(hits)):
            raise ValueError(f"{len(names)} kinds or media for {len(hits)} items")
    clusters = np.asarray(media) if media else None
    scores = {"accuracy": percent(hits, clusters=clusters)}
    counts = Counter(kind for kind in kinds if kind)
    counts.update(kind.partition(":")[0] for kind in kinds if ":" in kind)
    for kind in sorted(counts, key=lambda kind: (-counts[kind], kind)):
        # the clusters of these questions alone: other kinds must not enter the resamples
        mine = np.array([own == kind or own.startswith(f"{kind}:") for own in kinds])
        scores[f"accuracy/{kind}"] = percent(
            hits[mine], clusters=None if clusters is None else clusters[mine]
        )
    return scores


def open_ended_scores(
    found: OpenEnded, kinds: Sequence[str] = (), media: Sequence[str] = ()
) -> dict[str, Score]:
    """accuracy over all questions, accuracy_answerable over those whose answer is in the
    vocabulary, coverage (their share), then accuracy per kind.

    accuracy_answerable is what code reports that removes unknown answers from the denominator; it
    is never lower than accuracy.

    Args:
        found: Hits per item.
        kinds: Kind of each question.
        media: Media id of each item, the clusters of the bootstrap.
    """
    answerable = found.answerable.astype(float)
    clusters = np.asarray(media) if media else None
    scores = accuracy_scores(found.hits, kinds, media)
    own = {"accuracy": scores.pop("accuracy")}
    # the two can differ much: VIOLET keeps 11,983 of MSVD-QA's 13,157 questions, and 46.5 % of
    # those are 42.4 % of all
    if answerable.any():
        own["accuracy_answerable"] = percent(
            np.stack([found.hits * answerable, answerable], axis=1), ratio, clusters
        )
    return {**own, "coverage": percent(answerable, clusters=clusters), **scores}


def vcr_scores(found: VCRScores, media: Sequence[str] = ()) -> dict[str, Score]:
    """q2a, qa2r, q2ar in percent; `media`, the ids of the items' media, clusters the bootstrap."""
    clusters = np.asarray(media) if media else None
    return {name: percent(hits, clusters=clusters) for name, hits in vars(found).items()}


def action_scores(folds: Sequence[Mapping[int, Array]]) -> dict[str, Score]:
    """top1, top5, top10 from K → hits of each fold; the mean over the folds (HMDB51 and UCF101:
    three; Kinetics: one)."""
    shared = [k for k in TOPS if all(k in fold for fold in folds)]
    return {f"top{k}": percent([fold[k] for fold in folds]) for k in shared}
