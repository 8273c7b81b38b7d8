"""Retrieval metrics. Letters: Q queries, N candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RECALLS = (1, 5, 10)
_CHUNK = 1 << 24
"""Scores that are compared at once: limits the memory for masks to about 200 MB for any Q and N."""


@dataclass(frozen=True)
class RankCounts:
    """Numbers of candidates above and tied with the best relevant candidate of each query.

    Candidates with equal scores count as randomly ordered, and every metric is the expectation over
    all orders. A model that gives every candidate the same score thus gets chance, not 100 %.
    """

    above: Tensor
    """int64 [Q], irrelevant candidates with a higher score."""
    tied: Tensor
    """int64 [Q], irrelevant candidates with the same score."""
    right: Tensor
    """int64 [Q], relevant candidates with that score, at least 1."""

    @property
    def expected(self) -> Tensor:
        """Expected 1-based rank, float64 [Q].

        Next to one relevant candidate, each tied irrelevant one adds half a rank: two equal
        candidates give rank 1.5.
        """
        # of r relevant candidates among t others in random order, the first has t / (r + 1) before
        # it on average
        return 1 + self.above + self.tied.double() / (self.right + 1)

    def hits(self, k: int) -> Tensor:
        """Probability that a relevant candidate is among the first k, float64 [Q]; 0 or 1 without
        ties."""
        tied = self.tied + self.right
        places = (k - self.above).clamp(min=0).minimum(tied)
        # all `right` relevant candidates fall outside of `places` of the `tied` positions: a
        # hypergeometric probability, written as a product so that nothing overflows
        missed = torch.ones_like(self.above, dtype=torch.float64)
        for drawn in range(int(self.right.max()) if len(self.right) else 0):
            share = (tied - places - drawn).clamp(min=0) / (tied - drawn).clamp(min=1)
            missed *= torch.where(drawn < self.right, share, 1.0)
        return 1 - missed


def rank_counts(similarity: Tensor, relevant: Tensor | None = None) -> RankCounts:
    """Count what ranks above the best relevant candidate of each query.

    Args:
        similarity: Scores [Q, N]. NaN counts as the lowest score.
        relevant: bool [Q, N]; None takes the diagonal, and Q must equal N.

    Raises:
        ValueError: A query has no relevant candidate, or the scores are not square and `relevant`
            is missing.
    """
    if relevant is None:
        if similarity.shape[0] != similarity.shape[1]:
            raise ValueError(
                f"without `relevant` the similarity must be square, got {list(similarity.shape)}"
            )
        relevant = torch.eye(similarity.shape[0], dtype=torch.bool, device=similarity.device)
    if not relevant.any(1).all():
        raise ValueError("every query needs at least one relevant candidate")
    rows = max(1, _CHUNK // max(similarity.shape[1], 1))
    chunks = zip(similarity.split(rows), relevant.split(rows), strict=True)
    counts = [_ranked(*chunk) for chunk in chunks]
    return RankCounts(*(torch.cat(parts) for parts in zip(*counts, strict=True)))


def _ranked(similarity: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    similarity = similarity.masked_fill(similarity.isnan(), float("-inf"))
    best = similarity.masked_fill(~relevant, float("-inf")).amax(1, keepdim=True)
    above = similarity > best
    level = similarity == best
    return above.sum(1), (level & ~relevant).sum(1), (level & relevant).sum(1)


def ranks(similarity: Tensor, relevant: Tensor | None = None) -> Tensor:
    """Expected 1-based rank [Q] of the best relevant candidate; see `RankCounts` for ties."""
    return rank_counts(similarity, relevant).expected


def retrieval_metrics(similarity: Tensor, relevant: Tensor | None = None) -> dict[str, float]:
    """R@1, R@5, R@10 in percent and the median rank MdR; arguments as for `rank_counts`."""
    counts = rank_counts(similarity.float(), relevant)
    recalls = {f"R@{k}": 100 * float(counts.hits(k).mean()) for k in RECALLS}
    return {**recalls, "MdR": float(counts.expected.quantile(0.5))}


def chance_metrics(candidates: int) -> dict[str, float]:
    """What a random order of the candidates scores with one relevant candidate."""
    return {
        **{f"R@{k}": 100 * min(k / candidates, 1.0) for k in RECALLS},
        "MdR": (candidates + 1) / 2,
    }
