"""Estimate and measurement of a run in the log."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from allinone.engine import ds_config
from allinone.engine.config import TrainConfig
from allinone.engine.distributed.topology import Layout
from allinone.engine.planning.estimate import Activations, RunEstimate, plan_run


@pytest.mark.parametrize(
    ("step_s", "said"),
    [
        (1.05, "memory and speed were within 10 % of the plan"),
        (2.0, "planned clips/s 4.0, measured 2.0"),
    ],
)
def test_only_differences_over_ten_percent_are_logged(step_s: float, said: str) -> None:
    config = TrainConfig(steps=100, global_batch=4, micro_batch=4, ds_config="zero1_fp32")
    ds = ds_config.resolve(config, 1, True)
    plan = plan_run(config, ds, [(10, 10)], Layout(), torch.device("cpu"), 1e9, Activations())
    # 4 clips per second of 1 GFLOP each are a tenth of 40 GFLOP/s
    known = {"samples_per_s": 4.0, "memory_bytes": 1e9, "mfu": 0.1, "peak_flops": 4e10}
    estimate = RunEstimate(replace(plan, hours=100 / 3600, **known))
    estimate.see(10, 10 * step_s, 1.02e9)
    assert said in estimate.summary()
    assert ("memory per rank" in estimate.summary()) is False
    assert "collectives" not in estimate.summary() + "".join(estimate.lines())


def test_more_than_the_measured_peak_is_not_called_mfu() -> None:
    config = TrainConfig(steps=100, global_batch=4, micro_batch=4, ds_config="zero1_fp32")
    ds = ds_config.resolve(config, 1, True)
    plan = plan_run(config, ds, [(10, 10)], Layout(), torch.device("cpu"), 1e9, Activations())
    estimate = RunEstimate(replace(plan, peak_flops=1e9, mfu=0.35, samples_per_s=0.35))
    estimate.see(10, 10.0, 1e9)
    assert "MFU" not in estimate.summary()
    assert "clips/s" in estimate.summary()
