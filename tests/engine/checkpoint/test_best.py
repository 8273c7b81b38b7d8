"""The best evaluation of a run, and early stopping."""

from __future__ import annotations

from pathlib import Path

import pytest

from allinone.common.errors import ConfigError
from allinone.engine.checkpoint.best import BestCheckpoint, Selection


def test_the_best_value_is_kept_until_patience_ends(tmp_path: Path) -> None:
    best = BestCheckpoint(Selection("accuracy", patience=2), tmp_path)
    assert best.needs_eval(10)
    values = {10: 40.0, 20: float("nan"), 30: 41.0, 40: 41.0}
    better = [step for step, value in values.items() if best.update(step, {"accuracy": value})]
    assert better == [10, 30]
    assert not best.needs_eval(40)
    assert not best.exhausted
    assert not best.update(50, {"accuracy": 12.0})
    assert best.exhausted
    assert best.stop_reason() == (
        "training stops early at step 50: the last 2 evaluations were no better than accuracy 41.0"
        " at step 30, whose weights are kept; --patience 0 trains to the end"
    )
    assert str(best) == "best accuracy 41.00 at step 30"
    best.save()
    assert (tmp_path / "best.json").is_file()


def test_without_patience_training_never_stops_early(tmp_path: Path) -> None:
    best = BestCheckpoint(Selection("accuracy"), tmp_path)
    assert best.update(1, {"accuracy": 1.0})
    assert not any(best.update(step, {"accuracy": 0.0}) for step in range(2, 50))
    assert not best.exhausted


def test_an_unknown_metric_is_refused_with_the_valid_ones(tmp_path: Path) -> None:
    best = BestCheckpoint(Selection("accuracy"), tmp_path)
    with pytest.raises(ConfigError, match="no 'accuracy' to select by; it has: loss, R@1"):
        best.update(60, {"loss": 1.0, "R@1": 3.0})


def test_without_selection_the_last_evaluation_is_known(tmp_path: Path) -> None:
    best = BestCheckpoint(None, tmp_path)
    assert best.needs_eval(5)
    assert not best.update(5, {})
    assert best.state() is None
    assert not best.needs_eval(5)
    assert best.needs_eval(10)
