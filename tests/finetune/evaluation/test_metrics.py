"""Metrics against independent implementations: torchmetrics, scikit-learn, scipy,
and the definitions written out naively.

Ties are made on purpose (scores are small integers), and duplicates of texts and media. Where
a library breaks ties in its own way, it is asked once per order of the tied, and the mean of its
answers is what ours must give.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_reciprocal_rank

from allinone.finetune.evaluation import metrics, summaries
from allinone.finetune.evaluation.bootstrap import interval, median, paired_interval, ratio

CASES = settings(max_examples=200, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
WORDS = ("dog", "cat", "two", "2", "The net", "net", "", "it's", "a  red, car")


def tied_scores(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Few distinct values, so that most rows contain ties, and some rows nothing else."""
    return random.integers(0, random.integers(1, 6), size=shape).astype(np.float32)


def orders(scores: np.ndarray) -> list[np.ndarray]:
    """The scores [N, C] with ties broken, once for every order of the columns."""
    width = scores.shape[1]
    return [scores + 0.01 * np.array(order) for order in itertools.permutations(range(width))]


@CASES
@given(SEEDS, st.integers(1, 6), st.integers(3, 4), st.integers(1, 2))
def test_topk_is_scikit_learns_mean_over_orders_of_ties(
    seed: int, items: int, classes: int, k: int
) -> None:
    random = np.random.default_rng(seed)
    scores, labels = tied_scores(random, items, classes), random.integers(0, classes, size=items)
    broken = orders(scores)
    repeated = np.tile(labels, len(broken))
    expected = top_k_accuracy_score(repeated, np.concatenate(broken), k=k, labels=range(classes))
    assert metrics.topk_hits(scores, labels, k).mean() == pytest.approx(expected)
    first = torch.from_numpy(broken[0])
    ours = metrics.topk_hits(broken[0], labels, k).mean()
    assert ours == pytest.approx(
        float(multiclass_accuracy(first, torch.from_numpy(labels), classes, "micro", top_k=k))
    )


@CASES
@given(SEEDS, st.integers(1, 8), st.integers(2, 5))
def test_option_hits_share_the_point_among_the_highest_options(
    seed: int, items: int, options: int
) -> None:
    random = np.random.default_rng(seed)
    scores, answers = tied_scores(random, items, options), random.integers(0, options, size=items)
    hits = metrics.option_hits(torch.from_numpy(scores), answers)
    for row, answer, hit in zip(scores.tolist(), answers.tolist(), hits, strict=True):
        highest = [option for option, score in enumerate(row) if score == max(row)]
        assert hit == pytest.approx((answer in highest) / len(highest))
    alike = metrics.option_hits(np.zeros_like(scores), answers)
    assert alike.mean() == pytest.approx(1 / options)


@CASES
@given(SEEDS, st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_retrieval_ranks_are_the_mean_over_candidate_orders(
    seed: int, media: int, captions: int, doubled: bool
) -> None:
    """Both directions with several captions per item: sort by score in every order of the
    candidates, and take the place of the first relevant one."""
    random = np.random.default_rng(seed)
    owners = np.concatenate([np.arange(media), random.integers(0, media, size=captions)])
    similarity = tied_scores(random, len(owners), media)
    if doubled:
        similarity[-1] = similarity[0]
    pairs = metrics.relevance(owners, media)
    ways = metrics.retrieval_ranks(similarity, pairs)
    for found, scores, relevant in zip(
        ways, (similarity, similarity.T), (pairs, pairs.T), strict=True
    ):
        width = scores.shape[1]
        for query in range(len(scores)):
            mine, right = scores[query], relevant[query]
            if right.sum() == 1:
                assert found.ranks[query] == stats.rankdata(-mine, "average")[right][0]
            if width < 6:  # 120 orders
                places = np.array(
                    [
                        first_place(mine, right, shuffle)
                        for shuffle in itertools.permutations(range(width))
                    ]
                )
                assert found.ranks[query] == pytest.approx(places.mean())
                assert all(
                    found.hits[k][query] == pytest.approx((places <= k).mean()) for k in (1, 5)
                )


def first_place(scores: np.ndarray, relevant: np.ndarray, shuffle: Sequence[int]) -> int:
    ordered = sorted(shuffle, key=lambda candidate: -scores[candidate])
    return next(place for place, candidate in enumerate(ordered, 1) if relevant[candidate])


@CASES
@given(SEEDS, st.integers(2, 12), st.integers(1, 3))
def test_retrieval_without_ties_equals_torchmetrics(seed: int, media: int, captions: int) -> None:
    random = np.random.default_rng(seed)
    owners = np.repeat(np.arange(media), captions)
    order = random.permutation(len(owners) * media).reshape(len(owners), media)
    similarity = 1 + order.astype(np.float32)  # torchmetrics ignores scores <= 0
    pairs = metrics.relevance(owners, media)
    ways = metrics.retrieval_ranks(torch.from_numpy(similarity), torch.from_numpy(pairs))
    for found, scores, relevant in zip(
        ways, (similarity, similarity.T), (pairs, pairs.T), strict=True
    ):
        for query in range(len(scores)):
            arguments = (
                torch.from_numpy(np.array(scores[query])),
                torch.from_numpy(np.array(relevant[query])),
            )
            assert 1 / found.ranks[query] == pytest.approx(
                float(retrieval_reciprocal_rank(*arguments))
            )
            for k in (1, 5):
                assert found.hits[k][query] == float(retrieval_hit_rate(*arguments, top_k=k))


@CASES
@given(SEEDS, st.integers(2, 9))
def test_a_model_that_scores_everything_alike_gets_chance(seed: int, media: int) -> None:
    captions = np.random.default_rng(seed).integers(1, 4)
    owners = np.repeat(np.arange(media), captions)
    texts, videos = metrics.retrieval_ranks(
        np.ones((len(owners), media), np.float32), metrics.relevance(owners, media)
    )
    assert texts.ranks == pytest.approx((media + 1) / 2)
    assert texts.hits[1] == pytest.approx(1 / media)
    assert videos.ranks == pytest.approx((len(owners) + 1) / (captions + 1))
    none = [
        math.comb(len(owners) - captions, k) / math.comb(len(owners), k)
        for k in (1, 5)
        if k <= len(owners)
    ]
    assert [videos.hits[k][0] for k in (1, 5)][: len(none)] == pytest.approx(
        [1 - share for share in none]
    )


@CASES
@given(SEEDS, st.integers(2, 4), st.integers(1, 3))
def test_coco_1k_is_the_mean_of_folds_that_are_evaluated_alone(
    seed: int, size: int, captions: int
) -> None:
    random = np.random.default_rng(seed)
    owners = np.sort(
        np.concatenate([np.arange(5 * size), random.integers(0, 5 * size, size=captions)])
    )
    similarity = tied_scores(random, len(owners), 5 * size)
    scores = metrics.fold_ranks(similarity, owners)
    alone = []
    for fold in range(5):
        chosen = [text for text, owner in enumerate(owners) if owner // size == fold]
        part = similarity[chosen][:, fold * size : (fold + 1) * size]
        alone.append(
            metrics.retrieval_ranks(part, metrics.relevance(owners[chosen] - fold * size, size))
        )
    for found, own in zip(scores, alone, strict=True):
        assert all(
            np.array_equal(one.ranks, other.ranks) for one, other in zip(found, own, strict=True)
        )


def test_the_score_of_folds_is_the_mean_of_their_scores() -> None:
    owners = np.array([0, 0, 0, 1, 2, 3])
    similarity = np.zeros((6, 4), np.float32)
    # fold one: all four captions are correct; fold two: two captions are tied
    similarity[[0, 1, 2, 3], [0, 0, 0, 1]] = 1
    scores = summaries.retrieval_scores(metrics.fold_ranks(similarity, owners, folds=2))
    assert scores["t2v/R@1"].value == pytest.approx((100 + 50) / 2)  # not 100 * 5 / 6
    assert scores["t2v/MnR"].value == pytest.approx((1 + 1.5) / 2)
    assert "t2v/R@5" not in scores
    with pytest.raises(ValueError, match="do not divide into 5 equal folds"):
        metrics.fold_ranks(similarity, owners)


@CASES
@given(SEEDS, st.integers(1, 12))
def test_open_ended_accuracy_equals_scikit_learns(seed: int, items: int) -> None:
    random = np.random.default_rng(seed)
    vocabulary = ("dog", "cat", "net")
    truth = [str(word) for word in random.choice([*vocabulary, "rare", "unseen"], size=items)]
    predicted = [str(word) for word in random.choice(vocabulary, size=items)]
    found = metrics.open_ended(predicted, [[word] for word in truth], vocabulary)
    assert found.hits.mean() == pytest.approx(accuracy_score(truth, predicted))
    inside = [index for index, word in enumerate(truth) if word in vocabulary]
    assert found.answerable.sum() == len(inside)
    if inside:
        answerable = accuracy_score(
            [truth[index] for index in inside], [predicted[index] for index in inside]
        )
        assert found.hits[found.answerable].mean() == pytest.approx(answerable)
    lost = metrics.open_ended([None] * items, [[word] for word in truth], vocabulary)
    assert lost.hits.sum() == 0
    assert lost.answerable.sum() == len(inside)


def test_open_ended_scores_include_coverage_and_kinds() -> None:
    found = metrics.open_ended(
        ["dog", "cat", "cat", None], [["dog"], ["dog", "cat"], ["rare"], ["dog"]], ["dog", "cat"]
    )
    scores = summaries.open_ended_scores(
        found, ["what", "what", "who", ""], ["v1", "v1", "v2", "v3"]
    )
    expected = {
        "accuracy": 50,
        "accuracy_answerable": 200 / 3,
        "coverage": 75,
        "accuracy/what": 100,
        "accuracy/who": 0,
    }
    assert {name: score.value for name, score in scores.items()} == pytest.approx(expected)
    assert list(scores) == list(expected)
    assert all(score.low <= score.value <= score.high for score in scores.values())


@CASES
@given(
    st.lists(
        st.tuples(
            st.sampled_from(WORDS), st.lists(st.sampled_from(WORDS), min_size=10, max_size=10)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_vqa_accuracy_is_the_official_formula(questions: list[tuple[str, list[str]]]) -> None:
    hits = metrics.vqa_soft([said for said, _ in questions], [answers for _, answers in questions])
    for (said, answers), hit in zip(questions, hits, strict=True):
        assert hit == pytest.approx(official_vqa(said, answers))


def official_vqa(said: str, answers: list[str]) -> float:
    """The steps of the official evaluation page: leave out each of ten annotators in turn, min(1,
    matches / 3), average."""
    spelled = {"two": "2", "The net": "net", "a  red, car": "red car"}
    said = spelled.get(said, said)
    if len(set(answers)) > 1:
        # annotators' answers are stripped of punctuation only, and only if they disagree
        answers = [answer.replace(",", "") for answer in answers]
    scores = []
    for left_out in range(10):
        others = [answer for number, answer in enumerate(answers) if number != left_out]
        scores.append(min(1.0, sum(answer == said for answer in others) / 3))
    return sum(scores) / 10


@CASES
@given(SEEDS, st.integers(1, 6))
def test_vcr_counts_the_joint_answer_item_by_item(seed: int, items: int) -> None:
    random = np.random.default_rng(seed)
    first, second = tied_scores(random, items, 4), tied_scores(random, items, 4, 4)
    answers, rationales = random.integers(0, 4, size=(2, items))
    found = metrics.vcr(first, second, answers, rationales)
    for item in range(items):
        chosen = [option for option in range(4) if first[item, option] == first[item].max()]
        given_right = second[item, answers[item]]
        reasons = [option for option in range(4) if given_right[option] == given_right.max()]
        both = [(a == answers[item]) and (r == rationales[item]) for a in chosen for r in reasons]
        assert found.q2ar[item] == pytest.approx(np.mean(both))
        assert found.q2a[item] == pytest.approx(np.mean([a == answers[item] for a in chosen]))
        assert found.qa2r[item] == pytest.approx(np.mean([r == rationales[item] for r in reasons]))


def test_joint_score_of_vcr_is_not_the_product() -> None:
    sharp = np.eye(4, dtype=np.float32)
    found = metrics.vcr(sharp[[0, 1]], np.stack([sharp[[0] * 4], sharp[[0] * 4]]), [0, 0], [0, 1])
    assert {
        name: score.value for name, score in summaries.vcr_scores(found, ["a", "b"]).items()
    } == {
        "q2a": 50,
        "qa2r": 50,
        "q2ar": 50,
    }


def test_three_splits_are_averaged_and_resampled_apart() -> None:
    splits = [
        {k: np.full(size, value) for k in (1, 5, 10)}
        for size, value in ((10, 0.0), (40, 1.0), (50, 1.0))
    ]
    scores = summaries.action_scores(splits)
    assert scores["top1"].value == pytest.approx(200 / 3)
    assert (scores["top5"].low, scores["top5"].high) == pytest.approx((200 / 3, 200 / 3))


def test_a_missing_item_is_wrong_whatever_its_scores_say() -> None:
    gone = np.array([True, False])
    assert metrics.option_hits(
        np.array([[np.nan, np.nan], [0, 1]], np.float32), [0, 1], gone
    ).tolist() == [0, 1]
    similarity = np.array([[9, 0, 1], [9, 5, 2], [9, 3, 4]], np.float32)
    texts, media = metrics.retrieval_ranks(similarity, missing=[True, False, False])
    assert texts.ranks.tolist() == [3, 1, 1]  # its caption is last; other texts never retrieve it
    assert media.ranks.tolist() == [3, 1, 1]
    assert texts.hits[50].tolist() == media.hits[50].tolist() == [0, 1, 1]
    assert metrics.vqa_soft([None], [["yes"] * 10]).tolist() == [0]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_scores_are_refused(half: torch.dtype) -> None:
    with pytest.raises(
        ValueError, match=r"similarities are b?float16; scores must be float32.*\.float\(\)"
    ):
        metrics.retrieval_ranks(torch.eye(3, dtype=half))
    with pytest.raises(ValueError, match="float16"):
        metrics.topk_hits(np.eye(3, dtype=np.float16), [0, 1, 2], 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: metrics.option_hits(np.array([[np.nan, 1]], np.float32), [0]),
            "NaN in 1 of 1 rows",
        ),
        (
            lambda: metrics.option_hits(np.zeros((2, 4), np.float32), [0, 4]),
            r"labels\[1\] is 4, outside 0..3 \(1 such rows\)",
        ),
        (
            lambda: metrics.option_hits(np.zeros((2, 4), np.float32), [0, -100]),
            r"-100, outside 0..3",
        ),
        (lambda: metrics.option_hits(np.zeros((2, 4), np.float32), [0]), "must be 2 integers"),
        (lambda: metrics.retrieval_ranks(np.zeros((2, 3), np.float32)), "must be square"),
        (
            lambda: metrics.open_ended(["dog"], [["dog"]], ["cat"]),
            "'dog' is not in the vocabulary of 1 answers",
        ),
        (lambda: metrics.open_ended(["dog"], [], ["dog"]), "1 predictions for 0 questions"),
        (lambda: summaries.accuracy_scores(np.ones(3), ["what"]), "1 kinds or media for 3 items"),
        (lambda: interval(np.array([])), "no items"),
        (lambda: paired_interval(np.ones(3), np.ones(4)), "pair the items first"),
    ],
)
def test_what_cannot_be_scored_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 40))
def test_intervals_equal_scipys_percentile_bootstrap(seed: int, items: int) -> None:
    random = np.random.default_rng(seed)
    values, other = random.random(items), random.random(items)
    options = {"n_resamples": 200, "method": "percentile", "vectorized": False}
    for statistic in (np.mean, np.median):
        theirs = stats.bootstrap(
            (values,), statistic, rng=np.random.default_rng(0), **options
        ).confidence_interval
        ours = interval(
            values,
            {np.mean: lambda drawn: float(drawn.mean()), np.median: median}[statistic],
            samples=200,
        )
        assert ours == pytest.approx(tuple(theirs), abs=1e-12)
    theirs = stats.bootstrap(
        (values, other),
        lambda a, b: np.mean(b) - np.mean(a),
        paired=True,
        rng=np.random.default_rng(0),
        **options,
    ).confidence_interval
    assert paired_interval(values, other, samples=200)[1:] == pytest.approx(
        tuple(theirs), abs=1e-12
    )


def test_intervals_cover_the_truth_at_their_level() -> None:
    """95 % intervals of 200 samples with known mean, median and ratio: the share that covers the
    true value is within 3 standard errors of 95 %."""
    random = np.random.default_rng(1)
    covered = {"mean": 0, "median": 0, "ratio": 0}
    for _ in range(200):
        values = random.normal(size=60)
        hits = (random.random((60, 2)) < [0.3, 0.6]).astype(float)
        hits[:, 0] *= hits[:, 1]
        for name, sample, statistic, truth in (
            ("mean", values, lambda drawn: float(drawn.mean()), 0.0),
            ("median", values, median, 0.0),
            ("ratio", hits, ratio, 0.3),
        ):
            low, high = interval(sample, statistic, samples=100)
            covered[name] += low <= truth <= high
    assert all(0.90 <= count / 200 <= 0.985 for count in covered.values()), covered


def test_repeated_items_do_not_narrow_a_cluster_interval() -> None:
    values = np.random.default_rng(2).random(50)
    repeated = np.repeat(values, 10)
    names = np.repeat([f"video{number:02}" for number in range(50)], 10)
    assert interval(repeated, clusters=names) == pytest.approx(interval(values), abs=1e-12)
    low, high = interval(repeated)
    wide_low, wide_high = interval(repeated, clusters=names)
    assert (high - low) < 0.5 * (wide_high - wide_low)
    one_each = summaries.accuracy_scores(
        values, media=[f"video{number:02}" for number in range(50)]
    )
    assert (one_each["accuracy"].low, one_each["accuracy"].high) == pytest.approx(
        [100 * edge for edge in interval(values)]
    )


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    random = np.random.default_rng(3)
    first = (random.random(400) < 0.5).astype(float)
    second = np.where(random.random(400) < 0.05, 1 - first, first)
    assert paired_interval(first, first) == (0, 0, 0)
    difference, low, high = paired_interval(first, second)
    assert difference == pytest.approx(second.mean() - first.mean())
    alone = interval(first)
    assert (high - low) < 0.7 * (alone[1] - alone[0])
