"""The best evaluation of a run, and when to stop waiting for a better one."""

from __future__ import annotations

from pathlib import Path

import pytest

from allinone.common.errors import ConfigError
from allinone.engine.checkpoint.best import BestCheckpoint, Selection


def test_the_best_is_kept_and_patience_ends(tmp_path: Path) -> None:
    best = BestCheckpoint(Selection("accuracy", patience=2), tmp_path)
    assert best.lacks(10)
    values = {10: 40.0, 20: float("nan"), 30: 41.0, 40: 41.0}
    assert [step for step, value in values.items() if best.judge(step, {"accuracy": value})] == [
        10,
        30,
    ]
    assert not best.lacks(40)
    assert not best.exhausted
    assert not best.judge(50, {"accuracy": 12.0})
    assert best.exhausted
    assert str(best) == "best accuracy 41.00 at step 30"
    best.remember()
    assert (tmp_path / "best.json").is_file()


def test_without_patience_training_never_stops_early_and_an_unknown_metric_lists_those_there_are(
    tmp_path: Path,
) -> None:
    best = BestCheckpoint(Selection("accuracy"), tmp_path)
    assert best.judge(1, {"accuracy": 1.0})
    assert not any(best.judge(step, {"accuracy": 0.0}) for step in range(2, 50))
    assert not best.exhausted
    with pytest.raises(ConfigError, match="no 'accuracy' to select by; it gives: loss, R@1"):
        best.judge(60, {"loss": 1.0, "R@1": 3.0})


def test_a_run_that_selects_nothing_knows_what_was_evaluated(tmp_path: Path) -> None:
    best = BestCheckpoint(None, tmp_path)
    assert best.lacks(5)
    assert not best.judge(5, {})
    assert best.state() is None
    assert not best.lacks(5)
    assert best.lacks(10)
