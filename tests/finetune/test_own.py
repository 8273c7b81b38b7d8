"""`finetune/own.py` on a folder and tables as a user has them: train, select, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from allinone.finetune.annotations.own import ReadOptions, read_splits
from allinone.finetune.evaluation.results import (
    EvaluationResult,
    read_predictions,
    read_results,
)
from allinone.finetune.own import BENCHMARKS, OwnLabels, chosen_task, main
from allinone.finetune.task_model.source import read_source_checkpoint, task_config
from allinone.finetune.tasks import task_class
from allinone.model import AllInOneConfig
from allinone.tools import report
from tests.data.media import write_image, write_video
from tests.finetune.runs import ROOT, Ended, FinetuneCommand, run_jobs
from tests.tools.conftest import tiny_model

PLAIN = (
    "--global-batch 4 --micro-batch 4 --workers 0 --dali-threads 1 --ds-config zero1_fp32 --steps 2"
    " --eval-every 1 --max-bad-share 0.5"
)
CLIPS = 14
TEN_HOURS_S = 36_000.0
LONG_QUESTION = " ".join(f"word{n}" for n in range(600))


def rows_of(task: str) -> list[dict[str, str]]:
    rows = []
    for n in range(CLIPS):
        row = {"path": f"clips/{n}.mp4"}
        if task in ("retrieval", "caption"):
            row["caption"] = f"clip number {n} of a dog"
        elif task == "labels":
            row["label"] = ("cat", "dog")[n % 2]
        else:
            row |= {"question": f"which animal is in clip {n}?", "answer": ("cat", "dog")[n % 2]}
        if task == "choice":
            row |= {"option_1": "dog", "option_2": "cat", "option_3": "bird"}
        rows.append(row | {"split": "test" if n < 3 else "val" if n < 6 else "train"})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for n in range(CLIPS):
        write_video(folder / "videos" / "clips" / f"{n}.mp4", frames=9, gop=3, first=16 * n)
    write_video(folder / "videos" / "one-frame.mp4", frames=1)
    # a frame every 1,000 s
    times = [1000.0 * n for n in range(37)]
    write_video(folder / "videos" / "ten-hours.mkv", frames=37, gop=1, times=times)
    write_image(folder / "videos" / "picture.jpg", 5)
    (folder / "videos" / "broken.mp4").write_bytes(b"not a video")
    tiny_model().save_pretrained(folder / "model")
    for task in BENCHMARKS:
        write_jsonl(folder / f"{task}.jsonl", rows_of(task))
    odd = [
        {"path": "one-frame.mp4", "split": "test"},
        {"path": "ten-hours.mkv", "start_s": "35000", "end_s": "36000", "split": "test"},
        {"path": "picture.jpg", "split": "test"},
        {"path": "missing.mp4", "split": "test"},
        {"path": "broken.mp4", "split": "test"},
        {"path": "clips/0.mp4", "question": LONG_QUESTION, "split": "test"},
        {"path": "ten-hours.mkv", "start_s": "50000", "split": "test"},
    ]
    common = {"question": "what is it?", "answer": "dog"}
    write_jsonl(folder / "odd.jsonl", rows_of("qa") + [common | row for row in odd])
    one = [{"path": f"clips/{n}.mp4", "label": "cat"} for n in range(CLIPS)]
    write_jsonl(folder / "one.jsonl", one)
    return folder


def guide_command(root: Path) -> FinetuneCommand:
    """The command of docs/guides/fine-tune.md with other places, and few steps."""
    text = (ROOT / "docs/guides/fine-tune.md").read_text().split("## Your own annotations")[1]
    line = text.split("```sh\n")[1].splitlines()[0]
    for place, path in (
        ("qa.csv", "qa.jsonl"),
        ("videos", "videos"),
        ("runs/mine", "model"),
        ("runs/qa", "out/qa"),
    ):
        line = line.replace(f" {place}", f" {root / path}")
    words = line.split()
    assert words[:3] == ["allinone", "finetune", "own"]
    return FinetuneCommand("own", [*words[3:], "--cache", str(root / "cache"), *PLAIN.split()])


def command(root: Path, task: str, table: str, out: str, *options: str) -> FinetuneCommand:
    places = {
        "annotations": root / table,
        "media": root / "videos",
        "checkpoint": root / "model",
        "out": root / "out" / out,
        "cache": root / "cache",
    }
    argv = [text for name, path in places.items() for text in (f"--{name}", str(path))]
    return FinetuneCommand("own", ["--task", task, *argv, *PLAIN.split(), *options])


@pytest.fixture(scope="module")
def ended(root: Path) -> dict[str, Ended]:
    jobs = {task: command(root, task, f"{task}.jsonl", task) for task in BENCHMARKS}
    jobs["qa"] = guide_command(root)
    views = ("--views", "2", "--image-size", "64", "--frames", "2")
    jobs["odd"] = command(root, "qa", "odd.jsonl", "odd", *views)
    jobs["one"] = command(root, "labels", "one.jsonl", "one")
    jobs["resumed"] = command(root, "labels", "labels.jsonl", "labels")
    jobs["evaluated"] = command(
        root, "labels", "labels.jsonl", "evaluated", "--eval-only",
        "--checkpoint", str(root / "out" / "labels"),
    )  # fmt: skip
    return dict(zip(jobs, run_jobs(list(jobs.values())), strict=True))


def result_of(root: Path, out: str) -> EvaluationResult:
    ((_, result),) = read_results(root / "out" / out)
    return result


@pytest.mark.parametrize(
    ("task", "score"),
    [
        ("retrieval", "t2v/R@1"),
        ("caption", "CIDEr-D"),
        ("qa", "accuracy"),
        ("choice", "accuracy"),
        ("labels", "top1"),
    ],
)
def test_every_task_trains_selects_and_evaluates(
    task: str, score: str, root: Path, ended: dict[str, Ended]
) -> None:
    if task == "caption":
        pytest.importorskip("pycocoevalcap", reason="captions are scored by it")
    assert ended[task].codes == [0], ended[task].output[-3000:]
    result = result_of(root, task)
    assert (result.name, result.items, result.missing) == (f"own-{task}-test", 3, ())
    assert (score if task != "retrieval" else "t2v/MnR") in result.scores
    assert (root / "out" / task / "best.json").is_file()
    rows = read_predictions(root / "out" / task / "predictions" / f"own-{task}-test.jsonl")
    assert len(rows) == (6 if task == "retrieval" else 3), "a row per text and per clip"


def test_answers_and_classes_are_saved_with_the_weights(
    root: Path, ended: dict[str, Ended]
) -> None:
    for task in ("qa", "labels"):
        (config,) = (root / "out" / task / "best").glob("*/weights/config.json")
        saved = AllInOneConfig.from_pretrained(config.parent).task
        assert sorted(saved["labels"]) == ["cat", "dog"]
        assert (saved["benchmark"], saved["variant"]) == ("own", task)


def test_the_same_command_resumes(root: Path, ended: dict[str, Ended]) -> None:
    assert ended["resumed"].codes == [0], ended["resumed"].output[-3000:]
    assert "is done: step 2 of 2" in ended["resumed"].output


def test_a_trained_run_is_evaluated_alone(root: Path, ended: dict[str, Ended]) -> None:
    assert ended["evaluated"].codes == [0], ended["evaluated"].output[-3000:]
    assert result_of(root, "evaluated").scores == result_of(root, "labels").scores


def test_unusual_and_unusable_media_are_scored_and_named(
    root: Path, ended: dict[str, Ended]
) -> None:
    assert ended["odd"].codes == [0], ended["odd"].output[-3000:]
    result = result_of(root, "odd")
    assert (result.items, result.views, result.frames, result.image_size) == (10, 2, 2, 64)
    missing = {item.media: item.reason for item in result.missing}
    assert set(missing) == {"missing", "broken", "ten-hours"}
    assert "no such file" in missing["missing"]
    assert "shown from 50000 s on" in missing["ten-hours"]
    assert len(result.missing) == 3, "the part of ten-hours.mkv that exists is scored"
    assert result.details["texts_shortened"] == 1
    note = next(note for note in result.details["notes"] if "--max-text-len" in note)
    assert note.startswith("1 of 10 texts have more than")


def test_one_class_is_refused(ended: dict[str, Ended]) -> None:
    assert ended["one"].codes == [2]
    assert "the same answer, 'cat'; there is nothing to learn" in ended["one"].output


def test_ten_thousand_classes_have_an_output_each(root: Path) -> None:
    table = root / "many.csv"
    rows = "".join(f"clips/{n % CLIPS}.mp4,{n},{n + 1},class {n}\n" for n in range(10_000))
    table.write_text(f"path,start_s,end_s,label\n{rows}")
    options = ReadOptions("labels", root, 0.1, 0.1, (), by_segment=True)
    train = read_splits(table, options)["train"]
    task = task_class("action_recognition")(OwnLabels(probe="full"))
    source = read_source_checkpoint(root / "model")
    task.setup(train, source, eval_only=False)
    assert len(task.trainable(train).items) == 10_000
    build = task.head_spec(zero_shot=False).build
    assert build is not None
    head = build(task_config(source, None, {}))
    assert head(torch.zeros(2, 1, source.config.hidden_size)).shape == (2, 1, 10_000)


def test_own_tasks_have_pages_of_right_and_wrong_items(
    root: Path, ended: dict[str, Ended], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(root / "out" / task) for task in (*BENCHMARKS, "odd")]
    assert report.main([*runs, "--out", str(root / "report")]) == 0
    assert "warning" not in capsys.readouterr().out
    for task in BENCHMARKS:
        page = (root / "out" / task / "results" / f"own-{task}-test.html").read_text()
        assert page.count("data:image/webp") >= 3
        if task == "caption":
            assert "the model: " in page
            assert "clip number 0 of a dog" in page
            continue
        assert "Wrong:" in page
        assert "Right:" in page
    odd = (root / "out" / "odd" / "results" / "own-qa-test.html").read_text()
    assert "not shown to the model" in odd
    assert "missing.mp4: cannot be shown" in odd


def test_missing_task_and_unknown_task_name_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--task", "poem"]):
        assert main(words) == 2
        assert "--task retrieval, caption, qa, choice, labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "task"),
    [
        (["--task", "qa"], "qa"),
        (["--task=labels"], "labels"),
        (["--lr", "1"], ""),
        (["--task"], ""),
    ],
)
def test_task_is_found_before_the_options_are_read(words: list[str], task: str) -> None:
    assert chosen_task(words) == task


def test_config_file_of_a_run_chooses_the_task(root: Path, ended: dict[str, Ended]) -> None:
    for task in ("qa", "labels"):
        assert chosen_task(["--config", str(root / "out" / task / "run.json")]) == task
