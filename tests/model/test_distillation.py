"""The distillation token: rolled, trained at every ZeRO stage, kept by files, absent by default."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from allinone.common.command_line import parse
from allinone.common.earlier_runs import parse_for_run
from allinone.data.config import DataConfig
from allinone.engine.config import TrainConfig
from allinone.engine.resume import changed_options
from allinone.finetune.final_evaluation import FinalEvaluation
from allinone.finetune.task_model.model import HeadSpec
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.convert import (
    DISTILLATION,
    POSITION,
    TEMPORAL,
    ConversionError,
    convert_reference,
    load_resized,
    resize_grid,
    without_distillation,
)
from allinone.pretrain.config import ModelOptions, PretrainConfig
from allinone.pretrain.recipes import RECIPES
from tests.benchmarks.equality_matrix import CUT, TOLERANCE, Cell, trace
from tests.engine.conftest import server  # noqa: F401 - a fixture
from tests.engine.ranks import RankServer
from tests.tools.lightning import state_dict

DISTILLED = AllInOneConfig.from_size("nano", vocab_size=50, distillation_token=True)


def model(config: AllInOneConfig = DISTILLED) -> AllInOneForPreTraining:
    torch.manual_seed(0)
    return AllInOneForPreTraining(config).eval()


@torch.no_grad()
def test_the_token_is_in_slot_1_and_rolls_forward() -> None:
    """In the original n = 2 + P and slot 1 is among the n // 8 that receive the frame before."""
    made, words, seen = model(), 4, []
    video = made.backbone.video_embeddings
    made.backbone.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    made.backbone.modality.weight.zero_()
    pixels, ids = torch.randn(1, 3, 3, 64, 64), torch.ones(1, words, dtype=torch.long)
    made(pixels, ids, ids)
    token = video.distillation_token[0, 0] + video.position[0, 1]
    assert all(torch.equal(row, token) for row in seen[0][:, words + 1])

    # frames have equal tokens before block 0, so mark them to see where they go
    marked = torch.arange(3.0)[:, None, None].expand(3, words + DISTILLED.num_visual_tokens, 128)
    exchange = made.backbone.encoder.exchange(marked, 3, words, None)
    rolled = exchange(marked)[:, words:, 0]
    assert rolled.tolist() == [
        [0, 2, 2, *[0] * 13, 1, 1],
        [1, 0, 0, *[1] * 13, 2, 2],
        [2, 1, 1, *[2] * 13, 0, 0],
    ]


def test_patch_order_moves_patches_alone() -> None:
    video = model().backbone.video_embeddings
    pixels = torch.randn(2, 3, 3, 64, 64)
    order = torch.stack([torch.randperm(16) for _ in range(6)])
    plain, ordered = video(pixels), video(pixels, order)
    assert torch.equal(ordered[:, :2], plain[:, :2])
    for row in range(6):
        assert torch.equal(ordered[row, 2:], plain[row, 2 + order[row]])


@pytest.mark.parametrize("cell", [Cell(1, 1, 2), Cell(3, 1, 2), Cell(1, 2, 2)], ids=str)
def test_zero_and_tensor_parallel_train_the_token_alike(
    server: RankServer,  # noqa: F811
    tmp_path: Path,
    cell: Cell,
) -> None:
    shape = {"distillation_token": True, "roll_divisor": 3}  # 6 visual tokens: 2 roll each way
    traces = {}
    for each in (Cell(0, 1, 1), cell):
        out = tmp_path / str(each)
        codes, output = server.run(out, each.world, **each.options(), model=shape)
        assert codes == [0] * each.world, output
        traces[each] = trace(out)
    one, other = traces.values()
    assert max(other.differences(one)) < TOLERANCE
    assert TEMPORAL not in one.weights
    middle = load_file(out / "checkpoints" / f"step-{CUT:08d}" / "weights" / "model.safetensors")
    assert not torch.equal(other.weights[DISTILLATION], middle[DISTILLATION])


def test_saved_models_keep_their_token_or_its_absence(tmp_path: Path) -> None:
    for name, config in (
        ("with", DISTILLED),
        ("without", AllInOneConfig.from_size("nano", vocab_size=50)),
    ):
        saved = model(config)
        saved.save_pretrained(tmp_path / name)
        loaded = AllInOneForPreTraining.from_pretrained(tmp_path / name)
        assert loaded.config.distillation_token is (name == "with")
        resized, report = load_resized(tmp_path / name, loaded.config)
        assert not report.initialised
        for key, value in saved.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)
            assert torch.equal(resized.state_dict()[key], value)
    content = json.loads((tmp_path / "without" / "config.json").read_text())
    content.pop("distillation_token", None)  # as earlier versions wrote it
    (tmp_path / "without" / "config.json").write_text(json.dumps(content))
    earlier = AllInOneForPreTraining.from_pretrained(tmp_path / "without")
    assert not earlier.config.distillation_token
    assert earlier.backbone.video_embeddings.temporal.shape == (1, 3, 128)


def test_small_has_the_token_unless_it_is_switched_off() -> None:
    for option, expected in ((None, True), (True, True), (False, False)):
        options = ModelOptions("small", distillation_token=option)
        assert options.build_config().distillation_token is expected
    assert not any(
        AllInOneConfig.from_size(size).distillation_token
        for size in ("nano", "tiny", "base", "large", "huge")
    )
    assert AllInOneConfig.from_size("small").num_visual_tokens == 198


def test_an_earlier_run_of_small_continues_without_the_token(tmp_path: Path) -> None:
    default = replace(RECIPES["webvid-howto-small"][1], out=tmp_path)

    def start(*flags: str) -> PretrainConfig:
        return parse_for_run(lambda base: parse(base, list(flags), prog="train"), default)[0]

    assert start().model_config().distillation_token
    recorded = json.loads(json.dumps(default.as_json()))
    del recorded["model"]["distillation_token"]
    (tmp_path / "run.json").write_text(json.dumps(recorded))
    continued = start()
    assert not continued.model_config().distillation_token
    assert not changed_options(recorded, continued.as_json())
    with_token = start("--distillation-token", "True")
    assert changed_options(recorded, with_token.as_json()) == [
        "model.distillation_token: False → True"
    ]


def test_cached_results_of_models_without_the_token_stay_valid() -> None:
    def scope(config: AllInOneConfig) -> dict[str, object]:
        evaluation = FinalEvaluation.__new__(FinalEvaluation)
        evaluation.model_config, evaluation.device = config, torch.device("cpu")
        options = SimpleNamespace(train=TrainConfig(), loader=DataConfig())
        options.frames = options.views = options.eval_batch = 1
        evaluation.config = options  # type: ignore[assignment]
        source = SimpleNamespace(sha256="")
        text = evaluation._cache_scope(source, HeadSpec(), "fp32", False)  # type: ignore[arg-type]
        return json.loads(text)["model"]

    # an earlier version looked its results up by all fields but this one
    plain = AllInOneConfig.from_size("nano")
    fields = set(AllInOneConfig.__annotations__) - {"distillation_token"}
    assert scope(plain).keys() == fields
    assert scope(DISTILLED)["distillation_token"] is True


def test_weights_that_disagree_on_the_token_name_the_option(tmp_path: Path) -> None:
    plain = AllInOneConfig.from_size("nano", vocab_size=50)
    model().save_pretrained(tmp_path / "with")
    model(plain).save_pretrained(tmp_path / "without")
    with pytest.raises(ConversionError, match="the model has none: give --distillation-token True"):
        load_resized(tmp_path / "with", plain)
    with pytest.raises(ConversionError, match="the file has none: give --distillation-token False"):
        load_resized(tmp_path / "without", DISTILLED)
    with pytest.raises(ConversionError, match="--distillation-token True"):
        convert_reference(
            state_dict("small"), AllInOneConfig.from_size("small", distillation_token=False)
        )


def test_another_resolution_keeps_both_prefix_rows(tmp_path: Path) -> None:
    saved = model()
    saved.save_pretrained(tmp_path)
    config = AllInOneConfig.from_size("nano", vocab_size=50, distillation_token=True, image_size=96)
    larger, report = load_resized(tmp_path, config)
    assert [line.split(",")[0] for line in report.resized] == [f"{POSITION} [1"]
    old, new = saved.state_dict()[POSITION], larger.state_dict()[POSITION]
    assert new.shape == (1, 2 + 36, 128)
    assert torch.equal(new[:, :2], old[:, :2])
    # the patches are resized as in a model without the token
    assert torch.equal(
        without_distillation(new), resize_grid(without_distillation(old), config.num_patches)
    )
