"""A result is official only with the benchmark's split and number of items, typed here a second
time from the fact sheet."""

from __future__ import annotations

import pytest

from allinone.finetune.benchmarks import benchmark_names, load_benchmark
from allinone.finetune.evaluation.official_counts import official_count, with_official_count
from allinone.finetune.evaluation.paper_numbers import paper_tables
from allinone.finetune.evaluation.results import EvaluationResult, Score
from allinone.finetune.evaluation.table import table

COUNTS = {
    ("msrvtt_retrieval", "9k", "test"): 1_000,
    ("msrvtt_retrieval", "7k", "test"): 1_000,
    ("msrvtt_retrieval", "7k-clipbert", "test"): 1_000,
    ("msrvtt_retrieval", "9k-joint", "test"): 1_000,
    ("msrvtt_retrieval", "full", "test"): 2_990,
    ("msrvtt_retrieval", "1k-b", "test"): 1_000,
    ("msrvtt_qa", "", "test"): 72_821,
    ("msrvtt_choice", "", "test"): 2_990,
    ("msvd_qa", "", "test"): 13_157,
    ("msvd_retrieval", "", "test"): 670,
    ("tgif_action", "", "test"): 2_274,
    ("tgif_action", "clipbert", "test"): 2_274,
    ("tgif_transition", "", "test"): 6_232,
    ("tgif_frameqa", "", "test"): 13_691,
    ("tvqa", "timestamps", "val"): 15_253,
    ("lsmdc_choice", "", "test"): 10_053,
    ("lsmdc_retrieval", "", "test"): 1_000,
    ("activitynet_retrieval", "", "val_1"): 4_917,
    ("didemo_retrieval", "", "test"): 1_004,
    ("vcr", "", "val"): 26_534,
    ("k400_linear", "", "val"): 19_906,
    ("hmdb51_linear", "mean", "test"): 3 * 1_530,
    ("hmdb51_linear", "1", "test"): 1_530,
    ("ucf101_linear", "mean", "test"): 3_783 + 3_734 + 3_696,
    ("ucf101_linear", "3", "test"): 3_696,
    ("vqav2", "val", "val"): 214_354,
    ("coco_retrieval", "5k", "test"): 5_000,
    ("coco_retrieval", "1k", "test"): 5_000,
    ("flickr30k_retrieval", "", "test"): 1_000,
    ("activitynet_qa", "", "test"): 8_000,
    ("nextqa", "", "test"): 8_564,
    ("nextqa", "val", "val"): 4_996,
    ("vatex_retrieval", "", "test"): 1_500,
    ("youcook2_retrieval", "unseen", "val"): 3_350,
    ("youcook2_retrieval", "all", "val"): 3_492,
    ("ssv2_linear", "", "val"): 24_777,
    ("ssv2_retrieval", "template", "val"): 12 * 174,
    ("ssv2_retrieval", "label", "val"): 2_088,
    ("lsmdc_fib", "", "test"): 30_349,
}
UNPUBLISHED = {"ego4d_choice", "egomcq"}


@pytest.mark.parametrize(("benchmark", "variant", "split"), COUNTS)
def test_official_counts_agree_with_a_second_reading(
    benchmark: str, variant: str, split: str
) -> None:
    count = official_count(benchmark, variant, split)
    assert count is not None
    assert count.items == COUNTS[benchmark, variant, split]


def test_every_scored_split_of_every_benchmark_has_a_count() -> None:
    for name in benchmark_names():
        for variant, splits in load_benchmark(name).variants.items():
            known = official_count(name, variant, splits.test) is not None
            # test-dev has hidden labels: it gets no score
            assert known == (name not in UNPUBLISHED and splits.test != "test-dev"), (name, variant)
    for paper in paper_tables():
        for column in paper.columns:
            known = official_count(column.benchmark, column.variant, column.split) is not None
            assert known == (column.benchmark not in UNPUBLISHED)


@pytest.mark.parametrize(
    ("benchmark", "split", "items", "official", "reason"),
    [
        ("msvd_qa", "test", 13_157, True, ""),
        ("msvd_qa", "test", 44, False, "the official split test has 13,157 items"),
        ("msvd_qa", "test", 13_160, False, "the official split test has 13,157 items"),
        ("msvd_qa", "val", 13_157, False, "no official number of items is known for the split val"),
        (
            "ego4d_choice",
            "val",
            44,
            False,
            "no official number of items is known for the split val",
        ),
        ("my_qa", "test", 13_157, False, "no official number of items is known for the split test"),
    ],
)
def test_only_the_official_items_are_official(
    benchmark: str, split: str, items: int, official: bool, reason: str
) -> None:
    plain = EvaluationResult(
        benchmark, split, "", False, 3, 1, 224, 40, "base", 1, "c", "", items, {"x": Score(1.0)}
    )
    stated = with_official_count(plain)
    assert stated.official is official
    assert stated.unofficial_reason == reason
    assert stated.same_measurement(plain)


def test_the_terminal_shows_the_paper_only_for_official_items() -> None:
    scores = {"accuracy": Score(46.9, 46.0, 47.8)}
    for items, shown, comparison in (
        (13_157, True, "the paper's row is B, WebVid + HowTo100M: the same setting"),
        (44, False, "not comparable with the paper: the official split test has 13,157 items"),
    ):
        result = EvaluationResult(
            *("msvd_qa", "test", "", False, 3, 1, 224, 40, "base", 1, "c", "", items, scores),
            pretraining="WebVid+HowTo100M",
        )
        text = table(with_official_count(result))
        assert ("paper 46.5 (sure)" in text) == shown
        assert comparison in text
