"""Records of history.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from allinone.common.formatting import finite
from allinone.engine.callbacks.reporting import progress_line
from allinone.engine.config import TrainConfig
from allinone.engine.monitoring.accumulator import IntervalMetrics
from allinone.engine.monitoring.history import RecordBuilder

NAN = math.nan


def record(norms: Sequence[float], clip_grad: float, skipped: int | None = None) -> dict[str, Any]:
    """The record of one interval with these gradient norms."""
    steps = list(range(1, 1 + len(norms)))
    skips = [step == skipped for step in steps]
    zeros = [0.0] * len(norms)
    metrics = IntervalMetrics(steps, {}, skips, zeros, list(norms), [], 77, 5, [0.0], [0.0], 0)
    builder = RecordBuilder(TrainConfig(clip_grad=clip_grad), ["host"], 1.0, (1.0, "made up"))
    return builder.build(steps[-1], metrics, 1.0, 0)


@pytest.mark.parametrize(
    ("norms", "clip_grad", "skipped", "limit", "rate"),
    [
        ((0.5, 1.5, 3.0, 1.0), 1.0, None, 1.0, 0.5),
        ((0.5, 1.5, 3.0, 1.0), 2.0, None, 2.0, 0.25),
        ((0.5, 1.5, 3.0, 1.0), 0.0, None, 1.0, 0.5),
        ((0.5, math.inf, 3.0, 1.0), 0.0, 2, 1.0, 1 / 3),
        ((0.5, 1.5, NAN, 1.0), 0.0, 3, 1.0, 1 / 3),
    ],
)
def test_clip_rate_is_the_share_of_steps_above_the_limit(
    norms: Sequence[float], clip_grad: float, skipped: int | None, limit: float, rate: float
) -> None:
    found = record(norms, clip_grad, skipped)
    assert found["clip_norm"] == limit
    assert found["clip_rate"] == pytest.approx(rate)
    assert f"norm > {limit:g}: {100 * rate:.0f} %" in progress_line(found, 10)


def test_mfu_counts_the_flops_of_the_intervals_own_steps() -> None:
    steps, config = [3, 4, 5, 6], TrainConfig(global_batch=8)
    metrics = IntervalMetrics(steps, {}, [False] * 4, [0.0] * 4, [0.0] * 4, [], 0, 0, [0], [0], 0)
    # 100 FLOPs per clip up to step 5 and 200 from then on
    flops_at = {3: 100.0, 4: 100.0, 5: 100.0, 6: 200.0}.__getitem__
    builder = RecordBuilder(config, ["host"], 150.0, (1000.0, "made up"), flops_at)
    found = builder.build(6, metrics, elapsed_s=8.0, skipped_steps=0)
    assert found["mfu"] == pytest.approx(8 * (3 * 100 + 200) / 8.0 / 1000)


def test_an_interval_of_skipped_steps_has_no_clip_rate() -> None:
    assert finite(record((NAN,), 0.0, 1))["clip_rate"] is None
