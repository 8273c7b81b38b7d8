"""MLM and VTM in one pass against two passes, and against the passes over all tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from allinone.common.earlier_runs import parse_for_run
from allinone.common.options import with_values
from allinone.data.loading.batch import Batch
from allinone.engine.objective import Losses
from allinone.model import AllInOneForPreTraining
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.objectives import Draws, ObjectiveConfig, PretrainObjective
from tests.model.perturbed import perturbed_nano
from tests.pretrain.test_objectives import made_up_batch

LABELS, CLIPS = torch.tensor([1, 0, 0, 1]), torch.tensor([0, 3, 0, 3])
"""Clip 0 is in two pairs, clip 3 in two, clips 1 and 2 in none."""


model_of = partial(perturbed_nano, vocab_size=60)


def batch_of(frames: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(4)
    return replace(made_up_batch(), pixels=torch.randn(4, frames, 3, 64, 64, generator=generator))


def orders(frames: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(4 * frames, 16, generator=generator).argsort(1) for _ in range(2)]


def losses_and_gradients(
    model: AllInOneForPreTraining, batch: Batch, config: ObjectiveConfig, draws: Draws
) -> tuple[Losses, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(7)
    losses = PretrainObjective(config, draws=lambda batch: draws)(model, batch)
    losses.total.backward()
    return losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_step(
    model: AllInOneForPreTraining,
    batch: Batch,
    draws: Callable[[], Draws] = Draws,
    **weights: float,
) -> None:
    """The two kinds of passes give the same losses, metrics and gradients."""
    results = [
        losses_and_gradients(
            model,
            batch,
            ObjectiveConfig(passes=passes, **weights),  # type: ignore[arg-type]
            draws(),
        )
        for passes in ("joint", "separate")
    ]
    (joint, fast), (separate, plain) = results
    torch.testing.assert_close(joint.total, separate.total, rtol=1e-6, atol=1e-6)
    assert list(joint.metrics) == list(separate.metrics)
    for name, metric in separate.metrics.items():
        torch.testing.assert_close(joint.metrics[name], metric, rtol=2e-6, atol=1e-6, msg=name)
    assert fast.keys() == plain.keys()
    size = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(fast[name], gradient, rtol=0, atol=1e-6 * size, msg=name)


@pytest.mark.parametrize("wpa", [0.0, 0.1])
@pytest.mark.parametrize(
    "options", [{}, {"roll": "flatten"}, {"roll": "channel"}, {"distillation_token": True}], ids=str
)
def test_one_pass_equals_two(options: dict[str, object], wpa: float) -> None:
    assert_same_step(model_of(**options).train(), batch_of(), wpa=wpa)


@pytest.mark.parametrize("wpa", [0.0, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_given_orders_and_pairs_hold_in_one_pass(checkpointing: bool, wpa: float) -> None:
    model = model_of(patch_order="shuffled").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    assert_same_step(model, batch_of(), lambda: Draws(*orders(), (LABELS, CLIPS)), wpa=wpa)


@pytest.mark.parametrize("given", [0, 1])
def test_an_order_that_is_not_given_is_that_of_the_model(given: int) -> None:
    one = [order if number == given else None for number, order in enumerate(orders())]
    assert_same_step(model_of().train(), batch_of(), lambda: Draws(*one))
    # in evaluation, shuffled patches have a constant order
    model = model_of(patch_order="shuffled").eval()
    assert_same_step(model, batch_of(), lambda: Draws(*one))


@pytest.mark.parametrize("heads", [False, True])
def test_images_pass_once_with_their_own_heads(heads: bool) -> None:
    assert_same_step(model_of(image_heads=heads).train(), batch_of(frames=1))


def test_a_micro_batch_without_masked_words_trains_vtm() -> None:
    batch = replace(batch_of(), mlm_positions=torch.empty(0, dtype=torch.long))
    assert_same_step(model_of().train(), batch)


def test_gradients_equal_those_of_passes_over_all_tokens() -> None:
    """The plain path: two passes that compute and keep everything, on copied pixels."""
    model, batch = model_of().train(), batch_of()
    draws = Draws(matching_pairs=(LABELS, CLIPS))
    losses, fast = losses_and_gradients(model, batch, ObjectiveConfig(), draws)
    model.zero_grad()
    text = model(batch.pixels, batch.mlm_ids, batch.text_mask).text
    words = torch.nn.functional.cross_entropy(
        model.mlm_head(text).flatten(0, 1), batch.mlm_labels.flatten(), ignore_index=-100
    )
    pooled = model(batch.pixels[CLIPS], batch.text_ids, batch.text_mask).pooled
    total = words + torch.nn.functional.cross_entropy(model.vtm_head(pooled), LABELS)
    total.backward()
    torch.testing.assert_close(losses.total, total, rtol=1e-6, atol=1e-6)
    plain = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert fast.keys() == plain.keys()
    size = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(fast[name], gradient, rtol=0, atol=1e-6 * size, msg=name)


def test_vtm_keeps_all_tokens_only_for_an_objective_that_reads_them() -> None:
    model, batch = model_of(), batch_of()
    shapes = []
    handle = model.backbone.encoder.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    for config in (
        ObjectiveConfig(),
        ObjectiveConfig(passes="separate"),
        ObjectiveConfig(wpa=0.1),
        ObjectiveConfig(passes="separate", wpa=0.1),
    ):
        PretrainObjective(config)(model, batch)
    handle.remove()
    masked, tokens = 5, 8 + 17
    assert shapes == [
        (3 * (masked + 4), 128),
        (3 * masked, 128),
        (3 * 4, 128),
        (3 * 8, tokens, 128),
        (3 * masked, 128),
        (3 * 4, tokens, 128),
    ]


def test_a_run_of_an_earlier_version_keeps_separate_passes(tmp_path: Path) -> None:
    recipe = PretrainConfig(out=tmp_path, data=("x",))
    assert recipe.objective.passes == "joint"
    record = recipe.as_json()
    del record["objective"]["passes"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    resumed, kept = parse_for_run(lambda default: default, recipe)
    assert resumed.objective.passes == "separate"
    assert kept == ["objective.passes separate"]
    assert resumed == with_values(recipe, {"objective.passes": "separate"})
