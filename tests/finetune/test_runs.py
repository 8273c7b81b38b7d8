"""Commands of benchmarks end to end on made-up data: every task, the same bytes at any world size,
after kills and with damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allinone.engine.checkpoint.weights import best_weights
from allinone.finetune.evaluation.results import read_predictions, read_results
from tests.finetune.official import WRITERS
from tests.finetune.runs import Ended, FinetuneCommand, run_jobs
from tests.tools.conftest import tiny_model

PLAIN = (
    "--global-batch 4 --micro-batch 2 --workers 0 --ds-config zero1_fp32 --log-every 1 --save-every"
    " 2 --eval-every 2 --lr 1e-2 --eval-batch 3"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("msrvtt", "vcr", "kinetics"):
        WRITERS[name](folder / name)
    tiny_model().save_pretrained(folder / "model")
    broken = folder / "msrvtt" / "media" / "video7011.mp4"
    broken.write_bytes(broken.read_bytes()[:300])  # an interrupted download of a test video
    return folder


def command(
    root: Path,
    benchmark: str,
    out: str,
    *more: str,
    world: int = 1,
    kill_at: int = 0,
    poison: int = -1,
    data: str = "",
    checkpoint: str = "model",
) -> FinetuneCommand:
    sample = root / (data or "msrvtt")
    places = {
        "annotations": sample / "annotations",
        "media": sample / "media",
        "checkpoint": root / checkpoint,
        "out": root / "out" / out,
    }
    argv = [text for name, path in places.items() for text in (f"--{name}", str(path))]
    return FinetuneCommand(
        benchmark,
        [*argv, "--cache", str(root / "cache"), *PLAIN.split(), *more],
        world,
        kill_at,
        poison,
    )


@pytest.fixture(scope="module")
def ended(root: Path) -> dict[str, Ended]:
    """All launched runs of this file, by name."""
    qa = ("--steps", "4", "--views", "2")
    rank = ("--steps", "2", "--rank", "1", "--negatives", "2", "--rerank", "2")
    jobs = {
        "qa": command(root, "msrvtt_qa", "qa", *qa),
        "qa killed": command(root, "msrvtt_qa", "qa_killed", *qa, kill_at=4),
        "qa continued": command(root, "msrvtt_qa", "qa_killed", *qa),
        "retrieval": command(root, "msrvtt_retrieval", "retrieval", *rank, "--variant", "full"),
        "choice": command(root, "msrvtt_choice", "choice", "--eval-only"),
        "choice odds": command(
            root, "msrvtt_choice", "odds", "--eval-only", "--zero-shot-score", "log-odds"
        ),
        "patience": command(
            root, "msrvtt_qa", "patience", "--steps", "40", "--patience", "1", "--lr", "0"
        ),
        "vcr": command(root, "vcr", "vcr", "--steps", "2", "--max-text-len", "32", data="vcr"),
        "k400 zero3": command(
            root,
            "k400_linear",
            "k400",
            "--steps",
            "2",
            "--ds-config",
            "zero3_fp32",
            data="kinetics",
            world=2,
        ),
    }
    for stage in ("zero1", "zero3"):
        both = (*rank, "--variant", "full", "--rerank-ways", "both", "--ds-config", f"{stage}_fp32")
        jobs[f"retrieval {stage}"] = command(
            root, "msrvtt_retrieval", f"retrieval_{stage}", *both, world=2
        )
    for world in (1, 2, 3):
        jobs[f"qa at {world}"] = command(
            root,
            "msrvtt_qa",
            f"qa_{world}",
            "--eval-only",
            "--views",
            "2",
            checkpoint="out/qa",
            world=world,
        )
        jobs[f"retrieval at {world}"] = command(
            root,
            "msrvtt_retrieval",
            f"retrieval_{world}",
            "--eval-only",
            "--rerank",
            "2",
            "--variant",
            "full",
            world=world,
        )
    once = ("--steps", "2", "--rank", "1", "--negatives", "2", "--variant", "full")
    jobs["poisoned"] = command(root, "msrvtt_retrieval", "poisoned", *once, world=2, poison=3)
    jobs["cut off"] = command(
        root, "msrvtt_qa", "qa_cut", "--eval-only", checkpoint="out/qa", kill_at=-2
    )
    jobs["cut off, again"] = command(
        root, "msrvtt_qa", "qa_cut", "--eval-only", checkpoint="out/qa"
    )
    return dict(zip(jobs, run_jobs(list(jobs.values())), strict=True))


def predictions(root: Path, out: str) -> bytes:
    (path,) = (root / "out" / out / "predictions").glob("*.jsonl")
    return path.read_bytes()


@pytest.mark.parametrize(
    "name", ["qa", "qa continued", "retrieval", "choice", "vcr", "k400 zero3", "cut off, again"]
)
def test_every_task_trains_and_evaluates(ended: dict[str, Ended], name: str) -> None:
    assert set(ended[name].codes) == {0}, ended[name].output


def test_killed_and_continued_run_gives_the_same_predictions(
    root: Path, ended: dict[str, Ended]
) -> None:
    assert ended["qa killed"].codes == [-9]
    once, again = (
        load_file(best_weights(root / "out" / out) / "model.safetensors")
        for out in ("qa", "qa_killed")
    )
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert predictions(root, "qa") == predictions(root, "qa_killed")


def test_a_run_that_stops_early_says_so(root: Path, ended: dict[str, Ended]) -> None:
    # nothing is learned at a learning rate of 0: the second validation is no better
    assert ended["patience"].codes == [0], ended["patience"].output
    assert "training stops early at step 4: the last 1 evaluations" in ended["patience"].output
    ((_, result),) = read_results(root / "out" / "patience")
    assert result.scores, "the best weights are evaluated"
    assert "stops early" not in ended["qa"].output


def test_zero_shot_choice_reports_both_scores(root: Path, ended: dict[str, Ended]) -> None:
    found = {}
    for out, chosen in (("choice", "match"), ("odds", "log_odds")):
        ((_, result),) = read_results(root / "out" / out)
        ways = {name: score.value for name, score in result.scores.items()}
        assert ways["accuracy"] == ways[f"accuracy_{chosen}"]
        found[out] = ways
        (path,) = (root / "out" / out / "predictions").glob("*.jsonl")
        rows = list(read_predictions(path).values())
        for name, value in ways.items():
            hits = [row["measures"][name] for row in rows]
            assert value == pytest.approx(100 * sum(hits) / len(hits))
    assert ended["choice odds"].codes == [0]
    for name in ("accuracy_match", "accuracy_log_odds"):
        assert found["choice"][name] == found["odds"][name]


@pytest.mark.parametrize("task", ["qa", "retrieval"])
def test_worlds_of_one_two_and_three_ranks_give_the_same_bytes(
    root: Path, ended: dict[str, Ended], task: str
) -> None:
    for world in (1, 2, 3):
        assert set(ended[f"{task} at {world}"].codes) == {0}, ended[f"{task} at {world}"].output
    one, two, three = (predictions(root, f"{task}_{world}") for world in (1, 2, 3))
    assert one == two == three
    rows = {"qa": 8, "retrieval": 4 + 12}  # questions; videos and their captions
    assert len(one.splitlines()) == rows[task]


def test_evaluation_after_training_equals_that_of_best_weights(
    root: Path, ended: dict[str, Ended]
) -> None:
    assert predictions(root, "qa") == predictions(root, "qa_1")


def test_video_that_fails_in_evaluation_counts_as_wrong(
    root: Path, ended: dict[str, Ended]
) -> None:
    ((_, result),) = read_results(root / "out" / "qa")
    rows = read_predictions(root / "out" / "qa" / "predictions" / "msrvtt_qa-test.jsonl")
    gone = {item.item for item in result.missing}
    assert gone
    assert gone == {name for name, row in rows.items() if row["media"] == "video7011"}
    assert all(rows[name]["prediction"] is None for name in gone)
    assert all(rows[name]["measures"]["accuracy"] == 0 for name in gone)
    assert result.items == len(rows)
    assert "video7011" in ended["qa"].output


def test_an_evaluation_that_was_cut_off_continues_from_its_cache(
    root: Path, ended: dict[str, Ended]
) -> None:
    assert ended["cut off"].codes == [-9]
    out = root / "out" / "qa_cut"
    assert len(list((out / "cache").rglob("*.npz"))) == 3  # 8 questions in batches of 3
    assert [path.name for path in (out / "predictions").iterdir()] == ["msrvtt_qa-test.jsonl"]


def test_the_item_that_makes_a_loss_nan_is_named(root: Path, ended: dict[str, Ended]) -> None:
    """The contrastive loss spans both ranks, and the item is found nevertheless."""
    assert set(ended["poisoned"].codes) == {0}, ended["poisoned"].output
    report = json.loads(
        (root / "out" / "poisoned" / "anomalies" / "step-00000001" / "report.json").read_text()
    )
    batches = [batch for rank in report["ranks"] for batch in rank["micro_batches"]]
    met = {
        batch["position"] + row: clip
        for batch in batches
        for row, clip in enumerate(batch["clips"])
    }
    assert [
        (entry["rank"], entry["position"], entry["clip"])
        for entry in report["replay"]["offending_clips"]
    ] == [(1, 3, met[3])]


def test_only_head_and_pooler_move_under_zero_3_if_frozen(
    root: Path, ended: dict[str, Ended]
) -> None:
    before = load_file(root / "model" / "model.safetensors")
    after = load_file(best_weights(root / "out" / "k400") / "model.safetensors")
    moved = {
        name
        for name in before.keys() & after.keys()
        if before[name].shape == after[name].shape and not torch.equal(before[name], after[name])
    }
    assert moved == {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}
    assert any(name.startswith("task_head.") for name in after)


def test_rerank_both_ways_scores_the_same_under_zero_1_and_3(
    root: Path, ended: dict[str, Ended]
) -> None:
    rows = {}
    for stage in ("zero1", "zero3"):
        assert set(ended[f"retrieval {stage}"].codes) == {0}, ended[f"retrieval {stage}"].output
        assert "val/t2v/R@1" in (root / "out" / f"retrieval_{stage}" / "history.jsonl").read_text()
        (path,) = (root / "out" / f"retrieval_{stage}" / "predictions").glob("*.jsonl")
        rows[stage] = list(map(json.loads, path.read_text().splitlines()))
    numbers = {
        stage: [(row.pop("measures"), row.pop("score", [])) for row in rows[stage]]
        for stage in rows
    }
    assert rows["zero1"] == rows["zero3"]
    for (measures, scores), (same_measures, same_scores) in zip(*numbers.values(), strict=True):
        assert measures == pytest.approx(same_measures)
        assert scores == pytest.approx(same_scores, abs=1e-4)
    ((_, result),) = read_results(root / "out" / "retrieval_zero3")
    assert result.details["rerank"]["pairs"] > 0


def test_vcr_writes_twenty_columns_for_the_server(root: Path, ended: dict[str, Ended]) -> None:
    header, *rows = (root / "out" / "vcr" / "predictions" / "vcr.csv").read_text().splitlines()
    assert len(header.split(",")) == 21
    ((_, result),) = read_results(root / "out" / "vcr")
    assert len(rows) == result.items
    assert set(result.scores) == {"q2a", "qa2r", "q2ar"}


def test_a_result_says_what_it_was_measured_with(root: Path, ended: dict[str, Ended]) -> None:
    ((_, result),) = read_results(root / "out" / "choice")
    assert result.zero_shot
    assert result.protocol == "multiple_choice"
    ((_, result),) = read_results(root / "out" / "qa")
    assert not result.zero_shot
    assert (result.views, result.frames) == (2, 3)
    assert json.loads((root / "out" / "qa" / "run.json").read_text())["train"]["steps"] == 4
