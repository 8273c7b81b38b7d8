"""Training steps with and without padding of the texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from allinone.common.command_line import parse
from allinone.common.earlier_runs import parse_for_run
from allinone.data.loading.batch import Batch
from allinone.data.loading.text_padding import pad_texts
from allinone.engine.resume import compare_options
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import TYPICAL_TOKENS, masked_tokens, sample_flops, training_cost
from allinone.pretrain.objectives import Draws, ObjectiveConfig, PretrainObjective
from allinone.pretrain.objectives.registry import OBJECTIVES
from allinone.pretrain.recipes import RECIPES
from tests.model.test_kernels import assert_equal
from tests.model.test_packing import Kernel, use
from tests.pretrain.test_passes import CLIPS, LABELS, batch_of, losses_and_gradients, model_of

TEXTS = ("text_ids", "text_mask", "mlm_ids", "mlm_labels")


def padded(limit: int = 16) -> Batch:
    """Texts of 5, 8, 8 and 6 tokens, padded to `limit`."""
    batch = batch_of()
    mask = batch.text_mask.clone()
    mask[3, 6:] = 0
    fields = {name: getattr(batch, name) for name in TEXTS} | {"text_mask": mask}
    wide = {
        name: torch.nn.functional.pad(x, (0, limit - 8), value=-100 * (name == "mlm_labels"))
        for name, x in fields.items()
    }
    return with_positions(batch, wide)


def with_positions(batch: Batch, fields: dict[str, torch.Tensor]) -> Batch:
    positions = (fields["mlm_labels"].flatten() >= 0).nonzero().flatten()
    return replace(batch, **fields, mlm_positions=positions)


def longest(batch: Batch) -> Batch:
    fields = {name: getattr(batch, name) for name in TEXTS}
    return with_positions(batch, pad_texts(fields, TEXTS, "longest")[0])


def packed(batch: Batch) -> Batch:
    return replace(batch, text_lengths=batch.text_mask.sum(1))


@pytest.mark.parametrize("passes", ["joint", "separate"])
@pytest.mark.parametrize(
    "weights", [{}, {"wpa": 0.1, "vtc": 1.0}, {"mlm": 0.0, "vtc": 1.0}], ids=str
)
@pytest.mark.parametrize("padding", [longest, packed])
def test_a_step_without_padding_equals_the_padded_one(
    padding: object, weights: dict[str, float], passes: str
) -> None:
    config = ObjectiveConfig(passes=passes, **weights)  # type: ignore[arg-type]
    model, draws = model_of(max_text_len=16).train(), Draws(matching_pairs=(LABELS, CLIPS))
    full = padded()
    short = padding(full)  # type: ignore[operator]
    assert short.text_ids.shape[1] == (8 if padding is longest else 16)
    expected, plain = losses_and_gradients(model, full, config, draws)
    found, ours = losses_and_gradients(model, short, config, draws)
    torch.testing.assert_close(found.total, expected.total, rtol=1e-6, atol=1e-6)
    for name, metric in expected.metrics.items():
        torch.testing.assert_close(found.metrics[name], metric, rtol=2e-6, atol=1e-6, msg=name)
    # rows of positions that no text has get no gradient, with and without padding
    assert_equal(ours, plain)


@pytest.mark.parametrize("padding", [longest, packed])
def test_evaluation_without_padding_counts_the_same(padding: object) -> None:
    model, full = model_of(max_text_len=16).eval(), padded()
    short = padding(full)  # type: ignore[operator]
    for objective in OBJECTIVES:
        counts = [objective.count_correct(model, batch) for batch in (short, full)]
        assert counts[0] == counts[1]
        vectors = [objective.embed(model, batch) for batch in (short, full)]
        for name, expected in vectors[1].items():
            torch.testing.assert_close(vectors[0][name], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("passes", ["joint", "separate"])
def test_planned_flops_are_those_of_the_real_tokens(
    passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Kernel((torch.float32,)), monkeypatch)
    tokens, clips = 9, 3
    config = AllInOneConfig.from_size("nano", attention_dropout=0.0)
    masked = masked_tokens(config, text_tokens=tokens)
    ids = torch.randint(5, 999, (clips, config.max_text_len))
    mask = (torch.arange(config.max_text_len) < tokens).long().expand(clips, -1)
    labels = torch.where((torch.arange(16) > 0) & (torch.arange(16) <= masked), ids, -100)
    fields = {"text_ids": ids, "text_mask": mask, "mlm_ids": ids, "mlm_labels": labels}
    pixels = torch.randn(clips, 3, 3, 64, 64)
    batch = replace(batch_of(), pixels=pixels, dataset_ids=torch.zeros(clips, dtype=torch.long))
    batch = packed(with_positions(batch, fields))
    objective = ObjectiveConfig(passes=passes, vtc=1.0)  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter:
        PretrainObjective(objective)(AllInOneForPreTraining(config), batch).total.backward()
    planned = sample_flops(config, objective, 3, masked, candidates=clips, text_tokens=tokens)
    # the video pass of VTC has no text: it takes torch's fused attention, which is not counted
    products = 3 * 4 * 3 * 3 * 17 * 17 * 128 + 3 * 4 * 3 * 17 * 128
    total = clips * (sum(planned.values()) - products)
    assert total == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_the_plan_counts_real_tokens_and_the_data_refines_it() -> None:
    recipe = RECIPES["webvid-howto-base"][1]
    full = replace(recipe, loader=replace(recipe.loader, text_padding="full"))
    tokens = 197 + TYPICAL_TOKENS
    share = training_cost(recipe).total / training_cost(full).total
    assert share == pytest.approx(tokens / 237, abs=0.01)
    lengths = [torch.full((10,), 40).numpy()]
    assert training_cost(recipe, lengths=lengths).total == training_cost(full).total


def test_runs_of_earlier_versions_keep_their_padding(tmp_path: Path) -> None:
    recipe = replace(RECIPES["demo"][1], out=tmp_path)
    assert recipe.loader.text_padding == "packed"
    earlier = json.loads(json.dumps(recipe.as_json()))
    del earlier["loader"]["text_padding"]
    (tmp_path / "run.json").write_text(json.dumps(earlier))
    config, kept = parse_for_run(lambda base: parse(base, [], prog="train"), recipe)
    assert isinstance(config, PretrainConfig)
    assert config.loader.text_padding == "full"
    assert kept == ["loader.text_padding full"]
    assert not compare_options(earlier, config.as_json()).refused
