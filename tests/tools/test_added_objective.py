"""An objective added to the registry is trained, planned, evaluated and reported by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from allinone.common.errors import InputError
from allinone.engine.planning.hardware import DEVICES, NETWORKS
from allinone.pretrain.evaluation import EvaluationOutput
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective, registry
from allinone.pretrain.objectives.base import ClipSize, MicroBatchSize, Objective
from allinone.pretrain.objectives.context import ObjectiveContext
from allinone.pretrain.recipes import RECIPES
from allinone.tools.inspection.checkpoints import LoadedModel
from allinone.tools.planning.train_plan import Plan, make_plan
from allinone.tools.planning.train_tables import head
from allinone.tools.reporting.pretrain_figures import LossPanel, loss_panels
from allinone.tools.reporting.pretrain_page import accuracy_texts
from tests.pretrain.test_objectives import made_up_batch, small_model

EXTRA_FLOPS = 1.5e12
KEPT_BYTES = 2.0**30


class FrameOrder(Objective):
    """Stands for a new objective; its loss is 3."""

    name = "fom"
    title = "frame order (FOM)"
    heads = ("order_head",)
    loss_metric = "fom_loss"
    accuracy_metric = "fom_accuracy"
    chance = 0.25
    min_clips = 64

    def loss(self, micro_batch: ObjectiveContext) -> Tensor:
        value = torch.tensor(3.0)
        micro_batch.record("fom_loss", value)
        return value

    def training_flops(self, size: ClipSize) -> float:
        return EXTRA_FLOPS

    def activation_bytes(self, size: MicroBatchSize) -> list[float]:
        return [KEPT_BYTES]


@dataclass(frozen=True)
class Weights(ObjectiveConfig):
    """Weights with the field that a new objective needs."""

    fom: float = 0.0


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "OBJECTIVES", (*registry.OBJECTIVES, FrameOrder()))


def plan(fom: float, gpus: int = 8) -> Plan:
    recipe = RECIPES["webvid-howto-tiny"][1]
    config = replace(recipe, objective=Weights(mlm=1, vtm=1, fom=fom))
    device = DEVICES["a100-80g"]
    return make_plan("x", config, gpus, device, NETWORKS["ib-hdr"], pue=1.2)


def test_it_is_trained_with_its_weight() -> None:
    model, batch = small_model(), made_up_batch()
    torch.manual_seed(0)
    without = PretrainObjective(Weights(mlm=1, vtm=0))(model, batch)
    losses = PretrainObjective(Weights(mlm=1, vtm=0, fom=2))(model, batch)
    torch.testing.assert_close(losses.total, without.total + 2 * 3.0)
    assert losses.metrics["fom_loss"].tolist() == [3.0, 1.0]


def test_it_is_planned_with_its_flops_memory_and_clips() -> None:
    without, planned = plan(0), plan(1)
    assert planned.cost.video == {**without.cost.video, "fom": EXTRA_FLOPS}
    assert "FOM 1.5 T" in head(planned)
    small = [each.micro_batch for each in without.candidates]
    assert min(small) == 2  # VTM needs a second clip
    assert min(each.micro_batch for each in planned.candidates) == FrameOrder.min_clips
    before = next(each for each in without.candidates if each.micro_batch == 64)
    after = next(each for each in planned.candidates if each.micro_batch == 64)
    assert after.memory["activations"] - before.memory["activations"] >= KEPT_BYTES
    with pytest.raises(InputError, match="leaves 32 clips per rank, but FOM needs 64"):
        plan(1, gpus=64)


def test_it_is_reported_under_its_title_with_chance() -> None:
    history = [{"step": 1, "metrics": {"mlm_loss": 7.0, "fom_loss": 3.0, "fom_accuracy": 0.5}}]
    assert loss_panels(history) == [
        LossPanel("masked words (MLM)", "mlm_loss", None, "mlm_accuracy"),
        LossPanel("frame order (FOM)", "fom_loss", "fom_accuracy", "fom_accuracy"),
    ]
    output = EvaluationOutput(correct={"fom": (1.0, 3.0)})
    assert accuracy_texts({"vtm_accuracy": 80.94, **FrameOrder().evaluation_metrics(output)}) == [
        "VTM accuracy: 80.9 % (chance 50 %)",
        "FOM accuracy: 33.3 % (chance 25 %)",
    ]


def test_a_missing_or_untrained_head_names_it() -> None:
    loaded = LoadedModel(
        small_model(), Path("weights"), trained={"mlm": 1.0, "fom": 0.0}, missing=["order_head"]
    )
    with pytest.raises(InputError, match=r"has no order_head \(FOM\)"):
        loaded.needs("order_head")
    assert loaded.untrained("order_head") == "FOM"
    assert loaded.untrained("mlm_head") is None
    assert replace(loaded, trained=None).untrained("order_head") is None


def test_images_of_co_training_have_panels_of_their_own() -> None:
    history = [{"step": 1, "metrics": {"image_vtm_loss": 0.7, "vtm_loss": 0.6, "vtm_loss/a": 0.6}}]
    titles = [panel.title for panel in loss_panels(history)]
    assert titles == ["matching (VTM)", "matching (VTM), images"]
