"""Ranks and recall, ties included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allinone.common.retrieval_metrics import chance_metrics, ranks, retrieval_metrics


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.randoms(use_true_random=False))
def test_tied_ranks_equal_the_mean_over_all_orders(
    queries: int, candidates: int, random: object
) -> None:
    generator = torch.Generator().manual_seed(random.randrange(2**31))  # type: ignore[attr-defined]
    similarity = torch.randint(0, 4, (queries, candidates), generator=generator).float()
    right = torch.randint(0, candidates, (queries,), generator=generator)
    relevant = torch.nn.functional.one_hot(right, candidates).bool()
    found = ranks(similarity, relevant)
    for query in range(queries):
        row, best = similarity[query].tolist(), float(similarity[query, right[query]])
        above, tied = sum(value > best for value in row), sum(value == best for value in row) - 1
        places = [above + 1 + k for k in range(tied + 1)]
        assert float(found[query]) == pytest.approx(sum(places) / len(places))


def test_recall_and_median_rank_of_known_cases() -> None:
    similarity = torch.tensor([[9.0, 1, 2], [5, 4, 3], [1, 2, 0]])
    assert retrieval_metrics(similarity) == pytest.approx(
        {"R@1": 100 / 3, "R@5": 100, "R@10": 100, "MdR": 2}
    )
    assert retrieval_metrics(torch.zeros(21, 21))["MdR"] == chance_metrics(21)["MdR"] == 11
    with pytest.raises(ValueError, match="square"):
        ranks(torch.zeros(2, 3))
