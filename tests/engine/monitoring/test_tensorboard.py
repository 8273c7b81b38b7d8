"""The arrangement of TensorBoard's curves."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from allinone.engine.monitoring.tensorboard import (
    TensorBoardWriter,
    layout,
    open_writer,
    sub_run,
)


def test_every_curve_is_in_exactly_one_chart() -> None:
    metrics = [
        "mlm_loss",
        "mlm_accuracy",
        "mlm_loss/webvid/train",
        "mlm_loss/howto/train",
        "vtm_loss",
        "sample_share/webvid/train",
    ]
    charts = [
        (title, kind, tags)
        for part in layout(metrics, "FMA = 2").values()
        for title, (kind, tags) in part.items()
    ]
    tags = [f"train/{name}" for name in metrics]
    tags += [
        f"run/{name}"
        for name in (
            "lr",
            "grad_norm",
            "clip_rate",
            "skipped_steps",
            "samples_per_s",
            "mfu",
            "data_wait",
            "memory_bytes",
        )
    ]
    tags += [
        "run/bad_clips",
        "run/step_s",
        "eval/val/text_to_video_R@1",
        "eval/val/video_to_text_MdR",
        "eval/val/t2v/MdR",
        "eval/val/v2t/R@5",
        "eval/val/mlm_accuracy",
    ]
    for tag in tags:
        assert (
            sum(
                any(re.match(pattern, tag) for pattern in patterns)
                for _, kind, patterns in charts
                if kind == "Multiline"
            )
            == 1
        ), tag
    assert [patterns for _, kind, patterns in charts if kind == "Margin"] == [
        [f"ranks/{name}/{which}" for which in ("median", "min", "max")]
        for name in ("own_s", "wait_s")
    ]
    assert any("FMA = 2" in title for title, *_ in charts)


@pytest.mark.parametrize("hours_back", [0, 1, 24])
def test_a_clock_that_was_set_back_hides_no_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours_back: int
) -> None:
    """Three processes of one run; each continues from step 10 or 15 with the clock set back."""
    now = time.time()
    for number, start in enumerate((0, 10, 15)):
        clock = SimpleNamespace(time=lambda at=now - number * hours_back * 3600: at)
        monkeypatch.setattr(event_file_writer, "time", clock)
        writer = open_writer(tmp_path, purge_step=start + 1)
        for step in range(start + 1, 21):
            writer.add_scalar("loss", float(number), step)
        writer.close()
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    points = {event.step: event.value for event in board.Scalars("loss")}
    assert len(board.Scalars("loss")) == 20
    assert points == {step: float((step > 10) + (step > 15)) for step in range(1, 21)}


def points(folder: Path, tag: str) -> dict[str, list[int]]:
    """Folder below the run's → steps of a tag, as TensorBoard itself reads them."""
    found = {}
    for path in {event.parent for event in folder.rglob("events*")}:
        board = EventAccumulator(str(path))
        board.Reload()
        if tag in board.Tags()["scalars"]:
            found[path.relative_to(folder).name] = [event.step for event in board.Scalars(tag)]
    return found


def write(folder: Path, start: int, end: int) -> None:
    """A process of a run that continues after a step."""
    writer = TensorBoardWriter(folder, start, "FMA = 2")
    if start == 0:
        writer.scalars(0, {"eval/val/mlm_accuracy": 0.0, "eval/val/text_to_video_R@1": 1.0})
    for step in range(start + 1, end + 1):
        losses = {"train/mlm_loss": 1.0, "train/mlm_accuracy": 0.5, "train/vtm_loss": 2.0}
        writer.scalars(step, {**losses, "run/lr": 0.1})
    writer.close()


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("train/mlm_loss", "mlm"),
        ("train/mlm_accuracy", "mlm"),
        ("train/image_mlm_loss", "image_mlm"),
        ("train/vtc_text_to_video_accuracy", "vtc"),
        ("train/patch_keep", ""),
        ("train/mlm_loss/webvid/train", "webvid_train"),
        ("train/sample_share/../../x", "______x"),
        ("run/lr", ""),
        ("ranks/own_s/max", ""),
        ("eval/val/mlm_accuracy", "mlm"),
        ("eval/val/text_to_video_R@10", "R@10"),
        ("eval/val/t2v/R@1", "R@1"),
        ("eval/val/t2v/R@5", ""),
        ("eval/val/t2v/R@50", "R@50"),
        ("eval/val/accuracy", ""),
        ("eval/ema/val/mlm_accuracy", "ema_mlm"),
        ("eval/ema/val/text_to_video_R@5", "ema"),
        ("eval/val/video_to_text_MdR", ""),
    ],
)
def test_curves_of_one_chart_are_in_folders_of_their_own(tag: str, name: str) -> None:
    assert sub_run(tag, ["mlm_loss", "vtc_loss", "image_mlm_loss"]) == name


def test_every_line_of_a_chart_has_another_colour(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    assert points(tmp_path, "train/mlm_loss") == {"mlm": [1, 2, 3]}
    assert points(tmp_path, "train/vtm_loss") == {"vtm": [1, 2, 3]}
    # evaluated before the first record named the objectives
    assert points(tmp_path, "eval/val/mlm_accuracy") == {"mlm": [0]}
    assert points(tmp_path, "run/lr") == {"": [1, 2, 3]}


@pytest.mark.parametrize("start", [0, 4])
def test_no_folder_shows_a_step_twice_after_a_restart(tmp_path: Path, start: int) -> None:
    write(tmp_path, 0, 6)
    write(tmp_path, start, 8)
    for tag, name in (("train/mlm_loss", "mlm"), ("train/vtm_loss", "vtm"), ("run/lr", "")):
        assert points(tmp_path, tag) == {name: list(range(1, 9))}
    assert points(tmp_path, "eval/val/text_to_video_R@1") == {"R@1": [0]}


def test_folders_without_new_values_lose_the_steps_to_repeat(tmp_path: Path) -> None:
    write(tmp_path, 0, 6)
    TensorBoardWriter(tmp_path, 4, "FMA = 2").close()
    assert points(tmp_path, "train/vtm_loss") == {"vtm": [1, 2, 3, 4]}


def test_a_run_of_an_earlier_version_continues_without_doubled_steps(tmp_path: Path) -> None:
    earlier = open_writer(tmp_path, purge_step=1)
    for step in range(1, 7):
        earlier.add_scalar("train/mlm_loss", 1.0, step)
        earlier.add_scalar("run/lr", 0.1, step)
    earlier.close()
    write(tmp_path, 4, 8)
    assert points(tmp_path, "train/mlm_loss") == {"": [1, 2, 3, 4], "mlm": [5, 6, 7, 8]}
    assert points(tmp_path, "run/lr") == {"": list(range(1, 9))}
