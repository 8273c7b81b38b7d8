"""The arrangement of TensorBoard's curves."""

from __future__ import annotations

import re

from allinone.engine.monitoring.tensorboard import layout


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
