"""The paper's numbers, typed from the fact sheet a second time, and which of our results are
comparable with them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from allinone.finetune.evaluation.paper_numbers import (
    certainties,
    data_sets,
    paper_cells,
    paper_tables,
)
from allinone.finetune.evaluation.results import EvaluationResult, Score


def result(**changes: Any) -> EvaluationResult:
    facts = EvaluationResult(
        benchmark="msrvtt_qa",
        split="test",
        protocol="open_ended_qa",
        zero_shot=False,
        frames=3,
        views=1,
        image_size=224,
        max_text_len=40,
        model_size="base",
        parameters=110_000_000,
        checkpoint="x",
        checkpoint_sha256="ab",
        items=100,
        scores={"accuracy": Score(43.0, 42.0, 44.0)},
        pretraining="webvid2m+HowTo100M",
    )
    return dataclasses.replace(facts, **changes)


SECOND_READING = [
    (
        "tgif_action",
        "",
        "accuracy",
        "B+",
        3,
        1,
        [(94.4, "gain"), (96.3, "gain"), (96.3, "notes")],
    ),
    ("tgif_frameqa", "", "accuracy", "B", 3, 1, [(64.2, "notes")]),
    ("tgif_transition", "", "accuracy", "B", 1, 1, [(94.2, "sure")]),
    ("msrvtt_qa", "", "accuracy", "B", 3, 3, [(44.3, "gain")]),
    ("msvd_qa", "", "accuracy", "B*", 3, 1, [(48.3, "sure")]),
    ("tvqa", "timestamps", "accuracy", "B", 3, 3, [(71.3, "unsure")]),
    ("msrvtt_retrieval", "7k", "t2v/R@5", "B", 3, 3, [(59.4, "sure")]),
    ("msrvtt_retrieval", "7k", "t2v/R@5", "B, contrast and rank", 3, 3, [(64.2, "sure")]),
    ("msrvtt_retrieval", "9k", "t2v/R@1", "B+", 3, 3, [(39.7, "sure")]),
    ("msrvtt_retrieval", "9k", "t2v/R@1", "B+, contrast only", 3, 3, [(41.8, "notes")]),
    ("msrvtt_retrieval", "9k", "t2v/R@10", "B, contrast only", 3, 3, [(72.1, "notes")]),
    ("msrvtt_choice", "", "accuracy", "B+", 3, 1, [(91.9, "unsure")]),
    ("tgif_action", "", "accuracy", "B*, data as printed", 3, 1, [(None, "illegible")]),
    ("activitynet_retrieval", "", "t2v/MdR", "B", 3, 3, [(5, "sure")]),
    ("didemo_retrieval", "", "t2v/R@10", "B", 3, 1, [(72.1, "sure")]),
    ("lsmdc_choice", "", "accuracy", "B, zero-shot", 3, 1, [(56.3, "notes")]),
    ("ego4d_choice", "", "accuracy", "B, zero-shot", 3, 1, [(36.5, "notes")]),
    ("vcr", "", "q2a", "B, mask", 1, 1, [(60.5, "gain"), (68.4, "gain")]),
    ("k400_linear", "", "top5", "B", 8, 1, [(83.2, "sure")]),
    ("hmdb51_linear", "mean", "top1", "B+, heads shared", 8, 1, [(53.1, "sure")]),
    ("ucf101_linear", "mean", "top10", "time average", 3, 1, [(90.9, "sure")]),
]


@pytest.mark.parametrize(
    ("benchmark", "variant", "metric", "model", "frames", "views", "expected"), SECOND_READING
)
def test_numbers_agree_with_a_second_reading(
    benchmark: str,
    variant: str,
    metric: str,
    model: str,
    frames: int,
    views: int,
    expected: list[tuple[float | None, str]],
) -> None:
    cells = [
        cell
        for cell in paper_cells(benchmark, variant)
        if cell.column.metric == metric and cell.column.variant == variant
    ]
    row = [
        cell
        for cell in cells
        if (cell.row.model, cell.row.frames, cell.row.views) == (model, frames, views)
    ]
    assert [(cell.value, cell.confirmation) for cell in row] == expected


def test_every_number_has_a_certainty_and_illegible_no_target() -> None:
    cells = [cell for table in paper_tables() for cell in table.cells.values()]
    assert {cell.certainty for cell in cells} == {*certainties(), ""}
    assert all(cell.target is None for cell in cells if cell.certainty in ("illegible", ""))
    assert all(
        cell.target == cell.value for cell in cells if cell.certainty not in ("illegible", "")
    )
    for cell in cells:
        assert cell.value is None or 0 < cell.value <= 100
    for table in paper_tables():  # recalls grow with K, in every row
        for i in range(len(table.rows)):
            for j in range(1, len(table.columns)):
                before, after = table.cells[i, j - 1], table.cells[i, j]
                if (
                    before.value
                    and after.value
                    and before.column.group == after.column.group
                    and "R@" in after.column.head
                ):
                    assert before.value < after.value


@pytest.mark.parametrize(
    ("changes", "comparable"),
    [
        ({}, [42.9]),
        ({"views": 3}, [44.3]),
        ({"frames": 8}, []),
        ({"image_size": 384}, []),
        ({"zero_shot": True}, []),
        ({"pretraining": ""}, []),
        ({"pretraining": "HowTo100M"}, []),
        ({"pretraining": "CC3M+WebVid"}, [44.6]),
        ({"pretraining": "CC3M+COCO"}, []),
        ({"pretraining": "WebVid+HowTo100M+YT-Temporal"}, [46.8]),
        ({"pretraining": "CC3M+WebVid+YT-Temporal"}, []),
        ({"model_size": "small"}, [39.5]),
        ({"details": {"roll": "average"}}, []),
        ({"details": {"fine_tuned_on": {"benchmark": "msrvtt_qa"}}}, [42.9]),
        ({"details": {"fine_tuned_on": {"benchmark": "msrvtt_retrieval", "variant": "9k"}}}, []),
    ],
)
def test_result_is_compared_only_with_its_own_setting(
    changes: dict[str, Any], comparable: list[float]
) -> None:
    ours = result(**changes)
    assert [
        cell.value for cell in paper_cells("msrvtt_qa") if not cell.differences(ours)
    ] == comparable


def test_retrieval_rows_are_told_apart_by_what_was_trained() -> None:
    facts = {
        "benchmark": "msrvtt_retrieval",
        "variant": "9k",
        "scores": {"t2v/R@1": Score(37.0)},
        "views": 3,
    }
    for changes, task, expected in (
        ({}, {"rank": 0.0, "matching": 0.0}, [36.1]),
        ({}, {"rank": 1.0, "matching": 0.5}, [37.1]),
        ({"variant": "9k-joint"}, {"rank": 1.0, "matching": 0.0}, [37.1]),
        ({"views": 1}, {"rank": 1.0, "matching": 0.0}, []),
        ({}, {"rank": 1.0, "matching": 0.0, "rerank": "32"}, []),
    ):
        ours = result(**(facts | changes), settings={"task": task})
        cells = [
            cell
            for cell in paper_cells("msrvtt_retrieval", "9k")
            if cell.column.metric == "t2v/R@1"
        ]
        assert [cell.value for cell in cells if not cell.differences(ours)] == expected
    reasons = paper_cells("msrvtt_retrieval", "7k")[0].differences(result(**facts))
    assert reasons == ["variant 9k, not 7k", "pre-training webvid2m+HowTo100M, not HowTo100M"]


def test_zero_shot_choice_is_compared_by_the_match_logit() -> None:
    facts = {
        "benchmark": "msrvtt_choice",
        "split": "test",
        "protocol": "multiple_choice",
        "scores": {"accuracy": Score(78.0)},
        "zero_shot": True,
        "pretraining": "WebVid+HowTo100M",
    }
    (cell,) = [cell for cell in paper_cells("msrvtt_choice") if cell.value == 80.3]
    assert cell.differences(result(**facts, settings={"task": {"zero_shot_score": "match"}})) == []
    for task in ({"zero_shot_score": "log-odds"}, {}):  # an earlier version records nothing
        ours = result(**facts, settings={"task": task})
        assert cell.differences(ours) == ["zero-shot score log-odds, not match"]


def test_vcr_rows_are_told_apart_by_what_is_drawn() -> None:
    facts = {
        "benchmark": "vcr",
        "split": "val",
        "scores": {"q2a": Score(68.0)},
        "frames": 1,
        "pretraining": "HowTo100M",
    }
    for highlight, expected in (("masks", [68.4]), ("boxes", [68.4]), ("none", [65.2])):
        ours = result(**facts, settings={"task": {"highlight": highlight}})
        cells = [cell for cell in paper_cells("vcr") if cell.column.metric == "q2a"]
        assert [cell.value for cell in cells if not cell.differences(ours)] == expected


def test_data_sets_are_known_by_their_usual_names() -> None:
    assert (
        data_sets("webvid10m+HowTo + cc3m")
        == data_sets("CC,WebVid,ht100m")
        == {"WebVid", "HowTo100M", "CC3M"}
    )
    assert data_sets("yt_temporal180m+vg+ours") == {"YT-Temporal", "VisualGenome", "ours"}
    assert data_sets("") == frozenset()
