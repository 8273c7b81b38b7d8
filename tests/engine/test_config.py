"""Training options."""

from __future__ import annotations

import pytest

from allinone.common.errors import ConfigError
from allinone.engine.config import TrainConfig, every


def test_valid_micro_batches_are_listed() -> None:
    with pytest.raises(ConfigError, match="valid micro-batches: 1, 2, 3, 4, 6, 12"):
        TrainConfig(global_batch=24, micro_batch=5).accumulation(2)
    with pytest.raises(ConfigError, match="7 ranks"):
        TrainConfig(global_batch=24, micro_batch=4).accumulation(7)


def test_every_holds_at_multiples_and_at_the_last_step() -> None:
    assert [step for step in range(1, 11) if every(step, 4, last=10)] == [4, 8, 10]
    assert not every(4, 0)
