"""Heads, models of tasks, and the checkpoints that they start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from allinone.engine.objective import StepModule
from allinone.engine.optim.adamw import SkippingAdamW, parameter_groups
from allinone.finetune.evaluation import paper_numbers
from allinone.finetune.task_model.heads import VCRHead, from_matching, rank_head
from allinone.finetune.task_model.model import TASK_HEAD, HeadSpec, build_model
from allinone.finetune.task_model.source import (
    SourceCheckpoint,
    read_source_checkpoint,
    task_config,
)
from allinone.model import AllInOneConfig
from allinone.model.convert import LoadReport
from allinone.pretrain.recipes import RECIPES
from tests.tools.conftest import tiny_model
from tests.tools.lightning import save, state_dict


def test_rank_head_starts_as_match_row_or_as_log_odds() -> None:
    model = tiny_model()
    weights, features = model.state_dict(), torch.randn(7, 32)
    logits = model.vtm_head(features)
    head, both = rank_head(32), VCRHead(32)
    from_matching(head, weights)
    torch.testing.assert_close(head(features)[:, 0], logits[:, 1])
    from_matching(both, weights, log_odds=True)
    odds = logits.log_softmax(-1)
    torch.testing.assert_close(both.rationale(features)[:, 0], odds[:, 1] - odds[:, 0])


def test_head_lr_is_multiplied_and_frozen_have_no_state(
    tmp_path: Path,
) -> None:
    from allinone.engine.config import TrainConfig

    tiny_model().save_pretrained(tmp_path)
    source = read_source_checkpoint(tmp_path)
    plan = HeadSpec(
        lambda config: rank_head(config.hidden_size),
        frozen=True,
        trained=(TASK_HEAD, "backbone.pooler."),
    )
    model = build_model(
        source, task_config(source, None, {"num_frames": 8, "image_size": 64}), plan, seed=0
    )
    assert any("temporal [1, 3, 32] → [1, 8, 32]" in line for line in source.report.resized)
    groups = parameter_groups(StepModule(model, lambda *_: None), 0.01, (TASK_HEAD,), 10.0)  # type: ignore[arg-type]
    optimizer = SkippingAdamW(groups, TrainConfig(lr=1e-3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(p)]: group["lr_mult"] for group in optimizer.param_groups for p in group["params"]
    }
    assert rates == {
        "task_head.weight": 10.0,
        "task_head.bias": 10.0,
        "backbone.pooler.dense.weight": 1.0,
        "backbone.pooler.dense.bias": 1.0,
    }
    assert model.config.hidden_dropout == 0


@pytest.mark.parametrize(
    ("size", "distilled", "temporal"),
    [("tiny", False, True), ("tiny", False, False), ("small", True, True), ("small", True, False)],
)
def test_released_file_is_loaded_and_its_size_detected(
    tmp_path: Path, size: str, distilled: bool, temporal: bool
) -> None:
    weights = state_dict(size)
    assert ("transformer.dist_token" in weights) is distilled
    if not temporal:
        del weights["transformer.temporal_embed"]
    source = read_source_checkpoint(save(tmp_path / "last.ckpt", weights))
    assert source.size == size
    config = task_config(source, size, {"num_frames": 3, "max_text_len": 80})
    assert (config.image_size, config.patch_order) == (224, "shuffled")
    assert config.distillation_token is distilled
    plan = HeadSpec(
        lambda shape: rank_head(shape.hidden_size), from_matching, metadata={"kind": "rank"}
    )
    model = build_model(source, config, plan, seed=0)
    row = weights["itm_score.fc.weight"][1:]
    assert torch.equal(model.task_head.weight, row.float())
    assert torch.equal(model.backbone.encoder.norm.weight, weights["transformer.norm.weight"])
    assert any("[40, " in line and "[80, " in line for line in source.report.resized)
    video = model.backbone.video_embeddings
    assert torch.equal(video.position, weights["transformer.pos_embed"])
    if distilled:  # the original never adds the temporal embedding of a distilled model
        assert video.temporal is None
        assert torch.equal(video.distillation_token, weights["transformer.dist_token"])
    elif not temporal:
        assert not video.temporal.any()
    with pytest.raises(ValueError, match=f"holds a model of size {size}, not --size base"):
        task_config(source, "base", {})


@pytest.mark.parametrize(
    ("recipe", "data_sets", "heads"),
    [
        ("webvid-howto", {"WebVid", "HowTo100M"}, None),
        ("plus-cc3m-webvid", {"WebVid", "CC3M"}, "shared"),
        ("plus-cc3m-webvid-apart", {"WebVid", "CC3M"}, "apart"),
    ],
)
def test_checkpoint_keeps_pretraining_data_when_fine_tuned(
    recipe: str, data_sets: set[str], heads: str | None
) -> None:
    name = recipe.removesuffix("-apart")
    config = RECIPES[name][1]
    if name != recipe:
        config = replace(config, cotrain=replace(config.cotrain, image_heads="separate"))
    source = SourceCheckpoint(
        Path(name), {}, AllInOneConfig(), "", LoadReport(name), {}, config.as_json()
    )
    assert paper_numbers.data_sets(source.pretrained_on["pretraining"]) == data_sets
    assert source.pretrained_on.get("heads") == heads
    tuned = replace(
        source, task={"benchmark": "vcr", **source.pretrained_on}, run={"benchmark": "vcr"}
    )
    assert tuned.pretrained_on == source.pretrained_on
    stated = replace(source, task={"benchmark": "vcr"}, run={"pretraining": "WebVid+HowTo"})
    assert stated.pretrained_on == {"pretraining": "WebVid+HowTo"}, (
        "what --pretraining said when it was fine-tuned"
    )
