"""Which runs compile their model, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from allinone.common.command_line import parse
from allinone.common.earlier_runs import parse_for_run
from allinone.common.errors import ConfigError
from allinone.engine import compilation, ds_config
from allinone.engine.compilation import compile_model
from allinone.engine.config import TrainConfig
from allinone.pretrain.config import PretrainConfig
from tests.engine.ranks import RankServer
from tests.engine.toy_processes import history, weights


class Blocks(nn.Module):
    compiled = ""

    def compile_blocks(self, fullgraph: bool) -> None:
        self.compiled = "blocks" if fullgraph else "pieces"


def compiles(device: str, choice: bool | Literal["auto"], **options: Any) -> str:
    model, config = Blocks(), TrainConfig(compile=choice, **options)
    compile_model(model, config, ds_config.load(config.ds_config), torch.device(device))
    return model.compiled


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_problem", lambda device: "")


@pytest.mark.usefixtures("compiler")
def test_auto_compiles_on_cuda_where_a_block_is_one_graph() -> None:
    assert compiles("cuda", "auto") == "blocks"
    assert compiles("cuda", "auto", ds_config="zero2_fp16") == "blocks"
    assert not compiles("cuda", "auto", ds_config="zero3_bf16")
    assert not compiles("cuda", "auto", tensor_parallel=2)
    assert not compiles("cpu", "auto")
    assert not compiles("cuda", False)
    assert compiles("cpu", True) == "blocks"
    assert compiles("cpu", True, tensor_parallel=2) == "pieces"


def test_zero_3_is_refused_with_the_options_to_change() -> None:
    with pytest.raises(ConfigError, match=r"give --no-compile, or a ZeRO stage below 3"):
        compiles("cpu", True, ds_config="zero3_bf16")


def test_auto_without_a_compiler_warns_and_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", broken)
    # the small function is made on the CPU here
    monkeypatch.setattr(torch, "ones", lambda *shape, device, **other: torch.zeros(*shape, **other))
    assert not compiles("cuda", "auto")
    assert "runs uncompiled" in caplog.text
    assert "no C compiler" in caplog.text


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], "auto"),
        (["--compile"], True),
        (["--compile", "True"], True),
        (["--no-compile"], False),
        (["--compile=off"], False),
        (["--compile", "auto"], "auto"),
        (["--compile", "--lr", "1"], True),
    ],
    ids=str,
)
def test_flags_of_earlier_versions_are_still_read(words: list[str], value: object) -> None:
    assert parse(TrainConfig, words, prog="train").compile is value


def test_another_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--compile=always"], prog="train")
    expected = "--compile always: give --compile or --no-compile or --compile auto"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("recorded", [False, True])
def test_a_run_of_an_earlier_version_keeps_its_value(tmp_path: Path, recorded: bool) -> None:
    recipe = PretrainConfig(out=tmp_path, data=("x",))
    record = json.loads(json.dumps(recipe.as_json()))
    record["train"]["compile"] = recorded
    (tmp_path / "run.json").write_text(json.dumps(record))
    flags = ["--compile"] if recorded else []  # given again, as when it started
    config, kept = parse_for_run(lambda base: parse(base, flags, prog="train"), recipe)
    assert config.train.compile is recorded
    assert kept == ([] if recorded else ["train.compile False"])


@pytest.mark.parametrize(
    ("world", "options"),
    [
        (1, {"ds_config": "zero1_fp32"}),
        (2, {"ds_config": "zero2_bf16", "activation_checkpointing": True}),
        (2, {"ds_config": "zero1_fp32", "tensor_parallel": 2}),
    ],
    ids=str,
)
def test_compiled_training_computes_the_same(
    server: RankServer, tmp_path: Path, world: int, options: dict[str, Any]
) -> None:
    losses, names = [], []
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        codes, output = server.run(
            out,
            world,
            program="tests.engine.compiled_run",
            # a compiled graph draws other numbers
            model={"hidden_dropout": 0.0, "drop_path": 0.0},
            compile=compiled,
            **options,
        )
        assert codes == [0] * world, output
        losses.append([row["metrics"]["fit_loss"] for row in history(out).values()])
        names.append(sorted(weights(out)))
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert names[1] == names[0]
