"""Word-patch alignment against the golden vectors and against what an optimal-transport plan must
satisfy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from allinone.model import AllInOneConfig
from allinone.pretrain.objectives.optimal_transport import ipot_plan, word_patch_distance
from allinone.pretrain.objectives.wpa import WordPatchAlignment

GOLDEN = Path(__file__).parents[1] / "parity" / "golden_dev.safetensors"


@pytest.mark.parametrize("prefix", ["", "perm_"])
def test_distance_equals_the_golden_one(prefix: str) -> None:
    golden = load_file(GOLDEN)
    distance = word_patch_distance(
        golden[f"output/{prefix}text_feats"],
        golden[f"output/{prefix}image_feats"],
        golden["input/text_masks"].long(),
    )
    torch.testing.assert_close(distance, golden[f"output/{prefix}wpa_distance"], atol=2e-5, rtol=0)


def test_the_objective_leaves_out_the_distillation_token() -> None:
    torch.manual_seed(0)
    config = AllInOneConfig.from_size("nano", distillation_token=True)
    text, video = torch.randn(2, 6, 8), torch.randn(2, 5, 8)

    def loss(video: torch.Tensor) -> float:
        pairs = SimpleNamespace(labels=torch.tensor([1, 0]), text=text, video=video)
        batch = SimpleNamespace(text_mask=torch.ones(2, 6, dtype=torch.long))
        context = SimpleNamespace(
            model=SimpleNamespace(config=config), matching=pairs, batch=batch, metrics={}
        )
        return float(WordPatchAlignment().loss(context))  # type: ignore[arg-type]

    def changed(slot: int) -> torch.Tensor:
        other = video.clone()
        other[0, slot] = -other[0, slot]
        return other

    assert loss(changed(0)) == loss(changed(1)) == loss(video)
    assert loss(changed(2)) != loss(video)


def test_plan_has_uniform_marginals_and_no_mass_on_padding() -> None:
    torch.manual_seed(0)
    cost = torch.rand(2, 5, 7)
    words = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    patches = torch.ones(2, 7, dtype=torch.bool)
    plan = ipot_plan(cost, words, patches, iterations=500)
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        plan[1].sum(1), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0]), atol=1e-3, rtol=0
    )
    assert plan[1, 3:].abs().max() == 0


def test_plan_finds_the_optimal_assignment() -> None:
    """For a square cost the optimal plan with uniform marginals is a permutation matrix / N
    (Birkhoff): compare with brute force."""
    import itertools

    torch.manual_seed(1)
    cost = torch.rand(1, 4, 4)
    valid = torch.ones(1, 4, dtype=torch.bool)
    best = (
        min(
            sum(float(cost[0, i, j]) for i, j in enumerate(order))
            for order in itertools.permutations(range(4))
        )
        / 4
    )
    plan = ipot_plan(cost, valid, valid, beta=0.05, iterations=2000)
    assert abs(float((plan * cost).sum()) - best) < 2e-3


def test_wpa_gradient_flows_and_empty_captions_cost_nothing() -> None:
    torch.manual_seed(0)
    text, video = torch.randn(2, 6, 8, requires_grad=True), torch.randn(2, 5, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    distance = word_patch_distance(text, video, mask)
    distance.sum().backward()
    assert text.grad is not None
    assert text.grad[0, 1:3].abs().sum() > 0
    assert text.grad[0, [0, 3, 4, 5]].abs().sum() == 0
    assert distance.detach()[1] == 0
    assert torch.isfinite(distance).all()
    assert torch.isfinite(text.grad).all()
