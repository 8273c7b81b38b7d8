"""Runs of earlier versions keep their values when recipes and defaults change."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from allinone.common.command_line import parse
from allinone.common.earlier_runs import parse_for_run
from allinone.common.options import MAY_CHANGE, RunOptions, option
from allinone.engine.resume import compare_options, examine
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.recipes import RECIPES


@dataclass(frozen=True)
class Loss:
    """Options of the loss."""

    clip: float = option(0.5, earlier=1.0)
    """Clipping norm; earlier versions clipped at 1."""
    negatives: str = option("dataset", earlier="any")
    """Did not exist in earlier versions, which drew from any data set."""


@dataclass(frozen=True)
class RecordedOptions:
    """Options of a run."""

    out: Path = field(metadata=MAY_CHANGE)
    """Folder."""
    loss: Loss = field(default_factory=Loss)


def start(out: Path, *flags: str) -> tuple[RecordedOptions, list[str]]:
    """Options of a command in a run folder."""
    default = RecordedOptions(out)
    return parse_for_run(lambda base: parse(base, list(flags), prog="train"), default)


def record(out: Path, **loss: Any) -> None:
    """A run of an earlier version."""
    out.mkdir()
    (out / "run.json").write_text(json.dumps({"out": str(out), "loss": loss}))


def test_a_new_run_takes_the_defaults_of_this_version(tmp_path: Path) -> None:
    assert start(tmp_path / "run") == (RecordedOptions(tmp_path / "run"), [])


def test_an_earlier_run_keeps_recorded_and_missing_values(tmp_path: Path) -> None:
    out = tmp_path / "run"
    record(out, clip=1.0)
    config, kept = start(out)
    assert config.loss == Loss(clip=1.0, negatives="any")
    assert kept == ["loss.clip 1.0", "loss.negatives any"]
    assert examine(out, RunOptions.of(config)).kind == "fresh", "compatible; no checkpoint yet"


def test_a_flag_wins_over_an_earlier_value_and_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    record(out, clip=1.0)
    config, kept = start(out, "--clip", "0.5", "--negatives", "any")
    assert config.loss == Loss(clip=0.5, negatives="any")
    assert kept == ["loss.negatives any"]
    refused = compare_options(json.loads((out / "run.json").read_text()), RunOptions.of(config))
    assert [change.name for change in refused.refused] == ["loss.clip"]


def test_a_run_of_this_version_keeps_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    record(out, clip=0.5, negatives="dataset")
    assert start(out)[1] == []


def test_another_value_of_an_earlier_run_is_not_taken(tmp_path: Path) -> None:
    out = tmp_path / "run"
    record(out, clip=3.0, negatives="any")
    config, _ = start(out)
    assert config.loss.clip == 0.5, "chosen by its user: the same flag must be given again"


def test_a_file_without_a_new_option_keeps_the_earlier_value(tmp_path: Path) -> None:
    out = tmp_path / "run"
    record(out, clip=0.5)
    flags = ["--config", str(out / "run.json")]
    config, kept = parse_for_run(lambda base: parse(base, flags, prog="train"), RecordedOptions)
    assert config.loss == Loss(clip=0.5, negatives="any")
    assert kept == ["loss.negatives any"]


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_an_unreadable_record_is_left_to_the_resume_check(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert start(tmp_path) == (RecordedOptions(tmp_path), [])


def test_a_paper_recipe_of_an_earlier_version_continues(tmp_path: Path) -> None:
    # the values that the recipe had: random start, first and last rows roll, clipping, no WPA
    recipe = replace(RECIPES["webvid-howto-base"][1], out=tmp_path)
    earlier = json.loads(json.dumps(recipe.as_json()))
    earlier["model"] |= {"init_from": None, "patch_order": None}
    earlier["objective"]["wpa"] = 0.0
    del earlier["objective"]["vtm_negatives"]
    earlier["train"]["clip_grad"] = 1.0
    (tmp_path / "run.json").write_text(json.dumps(earlier))
    config, kept = parse_for_run(lambda base: parse(base, [], prog="train"), recipe)
    assert isinstance(config, PretrainConfig)
    assert config.model.initial_weights() is None
    assert (config.model.patch_order, config.objective.wpa) == (None, 0.0)
    assert config.objective.vtm_negatives == "any"
    assert config.train.clip_grad == 1.0
    assert {line.split()[0] for line in kept} >= {"train.clip_grad", "objective.wpa"}
    assert compare_options(earlier, config.as_json()).refused == []
