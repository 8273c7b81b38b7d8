"""The registry of objectives is complete, and readers of it need no torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest

from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.cost import activations, training_cost
from allinone.pretrain.objectives.config import ObjectiveConfig
from allinone.pretrain.objectives.registry import OBJECTIVES, active_objectives, objective_of_head
from allinone.pretrain.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]


def test_every_objective_has_a_weight_and_the_reverse() -> None:
    weights = {entry.name for entry in fields(ObjectiveConfig)} - {
        "image_weight",
        "vtm_negatives",
        "passes",
        "mlm_mean",
        "patch_keep",
        "patch_keep_until",
    }
    assert {objective.name for objective in OBJECTIVES} == weights


def test_heads_are_modules_of_the_model() -> None:
    model = AllInOneForPreTraining(AllInOneConfig.from_size("nano", vocab_size=50))
    modules = dict(model.named_children())
    heads = [head for objective in OBJECTIVES for head in objective.heads]
    assert len(heads) == len(set(heads))
    assert set(heads) == set(modules) - {"backbone"}


def test_weight_0_disables_an_objective() -> None:
    active = active_objectives(ObjectiveConfig(mlm=0, vtm=2, wpa=0.1, vtc=0))
    assert [objective.name for objective in active] == ["vtm", "wpa"]


def test_a_head_names_the_objective_that_trains_it() -> None:
    trained = objective_of_head("text_projection")
    assert trained is not None
    assert (trained.title, trained.label) == ("contrast (VTC)", "VTC")
    assert objective_of_head("backbone") is None


def test_an_objective_follows_the_one_whose_pass_it_uses() -> None:
    """The planner adds its bytes to the pass before it (pretrain/cost.py)."""
    for before, objective in pairwise(OBJECTIVES):
        assert objective.requires in (None, before.name)
    assert OBJECTIVES[0].requires is None


def test_mask_prob_reaches_the_planner() -> None:
    recipe = RECIPES["webvid-howto-tiny"][1]
    more = replace(recipe, loader=replace(recipe.loader, mask_prob=0.5))
    cost, higher = training_cost(recipe).video, training_cost(more).video
    assert higher["mlm"] > cost["mlm"]
    assert higher["vtm"] == cost["vtm"]
    assert activations(more, 2).total > activations(recipe, 2).total


@pytest.mark.parametrize(
    "module",
    [
        "allinone.pretrain.objectives.registry",
        "allinone.pretrain.train",
        "allinone.pretrain.recipes",
    ],
)
def test_options_and_registry_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
