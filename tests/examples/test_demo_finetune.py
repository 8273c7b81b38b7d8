"""The fine-tuning demo: its table with chance, built from the scripts' own results, and the errors
for folders that it cannot use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from allinone.common.tables import markdown_table, plain_table
from allinone.examples import demo, demo_finetune
from allinone.examples.demo_clips import DemoClip
from allinone.examples.demo_tasks import write_msrvtt
from allinone.finetune.evaluation.results import EvaluationResult, Score
from tests.tools.conftest import tiny_model


def clip(number: int, split: str, who: str, doing: str, tone: str) -> DemoClip:
    path = demo_finetune.ROOT / "data" / "demo" / "videos" / "000001_000200" / "1.mp4"
    return DemoClip(
        number,
        split,
        f"{who} {doing} with {tone} skin tone",
        f"{who} {doing}",
        who,
        doing,
        "",
        "",
        tone,
        "People",
        path,
    )


def test_chance_of_questions_is_their_best_text_only_answer(tmp_path: Path) -> None:
    """Three of the four runners in training are women with dark skin, the fourth is a man with
    light skin."""
    train = [clip(k, "train", "woman", "running", "dark") for k in range(3)] + [
        clip(3, "train", "man", "running", "light")
    ]
    test = [
        clip(4, "test", "woman", "running", "light"),
        clip(5, "test", "man", "running", "light"),
    ]
    write_msrvtt([*train, clip(6, "val", "man", "running", "dark"), *test], tmp_path)
    # who is running? woman, woman: 1 of 2; what is the … doing? 2 of 2; skin tone of the woman:
    # dark, wrong; of the man: light, right
    assert demo_finetune.text_only_accuracy(tmp_path / "annotations") == {"accuracy": 100 * 4 / 6}
    assert demo_finetune.retrieval_chance(tmp_path / "annotations")["t2v/R@1"] == 50.0


def test_rows_show_chance_zero_shot_and_fine_tuned_scores(
    tmp_path: Path,
) -> None:
    def result(value: float) -> EvaluationResult:
        scores = {name: Score(value, value - 2, value + 2) for name in ("q2a", "qa2r", "q2ar")}
        return EvaluationResult(
            "vcr", "val", "vcr", False, 1, 1, 128, 40, "nano", 1, "c", "", 294, scores
        )

    (task,) = (task for task in demo_finetune.TASKS if task.script == "vcr")
    rows = demo_finetune.rows_of(task, tmp_path, result(50.0), result(26.0))
    assert rows[2] == ["vcr", "q2ar", "294", "6.2", "26.0", "50.0", "[48.0, 52.0]"]
    assert demo_finetune.rows_of(task, tmp_path, result(50.0), None)[0][4] == "–"
    shown = plain_table([demo_finetune.HEADER, *rows], left_aligned=2).splitlines()
    assert len({len(line) for line in shown}) == 1
    assert f"{markdown_table([demo_finetune.HEADER, *rows], left_aligned=2)}\n".count("\n") == 5


def test_a_second_call_shows_the_results_without_running(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    argv = ["--out", str(out), "--checkpoint", str(tmp_path / "model"), "--only", "k400_linear"]
    assert demo_finetune.main([*argv, "--steps", "2"]) == 0
    first = capfd.readouterr().out
    assert "$ python finetune/k400_linear.py --annotations" in first
    seconds = json.loads((out / "seconds.json").read_text())
    assert set(seconds) == {"data", "k400_linear"}
    assert (out / "report.html").is_file()
    assert "| k400_linear | top1 | 1" in (out / "table.md").read_text()
    assert demo_finetune.main(argv) == 0
    assert "$ python finetune/" not in capfd.readouterr().out
    assert json.loads((out / "seconds.json").read_text()) == seconds


def test_foreign_folders_and_missing_checkpoints_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("x")
    assert demo_finetune.main(["--out", str(tmp_path), "--fresh"]) == 2
    assert (tmp_path / "mine").exists()
    assert (
        demo_finetune.main(["--out", str(tmp_path / "new"), "--checkpoint", str(tmp_path / "none")])
        == 2
    )
    errors = capsys.readouterr().err
    assert "holds something that is not this demo" in errors
    assert "does not exist" in errors


def test_a_package_without_clips_names_the_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "CLIPS", tmp_path / "data" / "demo")
    for main in (demo.main, demo_finetune.main):
        assert main(["--out", str(tmp_path / "out")]) == 2
        assert "only in the source tree" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_steps_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (demo.main, demo_finetune.main):
        with pytest.raises(SystemExit) as exit_info:
            main(["--steps", "0"])
        assert exit_info.value.code == 2
        assert "--steps must be at least 1, got 0" in capsys.readouterr().err
