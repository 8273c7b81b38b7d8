"""Layer-wise learning rates against timm's, recorded in tests/parity/golden_timm.json."""

from __future__ import annotations

import json

import pytest
import torch

from allinone.common.errors import InputError
from allinone.engine.objective import StepModule
from allinone.engine.optim.adamw import parameter_groups
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.task_model.layer_decay import layer_scale
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from tests.parity.timm_golden import DEPTH, GOLDEN, LAYER_DECAY, WEIGHT_DECAY

TIMM_NAMES = {
    "backbone.video_embeddings.class_token": "cls_token",
    "backbone.video_embeddings.position": "pos_embed",
    "backbone.video_embeddings.patch.weight": "patch_embed.proj.weight",
    "backbone.video_embeddings.patch.bias": "patch_embed.proj.bias",
    "backbone.encoder.norm.weight": "norm.weight",
    "backbone.encoder.norm.bias": "norm.bias",
    "vtm_head.weight": "head.weight",
    "vtm_head.bias": "head.bias",
}
"""Ours → timm's, apart from the blocks, whose parts differ in one word."""


def module() -> StepModule:
    config = AllInOneConfig.from_size("nano", vocab_size=50, num_hidden_layers=DEPTH)
    with torch.device("meta"):
        model = AllInOneForPreTraining(config)
    return StepModule(model, objective=None)  # type: ignore[arg-type]


def test_rates_and_decay_are_those_of_timms_vit() -> None:
    wrapped = module()
    names = {id(p): n.removeprefix("model.") for n, p in wrapped.named_parameters()}
    groups = parameter_groups(wrapped, WEIGHT_DECAY, lr_scale=layer_scale(LAYER_DECAY, DEPTH))
    ours = {
        names[id(parameter)]: (group["lr_mult"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    timm = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in json.loads(GOLDEN.read_text())["layer_groups"]
        for name in group["params"]
    }
    found = {}
    for name, values in ours.items():
        known = TIMM_NAMES.get(name)
        if name.startswith("backbone.encoder.blocks."):
            known = name.removeprefix("backbone.encoder.").replace("attention", "attn")
        if known is not None:
            found[known] = values
    assert found == timm
    assert ours["backbone.text_embeddings.word.weight"] == timm["cls_token"]
    assert ours["backbone.pooler.dense.weight"] == (1.0, WEIGHT_DECAY)


def test_groups_share_rates_and_are_the_former_ones_without_decay() -> None:
    wrapped = module()
    former = parameter_groups(wrapped, WEIGHT_DECAY, ("vtm_head",), 10.0)
    equal = parameter_groups(wrapped, WEIGHT_DECAY, ("vtm_head",), 10.0, layer_scale(1.0, DEPTH))
    assert [list(map(id, group["params"])) for group in equal] == [
        list(map(id, group["params"])) for group in former
    ]
    decayed = parameter_groups(wrapped, WEIGHT_DECAY, ("vtm_head",), 10.0, layer_scale(0.5, DEPTH))
    # {decay, none} x {embeddings, blocks, pooler and heads, the head with its own multiple}
    assert len(decayed) == 2 * (DEPTH + 3)
    head = [group["lr_mult"] for group in decayed if group["lr_mult"] > 1]
    assert head == [10.0, 10.0]


@pytest.mark.parametrize("value", [0.0, 1.1, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="--layer-decay must be above 0 and at most 1"):
        FinetuneConfig(layer_decay=value)
