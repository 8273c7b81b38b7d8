"""Records of history.jsonl."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from allinone.common.formatting import finite
from allinone.engine.callbacks.reporting import (
    evaluation_line,
    evaluation_table,
    progress_line,
)
from allinone.engine.config import TrainConfig
from allinone.engine.monitoring.accumulator import IntervalMetrics
from allinone.engine.monitoring.history import HistoryWriter, RecordBuilder, read_history

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


def test_a_rate_above_the_measured_peak_is_left_out() -> None:
    config = TrainConfig(global_batch=4, micro_batch=4)
    builder = RecordBuilder(config, ["host"], 1.0, (8.0, "measured too low"))
    steps = IntervalMetrics([1], {}, [False], [0.0], [1.0], [], 77, 5, [0.0], [0.0], 0)
    below, above = builder.build(1, steps, 1.0, 0), builder.build(1, steps, 0.25, 0)
    assert below["mfu"] == 0.5
    assert "MFU 50 %" in progress_line(below, 10)
    assert finite(above)["mfu"] is None
    assert "MFU" not in progress_line(above, 10)


def test_an_evaluation_is_one_line_with_chance_in_brackets() -> None:
    results = {
        "select": 40.0,
        "mine_val/R@1": 25.0,
        "mine_val/R@10": 100.0,
        "mine_val/missing": 0.0,
    }
    chance = {"mine_val/R@1": 12.5, "mine_val/R@10": 100.0}
    line = "select 40.0; mine_val: R@1 25.0 (12.5) (in brackets: chance)"
    assert evaluation_line(results, chance) == line
    tuned = {"val/t2v/R@1": 30.0, "val/missing": 2.0}
    assert evaluation_line(tuned, {}) == "val: t2v/R@1 30.0, missing 2.0"


def test_evaluations_become_a_table_with_chance() -> None:
    history = [
        {"step": step, "evaluation": {"val/R@1": float(step), "val/missing": 0.0}}
        for step in range(10, 110, 10)
    ]
    rows = evaluation_table([{"step": 5, "loss": 1.0}, *history], {"val/R@1": 0.4}).splitlines()
    assert re.split(r"  +", rows[0].strip()) == (
        ["score", *(f"step {step}" for step in (10, 30, 50, 60, 80, 100)), "chance"]
    )
    assert [line.split() for line in rows[2:]] == [
        ["val/R@1", "10.0", "30.0", "50.0", "60.0", "80.0", "100.0", "0.4"]
    ]
    history[3]["evaluation"]["val/missing"] = 2.0  # type: ignore[index]
    assert "val/missing" in evaluation_table(history, {})
    assert evaluation_table([{"step": 5, "loss": 1.0}], {}) == ""


@pytest.mark.parametrize(("start", "kept"), [(0, []), (2, [0, 2])])
def test_an_evaluation_that_is_repeated_is_not_kept(
    tmp_path: Path, start: int, kept: list[int]
) -> None:
    lines = [{"step": step, "evaluation": {"val/R@1": 1.0}} for step in (0, 2, 4)]
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    HistoryWriter(tmp_path, start).write({"step": start, "event": "start"})
    assert [row["step"] for row in read_history(path) if "evaluation" in row] == kept


def test_rows_after_a_torn_line_are_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n[1]\n{"step": "x"}\n{"step": 2}\n{"step": 3')
    assert [row["step"] for row in read_history(path)] == [1, 2]
