"""Re-ranking."""

from __future__ import annotations

import numpy as np

from allinone.finetune.evaluation.rerank import _merged, shortlist


def test_rerank_finds_every_winner_in_the_shortlist() -> None:
    random = np.random.default_rng(0)
    joint = random.normal(size=(60, 50))
    similarity = random.normal(size=(60, 50)).astype(np.float32)
    chosen = shortlist(similarity, 7)
    assert (chosen.sum(1) == 7).all()
    assert (
        np.where(chosen, similarity, np.inf).min(1) >= np.where(chosen, -np.inf, similarity).max(1)
    ).all()
    merged, full = _merged(np.where(chosen, joint, np.nan), chosen, similarity), joint.argmax(1)
    shown = chosen[np.arange(60), full]
    assert 0 < shown.sum() < 60
    assert (merged.argmax(1)[shown] == full[shown]).all()
    ranks = (-merged).argsort(1)
    assert all(chosen[text, ranks[text, :7]].all() for text in range(60)), (
        "a candidate ranks below one that was not scored"
    )
    gone = similarity.copy()
    gone[:, 3] = np.nan
    assert not shortlist(gone, 50)[:, 3].any()
