"""Schedule and parameter groups."""

from __future__ import annotations

import itertools

import pytest

from allinone.engine.config import TrainConfig
from allinone.engine.optim.adamw import parameter_groups
from allinone.engine.optim.schedule import learning_rate
from allinone.model import AllInOneConfig, AllInOneForPreTraining


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule_rises_to_the_peak_and_falls_to_zero(schedule: str) -> None:
    config = TrainConfig(steps=100, warmup=0.1, lr=2.0, schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate(config, step) for step in range(1, 102)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:101]))
    assert rates[100] == pytest.approx(0)
    if schedule == "linear":
        assert rates[55] == pytest.approx(1.0)
    assert TrainConfig(steps=100, warmup=7).warmup_steps() == 7


def test_decay_and_head_rates_of_the_parameter_groups() -> None:
    model = AllInOneForPreTraining(AllInOneConfig.from_size("nano", vocab_size=50))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.01, head_patterns=("mlm_head",), head_lr_mult=10)
    for group in groups:
        for parameter in group["params"]:
            name = names.pop(id(parameter))
            decays = not (name.endswith("bias") or "norm" in name or "log_scale" in name)
            assert group["weight_decay"] == (0.01 if decays else 0.0), name
            assert group["lr_mult"] == (10 if "mlm_head" in name else 1), name
    assert not names
