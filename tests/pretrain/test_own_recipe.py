"""The recipe for clips of one's own: what it derives, what it says, and the commands around it."""

from __future__ import annotations

import json
import logging
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from allinone.common.errors import ConfigError, DataError
from allinone.common.exit_codes import ExitCode
from allinone.data.captions import caption_lengths
from allinone.data.index import dataset_facts
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.engine.config import TrainConfig
from allinone.pretrain import train
from allinone.pretrain.own_data import OwnTrainConfig, resolve, suggest_weights
from allinone.pretrain.recipes import RECIPES
from allinone.tools import check_data, report
from allinone.tools import prepare as prepare_tool
from tests.data.media import write_video
from tests.forked import ForkServer

ROOT = Path(__file__).resolve().parents[2]
CLIPS = 24
SMALL = (
    "--size nano --image-size 32 --steps 4 --global-batch 4 --micro-batch 4 --workers 0"
    " --eval-every 2 --log-every 2"
)


def guide(command: str, *places: tuple[str, Path]) -> list[str]:
    """The words of a command of docs/guides/own-data.md, with other places."""
    block = (ROOT / "docs/guides/own-data.md").read_text().split("```sh\n")[1].split("```")[0]
    (line,) = [one for one in block.splitlines() if one.startswith(f"allinone {command} ")]
    for place, path in places:
        line = line.replace(place, str(path))
    return line.split()[2:]


def caption(number: int) -> str:
    """11 tokens with [CLS] and [SEP]; the last clip's has 62."""
    words = 60 if number == CLIPS - 1 else 9
    return " ".join(["dog", "cat", "bird"][(number + k) % 3] for k in range(words))


def write_source(folder: Path, splits: dict[int, str] | None = None) -> Path:
    source = folder / "source"
    lines = ["path,caption,split"]
    for n in range(CLIPS):
        write_video(source / "clips" / f"{n}.mp4", frames=8, first=n)
        lines.append(f"clips/{n}.mp4,{caption(n)},{(splits or {}).get(n, '')}")
    (source / "my.csv").write_text("\n".join(lines) + "\n")
    return source / "my.csv"


def prepared(folder: Path, splits: dict[int, str], val_share: float = 0.0) -> Path:
    source = write_source(folder, splits)
    prepare(PrepareOptions(source, folder / "data", workers=1, val_share=val_share))
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    places = ("my.csv", write_source(folder)), ("prepared/mine", folder / "data")
    assert prepare_tool.main([*guide("prepare", *places), "--val-share", "0.25"]) == 0
    return folder / "data"


def start(server: ForkServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = server.command("pretrain/train.py", *arguments)
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )


@pytest.fixture(scope="module")
def finished(
    data: Path, server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("run") / "mine"
    words = guide("train", ("prepared/mine", data), ("runs/mine", out))
    return out, start(server, *words, *SMALL.split())


def test_val_share_holds_out_whole_files_by_name(data: Path, tmp_path: Path) -> None:
    clips = dataset_facts(data)["clips"]
    assert clips["train"] + clips["val"] == CLIPS
    assert 1 <= clips["val"] <= CLIPS // 2
    with pytest.raises(DataError, match="has a split val already"):
        prepared(tmp_path, {0: "val"}, val_share=0.25)


def test_a_prepared_folder_of_earlier_versions_is_still_finished(tmp_path: Path) -> None:
    assert "val_share" not in PrepareOptions(tmp_path / "a.csv", tmp_path).fingerprint()


def test_run_says_what_is_cut_selects_the_best_and_names_the_next_commands(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, ended = finished
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    for text in (
        "loading PyTorch and DeepSpeed",
        "tokens cuts none (--max-text-len)",
        "(in brackets: chance)",
        "evaluations:",
        f"allinone report {out}",
    ):
        assert text in ended.stdout, text
    assert "untested optimizer" not in ended.stdout + ended.stderr
    assert json.loads((out / "best.json").read_text())["value"] is not None
    assert (out / "best").is_dir()
    assert json.loads((out / "run.json").read_text())["train"]["steps"] == 4


def test_larger_steps_of_a_finished_run_name_the_way_out(
    data: Path,
    server: ForkServer,
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    out, _ = finished
    base = ["own", "--data", str(data), *SMALL.split()]
    refused = start(server, *base, "--out", str(out), "--steps", "9")
    assert refused.returncode == ExitCode.USAGE
    assert f"--init-from {out} --out NEW" in refused.stderr
    longer = ["--out", str(tmp_path / "new"), "--init-from", str(out), "--steps", "2"]
    continued = start(server, *base, *longer)
    assert continued.returncode == 0, continued.stderr[-3000:]
    assert f"initial weights: best weights of {out}" in continued.stdout


def test_report_makes_the_demos_page_of_any_run(
    finished: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    assert report.main(guide("report", ("runs/mine", out))) == 0
    page = (out / "report" / "report.html").read_text()
    assert page.count("data:image") > 5
    assert "data/val" in page
    assert "skin tone" not in page
    assert str(out / "report" / "report.html") in capsys.readouterr().out


def test_check_shows_what_a_run_and_a_recipe_read(
    data: Path,
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = ["--quick", "--decodes", "1", "--samples", "3", "--out", str(tmp_path)]
    assert check_data.main([str(data), *quick, "--run", str(finished[0])]) == 0
    shown = capsys.readouterr().out
    assert "tokens  cut" in shown
    assert check_data.main([*guide("check", ("prepared/mine", data)), *quick]) == 0
    assert check_data.main([str(data), *quick, "--recipe", "demo"]) == 0
    assert "the limit of 16 tokens cuts" in capsys.readouterr().out
    options = check_data.CheckOptions(data, recipe="demo")
    clip, loader = check_data._training(options)
    assert (clip.image_size, clip.max_text_len, loader.crop_scale) == (64, 16, (0.8, 1.0))
    assert check_data.main([str(data), "--recipe", "nothing"]) == ExitCode.USAGE
    assert "recipes: demo, own" in capsys.readouterr().err


def test_tokens_are_counted_with_the_marks(data: Path) -> None:
    lengths = caption_lengths(data, "train")
    assert lengths.complete
    assert lengths.quantile(0.5) == 11
    assert lengths.tokens[-1] in (11, 62)
    assert lengths.cut(11) == sum(tokens > 11 for tokens in lengths.tokens)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("world", [1, 4])
def test_derived_values_fit_each_other(device: str, world: int, data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPES["own"][1], data=(str(data),), out=tmp_path / "run")
    config = resolve(recipe, device, world)
    assert type(config.train) is TrainConfig
    assert config.train.accumulation(world) >= 1
    assert config.train.global_batch <= dataset_facts(data)["clips"]["train"]
    assert config.train.steps == (50 if device == "cpu" else 500)
    assert config.train.ds_config == ("zero1_fp32" if device == "cpu" else "zero1_bf16")
    assert config.val == (f"{data}:val",)
    assert config.model.max_text_len in (40, 64)


def test_start_from_imagenet_is_suggested_where_weights_exist(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("allinone"), "propagate", True)
    recipe = replace(RECIPES["own"][1], data=(str(data),), out=tmp_path)
    with caplog.at_level("INFO", "allinone"):
        suggest_weights(replace(recipe, model=replace(recipe.model, size="nano")))
        suggest_weights(replace(recipe, model=replace(recipe.model, init_from="w")))
        assert not caplog.text
        suggest_weights(recipe)
    assert "from-vit facebook/deit-tiny-patch16-224 --size tiny" in caplog.text


def test_resumed_run_keeps_derived_values_on_another_device(data: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPES["own"][1], data=(str(data),), out=tmp_path)
    config = resolve(recipe, "cpu", 1)
    (tmp_path / "run.json").write_text(json.dumps(config.as_json()))
    again = resolve(recipe, "cuda", 1)
    for name in ("steps", "global_batch", "micro_batch"):
        assert getattr(again.train, name) == getattr(config.train, name)


def test_own_data_needs_a_place_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for words, missing in (
        (["own"], "--data and --out"),
        (["own", "--data", "prepared/mine"], "--out"),
        (["demo", "--data", "prepared/mine"], "give --out"),
    ):
        assert train.main(words) == ExitCode.USAGE
        assert missing in capsys.readouterr().err


def test_bare_val_means_the_split_val_of_the_data(tmp_path: Path) -> None:
    words = ["demo", "--data", "prepared/a:train=2", "--out", str(tmp_path)]
    bare = train.parse([*words, "--val", "--steps", "5"])[0]
    assert [(str(spec.path), spec.split) for spec in bare.val_specs()] == [("prepared/a", "val")]
    last = train.parse([*words, "--val"])[0]
    assert last.val_specs() == bare.val_specs()
    assert train.parse([*words, "--val", "none"])[0].val_specs() == []
    named = train.parse([*words, "--val", "prepared/b:held"])[0]
    assert [spec.split for spec in named.val_specs()] == ["held"]


def test_usual_names_of_splits_are_understood_and_others_listed(tmp_path: Path) -> None:
    folder = prepared(tmp_path, {0: "validation", 1: "validation", 2: "results_held"})
    assert caption_lengths(folder, "val").tokens == (11, 11)
    with pytest.raises(DataError, match="splits: results_held, train, validation"):
        caption_lengths(folder, "test")


def test_options_of_the_recipe_are_checked_before_they_are_derived() -> None:
    with pytest.raises(ValueError, match="lr"):
        OwnTrainConfig(lr=-1.0)
    with pytest.raises(ConfigError, match="exclude each other"):
        OwnTrainConfig(quiet=True, verbose=True)
