"""Dual softmax against torch's probabilities, and queries with several relevant clips against brute
force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from allinone.common.errors import ConfigError
from allinone.finetune.annotations.schema import Media, RetrievalItem
from allinone.finetune.evaluation import metrics, summaries
from allinone.finetune.evaluation.dual_softmax import dual_softmax
from allinone.finetune.evaluation.results import EvalOutput, Score, chance_of
from allinone.finetune.evaluation.retrieval_rows import prediction_rows, text_queries
from allinone.finetune.tasks.options import RetrievalOptions
from allinone.finetune.tasks.retrieval import _chance, _with_dual_softmax

NONE = np.zeros(4, bool)


def test_it_is_the_product_of_both_softmaxes() -> None:
    cosines = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    logits = torch.from_numpy(20 * cosines.astype(np.float64))
    product = logits.softmax(0) * logits.softmax(1)
    found = dual_softmax(cosines, 20.0, NONE)
    np.testing.assert_allclose(np.exp(found), product.numpy(), rtol=1e-12)


def test_no_ties_arise_where_probabilities_underflow() -> None:
    cosines = np.linspace(-1, 1, 16).reshape(4, 4)
    found = dual_softmax(cosines, 1000.0, NONE)
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == 16


def test_a_clip_near_every_text_loses_its_advantage() -> None:
    """Clip 0 is the nearest of all texts; each text is nearer to its own clip than the others."""
    cosines = np.full((4, 4), 0.1)
    np.fill_diagonal(cosines, 0.4)
    cosines[:, 0] = 0.5
    cosines[0, 0] = 0.6
    plain, _ = metrics.retrieval_ranks(cosines)
    weighted, _ = metrics.retrieval_ranks(dual_softmax(cosines, 20.0, NONE))
    assert plain.ranks.tolist() == [1, 2, 2, 2]
    assert weighted.ranks.tolist() == [1, 1, 1, 1]


def test_missing_clips_take_no_part() -> None:
    cosines = np.random.default_rng(1).uniform(-1, 1, (4, 4))
    gone = np.array([False, True, False, False])
    cosines[:, 1] = np.nan
    found = dual_softmax(cosines, 20.0, gone)
    assert np.isnan(found[:, 1]).all()
    rest = dual_softmax(cosines[:, ~gone], 20.0, NONE[:3])
    np.testing.assert_array_equal(found[:, ~gone], rest)


def test_plain_scores_stay_and_the_others_are_named() -> None:
    items = [RetrievalItem(name, Media(name, name), (name,)) for name in "abcdefghijkl"]
    queries = text_queries(items, shared=False)
    similarity = np.random.default_rng(2).uniform(-1, 1, (12, 12)).astype(np.float32)
    plain = summaries.retrieval_scores(metrics.retrieval_ranks(similarity))
    found = _with_dual_softmax(EvalOutput(plain, []), queries, similarity, 20.0, {})
    assert {name: found.scores[name] for name in plain} == plain
    added = set(found.scores) - set(plain)
    assert added == {f"dual-softmax/{name}" for name in plain}
    weighted = dual_softmax(similarity, 20.0, np.zeros(12, bool))
    expected = summaries.retrieval_scores(metrics.retrieval_ranks(weighted))
    assert found.scores["dual-softmax/t2v/R@5"] == expected["t2v/R@5"]
    assert found.details["dual_softmax"] == {
        "inverse_temperature": 20.0,
        "texts_at_once": 12,
        "media_at_once": 12,
    }


@pytest.mark.parametrize("options", [{"rerank": "10"}, {"folds": 5}])
def test_it_is_refused_with_what_it_is_not_defined_for(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--dual-softmax"):
        RetrievalOptions(dual_softmax=True, **options)  # type: ignore[arg-type]


def test_chance_of_several_relevant_clips_is_exact() -> None:
    """174 templates with 12 of 2,088 clips each: 1 - C(2076, K) / C(2088, K)."""
    chance = _chance(np.full(174, 12), 2088)
    assert chance["t2v/R@1"] == pytest.approx(100 * 12 / 2088)
    missed = math.prod((2076 - k) / (2088 - k) for k in range(10))
    assert chance["t2v/R@10"] == pytest.approx(100 * (1 - missed))
    output = EvalOutput(
        {"t2v/R@1": Score(1.0), "t2v/MdR": Score(1.0, unit="rank")},
        [],
        details={"media": 2088, "chance": chance},
    )
    assert chance_of(output)["t2v/R@1"] == pytest.approx(100 * 12 / 2088), "not 100 / 2088"


def test_a_shared_text_hits_with_any_of_its_clips() -> None:
    names = ["a1", "a2", "b1", "b2"]
    items = [RetrievalItem(name, Media(name, name), (name[0],)) for name in names]
    queries = text_queries(items, shared=True)
    scores = np.array([[0.1, 0.9, 0.5, 0.2], [0.8, 0.7, 0.6, 0.3]])
    texts, clips = metrics.retrieval_ranks(scores, queries.relevant)
    assert texts.ranks.tolist() == [1, 3]
    assert clips.ranks.tolist() == [2, 1, 1, 1]
    rows = prediction_rows(items, queries, scores, scores, (texts.ranks, clips.ranks))
    assert [row["id"] for row in rows[:2]] == ["text:a", "text:b"]
    assert rows[0]["answer"] == ["a1", "a2"]
    assert rows[1]["prediction"] == ["a1", "a2", "b1", "b2"]


def test_a_kind_also_counts_in_its_group() -> None:
    """As MILVLG/activitynet-qa's evaluator: the free types together, and each by itself."""
    kinds = ["motion", "free:color", "free:color", "free:yes/no", "motion"]
    scores = summaries.accuracy_scores(np.array([1.0, 1, 0, 0, 0]), kinds)
    values = {name: score.value for name, score in scores.items()}
    assert values == {
        "accuracy": pytest.approx(40.0),
        "accuracy/free": pytest.approx(100 / 3),
        "accuracy/free:color": pytest.approx(50.0),
        "accuracy/motion": pytest.approx(50.0),
        "accuracy/free:yes/no": pytest.approx(0.0),
    }
