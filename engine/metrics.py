"""Retrieval metrics. Letters: Q queries, N candidates."""

from __future__ import annotations

import torch
from torch import Tensor

RECALLS = (1, 5, 10)


def ranks(similarity: Tensor, relevant: Tensor | None = None) -> Tensor:
    """1-based rank [Q] of the best relevant candidate, in float32 as given.

    Ties: a candidate that scores the same as the right one counts half a place, the expected rank under a random order; two equal candidates give
    rank 1.5. A model that scores everything alike thus gets chance, not 100 %. `relevant` is bool [Q, N], default the diagonal.
    """
    if relevant is None:
        if similarity.shape[0] != similarity.shape[1]:
            raise ValueError(f"without `relevant` the similarity must be square, got {list(similarity.shape)}")
        relevant = torch.eye(similarity.shape[0], dtype=torch.bool, device=similarity.device)
    if not relevant.any(1).all():
        raise ValueError("every query needs at least one relevant candidate")
    best = similarity.masked_fill(~relevant, float("-inf")).amax(1, keepdim=True)
    above = ((similarity > best) & ~relevant).sum(1)
    tied = ((similarity == best) & ~relevant).sum(1)
    return 1 + above + tied / 2


def retrieval_metrics(similarity: Tensor, relevant: Tensor | None = None) -> dict[str, float]:
    """R@1, R@5, R@10 in percent and the median rank MdR."""
    found = ranks(similarity.float(), relevant)
    recalls = {f"R@{k}": 100 * float((found <= k).float().mean()) for k in RECALLS}
    return {**recalls, "MdR": float(found.quantile(0.5))}


def chance_metrics(candidates: int) -> dict[str, float]:
    """What a random order scores with one right candidate."""
    return {**{f"R@{k}": 100 * min(k / candidates, 1.0) for k in RECALLS}, "MdR": (candidates + 1) / 2}
