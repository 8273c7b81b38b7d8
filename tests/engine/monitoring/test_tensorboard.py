"""The arrangement of TensorBoard's curves."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from allinone.engine.monitoring.tensorboard import layout, open_writer


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
