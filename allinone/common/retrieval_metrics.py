"""Retrieval metrics. Letters: Q queries, N candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RECALLS = (1, 5, 10)
_CHUNK = 1 << 24
"""Scores that are compared at once: bounds the memory for masks at about 200 MB, whatever Q and
N."""


@dataclass(frozen=True)
class RankCounts:
    """Where the best relevant candidate of each query stands, with its ties.

    Ties: candidates with equal scores stand in a random order, and what is reported is the
    expectation over all orders. A model that scores everything alike thus gets chance, not 100 %.
    """

    above: Tensor
    """int64 [Q], wrong candidates with a higher score."""
    tied: Tensor
    """int64 [Q], wrong candidates with the same score."""
    right: Tensor
    """int64 [Q], relevant candidates with that score, at least 1."""

    @property
    def expected(self) -> Tensor:
        """Expected 1-based rank, float64 [Q]. With one relevant candidate a tied wrong one counts
        half a place: two equal ones give rank 1.5."""
        return 1 + self.above + self.tied.double() / (self.right + 1)

    def hits(self, k: int) -> Tensor:
        """Probability that a relevant candidate is among the first k, float64 [Q]: 0 or 1 without
        ties."""
        tied = self.tied + self.right
        places = (k - self.above).clamp(min=0).minimum(tied)
        missed = torch.ones_like(self.above, dtype=torch.float64)
        for drawn in range(int(self.right.max()) if len(self.right) else 0):
            share = (tied - places - drawn).clamp(min=0) / (tied - drawn).clamp(min=1)
            missed *= torch.where(drawn < self.right, share, 1.0)
        return 1 - missed


def ranked(similarity: Tensor, relevant: Tensor | None = None) -> RankCounts:
    """`RankCounts` from scores [Q, N] as given; `relevant` is bool [Q, N], default the diagonal.
    NaN is the lowest score, never a hit by itself."""
    if relevant is None:
        if similarity.shape[0] != similarity.shape[1]:
            raise ValueError(
                f"without `relevant` the similarity must be square, got {list(similarity.shape)}"
            )
        relevant = torch.eye(similarity.shape[0], dtype=torch.bool, device=similarity.device)
    if not relevant.any(1).all():
        raise ValueError("every query needs at least one relevant candidate")
    rows = max(1, _CHUNK // max(similarity.shape[1], 1))
    parts = [
        _ranked(*part) for part in zip(similarity.split(rows), relevant.split(rows), strict=True)
    ]
    return RankCounts(*(torch.cat(counts) for counts in zip(*parts, strict=True)))


def _ranked(similarity: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    similarity = similarity.masked_fill(similarity.isnan(), float("-inf"))
    best = similarity.masked_fill(~relevant, float("-inf")).amax(1, keepdim=True)
    above, level = similarity > best, similarity == best
    return above.sum(1), (level & ~relevant).sum(1), (level & relevant).sum(1)


def ranks(similarity: Tensor, relevant: Tensor | None = None) -> Tensor:
    """Expected 1-based rank [Q] of the best relevant candidate; see `RankCounts` for ties."""
    return ranked(similarity, relevant).expected


def retrieval_metrics(similarity: Tensor, relevant: Tensor | None = None) -> dict[str, float]:
    """R@1, R@5, R@10 in percent and the median rank MdR."""
    found = ranked(similarity.float(), relevant)
    recalls = {f"R@{k}": 100 * float(found.hits(k).mean()) for k in RECALLS}
    return {**recalls, "MdR": float(found.expected.quantile(0.5))}


def chance_metrics(candidates: int) -> dict[str, float]:
    """What a random order scores with one right candidate."""
    return {
        **{f"R@{k}": 100 * min(k / candidates, 1.0) for k in RECALLS},
        "MdR": (candidates + 1) / 2,
    }
