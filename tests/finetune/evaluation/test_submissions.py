"""Submission files have the documented format, and what a server would refuse is refused before
writing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from allinone.finetune.evaluation.submissions import SubmissionError, tvqa_json, vcr_csv, vqav2_json

OFFICIAL_HEADER = (
    "annot_id,answer_0,answer_1,answer_2,answer_3,"
    "rationale_conditioned_on_a0_0,rationale_conditioned_on_a0_1,rationale_conditioned_on_a0_2,rationale_conditioned_on_a0_3,"
    "rationale_conditioned_on_a1_0,rationale_conditioned_on_a1_1,rationale_conditioned_on_a1_2,rationale_conditioned_on_a1_3,"
    "rationale_conditioned_on_a2_0,rationale_conditioned_on_a2_1,rationale_conditioned_on_a2_2,rationale_conditioned_on_a2_3,"
    "rationale_conditioned_on_a3_0,rationale_conditioned_on_a3_1,rationale_conditioned_on_a3_2,rationale_conditioned_on_a3_3"
)


def test_vcr_rows_have_twenty_probabilities_in_official_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    answers = random.normal(size=(3, 4)).astype(np.float32)
    rationales = random.normal(size=(3, 4, 4)).astype(np.float32)
    answers[1], answers[2] = 1000.0, np.nan  # no overflow; a missing question may hold anything
    ids = ["test-2", "test-0", "test-1"]
    vcr_csv(
        tmp_path / "out" / "vcr.csv", ids, answers, rationales, expected=ids, missing=["test-1"]
    )
    vcr_csv(
        tmp_path / "less.csv",
        ids[:2],
        answers[:2],
        rationales[:2],
        expected=ids,
        missing=["test-1"],
    )
    assert (tmp_path / "less.csv").read_bytes() == (tmp_path / "out" / "vcr.csv").read_bytes()
    lines = (tmp_path / "out" / "vcr.csv").read_text().splitlines()
    assert lines[0] == OFFICIAL_HEADER
    rows = {row["annot_id"]: row for row in csv.DictReader(lines)}
    assert list(rows) == ["test-0", "test-1", "test-2"]
    for row in rows.values():
        for group in ("answer", *(f"rationale_conditioned_on_a{answer}" for answer in range(4))):
            assert sum(float(row[f"{group}_{option}"]) for option in range(4)) == pytest.approx(1)
    chances = [
        float(rows["test-2"][f"rationale_conditioned_on_a3_{option}"]) for option in range(4)
    ]
    assert chances == pytest.approx(
        (np.exp(rationales[0, 3]) / np.exp(rationales[0, 3]).sum()).tolist()
    )
    assert {rows["test-1"][name] for name in OFFICIAL_HEADER.split(",")[1:]} == {"0.25"}


def test_vqav2_and_tvqa_files_name_every_question_once(tmp_path: Path) -> None:
    vqav2_json(
        tmp_path / "vqa.json",
        ["262148002", "42000", "9"],
        ["café", None, "2"],
        expected={"9", "42000", "262148002"},
    )
    assert json.loads((tmp_path / "vqa.json").read_text()) == [
        {"question_id": 9, "answer": "2"},
        {"question_id": 42000, "answer": ""},
        {"question_id": 262148002, "answer": "café"},
    ]
    tvqa_json(tmp_path / "tvqa.json", ["136000", "7"], [4, None], expected={"7", "136000"})
    assert json.loads((tmp_path / "tvqa.json").read_text()) == {"7": 0, "136000": 4}


SCORES = np.zeros((2, 4)), np.zeros((2, 4, 4))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: vqav2_json(path, ["1", "1"], ["a", "b"], expected={"1", "2"}),
            r"1 repeated \(1\); 1 missing \(2\)",
        ),
        (
            lambda path: vqav2_json(path, ["1", "9"], ["a", "b"], expected={"1"}),
            r"1 unknown to the split \(9\)",
        ),
        (lambda path: vqav2_json(path, ["1"], [], expected={"1"}), "0 predictions for 1 ids"),
        (
            lambda path: vqav2_json(path, ["one"], ["a"], expected={"one"}),
            "must be integers, got 'one'",
        ),
        (
            lambda path: tvqa_json(path, ["1"], [5], expected={"1"}),
            "option 5 of question 1 is outside 0..4",
        ),
        (
            lambda path: vcr_csv(path, ["a"], *SCORES, expected={"a"}),
            r"\[N, 4\] and \[N, 4, 4\] for 1 questions, got \[2, 4\]",
        ),
        (
            lambda path: vcr_csv(
                path, ["a", "b"], SCORES[0] / [[np.inf], [np.nan]], SCORES[1], expected={"a", "b"}
            ),
            "example b",
        ),
    ],
)
def test_what_a_server_would_refuse_leaves_no_file(
    write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SubmissionError, match=message):
        write(tmp_path / "file")
    assert not (tmp_path / "file").exists()
