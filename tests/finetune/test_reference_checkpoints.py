"""Fine-tuned files of the original code are evaluated by the benchmarks' commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from allinone.finetune.evaluation.results import read_predictions, read_results
from tests.finetune.official import WRITERS
from tests.finetune.reference import objectives, random_tensors, reference_model
from tests.finetune.runs import Ended, FinetuneCommand, run_jobs
from tests.tools.lightning import save

PLAIN = "--eval-only --workers 0 --dali-threads 1 --ds-config zero1_fp32"
JOBS = {
    "qa": ("msrvtt_qa", "openend_vqa msrvtt", "msrvtt"),
    "qa without a list": ("msrvtt_qa", "openend_vqa msrvtt", "plain"),
    "choice": ("msrvtt_choice", "multiple_choice", "msrvtt"),
    "choice with a head for questions": ("msrvtt_choice", "openend_vqa msrvtt", "msrvtt"),
    "retrieval": ("msrvtt_retrieval", "ind_itc", "msrvtt"),
    "vcr": ("vcr", "vcr_q2a", "vcr"),
}
"""Job → (benchmark, objective of the original, made-up benchmark)."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    for name in ("msrvtt", "vcr"):
        WRITERS[name](folder / name)
    shutil.copytree(folder / "msrvtt", folder / "plain")
    (folder / "msrvtt" / "annotations" / "train_ans2label.json").write_text('{"dog": 1, "cat": 0}')
    for objective, shapes in objectives().items():
        head = random_tensors(shapes, seed=1, scale=0.1)
        if objective == "openend_vqa msrvtt":
            # three outputs: cat, dog, and one that is never a target; here the highest is the last
            head["vqa_classifier.4.weight"] = torch.zeros(3, 64)
            head["vqa_classifier.4.bias"] = torch.tensor([1.0, 0.0, 2.0])
        save(folder / f"{objective}.ckpt", {**reference_model(), **head})
    return folder


@pytest.fixture(scope="module")
def ended(root: Path) -> dict[str, Ended]:
    jobs = []
    for name, (benchmark, objective, sample) in JOBS.items():
        places = {
            "annotations": root / sample / "annotations",
            "media": root / sample / "media",
            "checkpoint": root / f"{objective}.ckpt",
            "out": root / "out" / name,
            "cache": root / "cache",
        }
        words = [word for option, path in places.items() for word in (f"--{option}", str(path))]
        jobs.append(FinetuneCommand(benchmark, [*words, *PLAIN.split()]))
    return dict(zip(JOBS, run_jobs(jobs), strict=True))


@pytest.mark.parametrize("name", ["qa", "choice", "retrieval", "vcr"])
def test_a_tuned_file_is_evaluated_as_fine_tuned(
    root: Path, ended: dict[str, Ended], name: str
) -> None:
    assert ended[name].codes == [0], ended[name].output[-3000:]
    ((_, result),) = read_results(root / "out" / name)
    assert result.scores
    assert not result.zero_shot
    assert "its file does not say on what" in ended[name].output


def test_answers_follow_the_class_numbers_of_the_official_list(
    root: Path, ended: dict[str, Ended]
) -> None:
    rows = read_predictions(root / "out" / "qa" / "predictions" / "msrvtt_qa-test.jsonl")
    assert {row["prediction"] for row in rows.values()} == {"cat"}, (
        "the class that is never a target has the highest score, and is left out"
    )
    ((_, result),) = read_results(root / "out" / "qa")
    assert json.loads(json.dumps(result.details))["vocabulary"] == 2


def test_a_head_that_cannot_be_used_is_named(ended: dict[str, Ended]) -> None:
    assert ended["qa without a list"].codes == [2]
    assert "train_ans2label.json" in ended["qa without a list"].output
    assert ended["choice with a head for questions"].codes == [2]
    assert "vqa_classifier with another head" in ended["choice with a head for questions"].output
