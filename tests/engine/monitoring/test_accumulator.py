"""Metrics of a logging interval: few operations in a step, sums on the host at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from allinone.engine.monitoring import accumulator as module
from allinone.engine.monitoring.accumulator import IntervalMetrics, MetricAccumulator
from allinone.engine.objective import mean_metric

BATCH = SimpleNamespace(first_position=0, clips=("a",), digest=1, bad=())


@pytest.fixture(autouse=True)
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "all_gather_object", lambda mine: [mine])


class Launches(TorchDispatchMode):
    """Counts operations that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func is not torch.ops.aten.detach.default
        return func(*args, **(kwargs or {}))


def values(step: int) -> dict[str, Tensor]:
    """Two losses in bf16 and two accuracies of four pairs."""
    loss = torch.arange(4, dtype=torch.bfloat16) + step
    return {"mlm_loss": loss, "vtm_loss": 2 * loss, "mlm_right": loss > 1, "vtm_right": loss > 2}


def interval(accumulator: MetricAccumulator) -> IntervalMetrics:
    return accumulator.collect(0, 0.0)


def test_four_metrics_take_under_ten_operations_a_step() -> None:
    accumulator, given, loss = MetricAccumulator(), values(0), torch.tensor(1.0)
    with Launches() as seen:
        metrics = {name: mean_metric(value) for name, value in given.items()}
        accumulator.add(BATCH, loss, metrics)
    assert seen.count == 9


def test_metrics_are_means_over_all_items_of_the_interval() -> None:
    accumulator = MetricAccumulator()
    for step in range(3):
        metrics = {name: mean_metric(value) for name, value in values(step).items()}
        accumulator.add(BATCH, torch.tensor(1.0), metrics)
        accumulator.end_step(step, torch.tensor(0.0), torch.tensor(1.0))
    found = interval(accumulator).metrics
    for name in values(0):
        items = torch.cat([values(step)[name].double() for step in range(3)])
        assert found[name] == pytest.approx(items.mean().item())
    assert interval(accumulator).metrics == {}, "the next interval begins empty"


def test_metrics_that_are_not_finite_are_left_out() -> None:
    accumulator = MetricAccumulator()
    for loss in (1.0, float("nan"), float("inf"), 3.0):
        metrics = {"loss": mean_metric(torch.tensor([loss])), "other": mean_metric(torch.ones(2))}
        accumulator.add(BATCH, torch.tensor(1.0), metrics)
    assert interval(accumulator).metrics == {"loss": 2.0, "other": 1.0}
    accumulator.add(BATCH, torch.tensor(1.0), {"loss": mean_metric(torch.tensor([float("nan")]))})
    only = interval(accumulator).metrics["loss"]
    assert only != only, "nan where nothing is left"
