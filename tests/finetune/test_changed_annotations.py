"""A resumed fine-tuning run must find its annotations and labels unchanged, wherever they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.finetune.official import WRITERS
from tests.finetune.runs import Ended, FinetuneCommand, run_jobs
from tests.finetune.test_runs import PLAIN
from tests.tools.conftest import tiny_model


def swap_answers(path: Path) -> None:
    """Two answers of the training split change places: cat questions become dog questions."""
    rows = json.loads(path.read_text())
    other = {"dog": "cat", "cat": "dog"}
    for row in rows:
        row["answer"] = other[row["answer"]]
    path.write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed")
    WRITERS["msrvtt"](folder / "msrvtt")
    tiny_model().save_pretrained(folder / "model")
    shutil.copytree(folder / "msrvtt", folder / "staged")
    shutil.copytree(folder / "model", folder / "other model")
    shutil.copytree(folder / "msrvtt", folder / "swapped")
    swap_answers(folder / "swapped" / "annotations" / "train_qa.json")
    return folder


def command(
    root: Path, out: str, data: str, *more: str, kill_at: int = 0, model: str = ""
) -> FinetuneCommand:
    places = {
        "annotations": root / data / "annotations",
        "media": root / data / "media",
        "checkpoint": root / (model or "model"),
        "out": root / "out" / out,
        "cache": root / f"cache of {data}",
    }
    argv = [text for name, path in places.items() for text in (f"--{name}", str(path))]
    return FinetuneCommand("msrvtt_qa", [*argv, *PLAIN.split(), "--steps", "4", *more], 1, kill_at)


@pytest.fixture(scope="module")
def ended(root: Path) -> dict[str, Ended]:
    jobs = {}
    for name in ("moved", "swapped"):
        jobs[f"{name}, killed"] = command(root, name, "msrvtt", kill_at=4)
    jobs["moved"] = command(root, "moved", "staged", model="other model")
    jobs["swapped"] = command(root, "swapped", "swapped")
    jobs["accepted"] = command(root, "swapped", "swapped", "--accept-changed-data")
    return dict(zip(jobs, run_jobs(list(jobs.values())), strict=True))


def test_staged_annotations_media_and_weights_continue(ended: dict[str, Ended]) -> None:
    assert ended["moved, killed"].codes == [-9]
    assert ended["moved"].codes == [0], ended["moved"].output


def test_answers_that_changed_places_are_refused(ended: dict[str, Ended]) -> None:
    assert ended["swapped"].codes == [2], ended["swapped"].output
    said = ended["swapped"].output
    assert "the annotations of split train: changed since the run started" in said
    assert "train_qa.json" in said
    assert ended["accepted"].codes == [0], ended["accepted"].output
