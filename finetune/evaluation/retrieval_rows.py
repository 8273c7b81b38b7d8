"""Predictions of retrieval: one row per text and one per clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from allinone.finetune.annotations.schema import RetrievalItem
from allinone.finetune.evaluation.metrics import Retrieved
from allinone.finetune.evaluation.results import rounded

_LISTED = 5
"""Results that a prediction lists."""


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
    by_text: np.ndarray,
    by_clip: np.ndarray,
    ranks: tuple[np.ndarray, np.ndarray],
) -> list[dict[str, Any]]:
    """The first results of every query and the rank of the correct one.

    Args:
        items: M media items with their captions.
        by_text: Scores [Q, M] for text → media.
        by_clip: Scores [Q, M] for media → text.
        ranks: Ranks of texts [Q] and of clips [M].
    """
    rows: list[dict[str, Any]] = []
    texts = [caption for item in items for caption in item.captions]
    q = 0
    for item in items:
        # the caption is named by its number: the 1,000 rows of 1k-A repeat some sentences
        for number, text in enumerate(item.captions):
            best = _best(by_text[q])
            rows.append(
                {
                    "id": f"text:{item.id}#{number}",
                    "media": item.media.id,
                    "text": text,
                    "prediction": [items[m].id for m in best],
                    "score": [rounded(float(by_text[q, m])) for m in best],
                    "answer": item.id,
                    "measures": {"t2v/rank": float(ranks[0][q])},
                }
            )
            q += 1
    for m, item in enumerate(items):
        rows.append(
            {
                "id": f"media:{item.id}",
                "media": item.media.id,
                "prediction": [texts[q] for q in _best(by_clip[:, m])],
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
