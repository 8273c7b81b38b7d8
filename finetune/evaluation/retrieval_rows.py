"""Predictions of retrieval: one row per text and one per clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from allinone.finetune.annotations.schema import RetrievalItem
from allinone.finetune.evaluation.metrics import Retrieved, relevance
from allinone.finetune.evaluation.results import rounded

_LISTED = 5
"""Results that a prediction lists."""


@dataclass(frozen=True)
class TextQueries:
    """The Q texts of a split, as queries for its M media items."""

    texts: Sequence[str]
    names: Sequence[str]
    """Ids of their predictions."""
    relevant: np.ndarray
    """bool [Q, M]."""

    @property
    def owners(self) -> np.ndarray:
        """int [Q], the first relevant media item of each text."""
        return self.relevant.argmax(1)


def text_queries(items: Sequence[RetrievalItem], *, shared: bool) -> TextQueries:
    """The captions of all items.

    Args:
        items: M media items with their captions.
        shared: An equal caption of several items is one query (SSv2's templates). Otherwise each
            is a query of its own, with one relevant item.
    """
    captions = [caption for item in items for caption in item.captions]
    owners = np.array([number for number, item in enumerate(items) for _ in item.captions])
    if not shared:
        # named by the caption's number: the 1,000 rows of MSR-VTT's 1k-A repeat some sentences
        names = [f"text:{item.id}#{k}" for item in items for k in range(len(item.captions))]
        return TextQueries(captions, names, relevance(owners, len(items)))
    numbers = {text: number for number, text in enumerate(dict.fromkeys(captions))}
    relevant = np.zeros((len(numbers), len(items)), bool)
    relevant[[numbers[caption] for caption in captions], owners] = True
    return TextQueries(list(numbers), [f"text:{text}" for text in numbers], relevant)


def ranks_of_folds(
    folds: Sequence[tuple[Retrieved, Retrieved]], owners: np.ndarray, media: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of every text and of every clip inside its own fold, in the order of the split.

    Args:
        folds: (text → media, media → text) of each fold, in the order of the media.
        owners: int [Q], media item of each text.
        media: Number of media items M.
    """
    size = media // len(folds)
    by_text = np.zeros(len(owners))
    for number, (texts, _) in enumerate(folds):
        # fold k holds the media k * size to (k + 1) * size - 1, see `metrics.fold_ranks`
        by_text[owners // size == number] = texts.ranks
    return by_text, np.concatenate([clips.ranks for _, clips in folds])


def prediction_rows(
    items: Sequence[RetrievalItem],
    queries: TextQueries,
    by_text: np.ndarray,
    by_clip: np.ndarray,
    ranks: tuple[np.ndarray, np.ndarray],
) -> list[dict[str, Any]]:
    """The first results of every query and the rank of the correct one.

    Args:
        items: M media items with their captions.
        queries: The Q texts.
        by_text: Scores [Q, M] for text → media.
        by_clip: Scores [Q, M] for media → text.
        ranks: Ranks of texts [Q] and of clips [M].
    """
    rows: list[dict[str, Any]] = []
    owners = queries.owners
    for q, text in enumerate(queries.texts):
        best = _best(by_text[q])
        right = [items[m].id for m in np.flatnonzero(queries.relevant[q]).tolist()]
        rows.append(
            {
                "id": queries.names[q],
                "media": items[int(owners[q])].media.id,
                "text": text,
                "prediction": [items[m].id for m in best],
                "score": [rounded(float(by_text[q, m])) for m in best],
                "answer": right[0] if len(right) == 1 else right,
                "measures": {"t2v/rank": float(ranks[0][q])},
            }
        )
    for m, item in enumerate(items):
        rows.append(
            {
                "id": f"media:{item.id}",
                "media": item.media.id,
                "prediction": [queries.texts[q] for q in _best(by_clip[:, m])],
                "answer": list(item.captions[:_LISTED]),
                "measures": {"v2t/rank": float(ranks[1][m])},
            }
        )
    return rows


def _best(scores: np.ndarray) -> list[int]:
    """Indices of the highest finite scores, ties in their order."""
    # -inf and NaN mark missing media, which are not listed
    usable = np.where(np.isfinite(scores), scores, -np.inf)
    order = np.argsort(-usable, kind="stable")[:_LISTED]
    return [int(index) for index in order if np.isfinite(usable[index])]
