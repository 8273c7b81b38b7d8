"""Geometry and normalisation of a fine-tuning run: the checkpoint's, unless they are given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from allinone.common.options import RunOptions
from allinone.data import AllInOneProcessor
from allinone.data.config import IMAGENET_MEAN, IMAGENET_STD, ClipConfig, DataConfig
from allinone.engine.resume import compare_options
from allinone.finetune.benchmarks import load_benchmark
from allinone.finetune.command import parse
from allinone.finetune.config import TuneDataConfig, resolve_data
from allinone.finetune.task_model.source import read_source_checkpoint
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from tests.tools.lightning import save, state_dict

MINE = DataConfig(geometry="squash", mean=(0.4,) * 3, std=(0.2,) * 3)
AUTO = TuneDataConfig()


def record(out: Path, **loader: object) -> None:
    """A run's record of its data options."""
    out.mkdir(exist_ok=True)
    (out / "run.json").write_text(json.dumps({"loader": loader}))


def test_a_new_run_takes_the_values_of_the_checkpoint(tmp_path: Path) -> None:
    data, line = resolve_data(AUTO, AUTO, tmp_path / "new", MINE)
    assert type(data) is DataConfig
    assert (data.geometry, data.mean, data.std) == (MINE.geometry, MINE.mean, MINE.std)
    assert line.startswith("geometry squash (of the checkpoint), mean 0.4 0.4 0.4 (of the check")


def test_a_given_value_wins_over_the_checkpoint(tmp_path: Path) -> None:
    given = replace(AUTO, geometry="crop", mean=(0.5,) * 3)
    data, line = resolve_data(given, AUTO, tmp_path / "new", MINE)
    assert (data.geometry, data.mean, data.std) == ("crop", (0.5,) * 3, MINE.std)
    assert "geometry crop (given), mean 0.5 0.5 0.5 (given), std 0.2" in line


def test_a_resumed_run_keeps_what_it_recorded(tmp_path: Path) -> None:
    record(tmp_path, geometry="squash", mean=[0.1, 0.2, 0.3], std=[0.3, 0.2, 0.1])
    data, line = resolve_data(AUTO, AUTO, tmp_path, DataConfig())
    assert (data.geometry, data.mean, data.std) == ("squash", (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    assert line.count("of the run in --out") == 3
    evaluated, _ = resolve_data(AUTO, AUTO, None, DataConfig())
    assert evaluated.geometry == "crop", "--eval-only follows the checkpoint"


def test_a_run_of_an_earlier_version_keeps_cropping(tmp_path: Path) -> None:
    record(tmp_path, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
    data, _ = resolve_data(AUTO, AUTO, tmp_path, MINE)
    assert (data.geometry, data.mean, data.std) == ("crop", IMAGENET_MEAN, IMAGENET_STD)


def flags(out: Path) -> list[str]:
    """What a command must give."""
    return ["--annotations", "a", "--media", "m", "--checkpoint", "c", "--out", str(out)]


@pytest.mark.parametrize("name", ["k400_linear", "msrvtt_qa", "coco_retrieval"])
def test_an_earlier_run_json_resumes_with_the_same_command(name: str, tmp_path: Path) -> None:
    benchmark = load_benchmark(name)
    config, _ = parse(benchmark, flags(tmp_path))
    earlier = json.loads(json.dumps(config.as_json()))
    for new in ("geometry", "squash_scale", "augment", "randaug_layers", "randaug_magnitude"):
        del earlier["loader"][new]
    earlier["loader"] |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "flip": 0.0}
    earlier["loader"]["augmentation"] = earlier["loader"].pop("augment_backend")
    (tmp_path / "run.json").write_text(json.dumps(earlier))
    config, _ = parse(benchmark, flags(tmp_path))
    data, _ = resolve_data(config.loader, benchmark.config.loader, tmp_path, MINE)
    assert (data.geometry, data.augment, data.flip) == ("crop", "none", 0)
    resumed = RunOptions.of(replace(config, loader=data))
    assert compare_options(earlier, resumed).refused == []
    # and once more, from the record of this version
    (tmp_path / "run.json").write_text(json.dumps(resumed))
    config, _ = parse(benchmark, flags(tmp_path))
    again, _ = resolve_data(config.loader, benchmark.config.loader, tmp_path, MINE)
    assert again == data
    assert compare_options(resumed, RunOptions.of(replace(config, loader=again))).refused == []


def test_the_probe_on_kinetics_is_augmented_as_the_originals(tmp_path: Path) -> None:
    config, kept = parse(load_benchmark("k400_linear"), flags(tmp_path / "new"))
    loader = config.loader
    assert (loader.augment, loader.flip, loader.squash_scale) == ("randaug", 0.5, (1.2, 1.5))
    assert (loader.mean, loader.std, loader.geometry) == ((0.45,) * 3, (0.225,) * 3, "auto")
    assert kept == []


def test_the_checkpoint_states_its_geometry(tmp_path: Path) -> None:
    released = read_source_checkpoint(save(tmp_path / "tiny.ckpt", state_dict("tiny")))
    assert released.data.geometry == "squash"
    model = AllInOneForPreTraining(AllInOneConfig.from_size("nano", image_size=32))
    model.save_pretrained(tmp_path / "own")
    assert read_source_checkpoint(tmp_path / "own").data.geometry == "crop", "an earlier folder"
    AllInOneProcessor.of(ClipConfig(3, 32, 16), MINE).save_pretrained(tmp_path / "own")
    own = read_source_checkpoint(tmp_path / "own").data
    assert (own.geometry, own.mean, own.std) == (MINE.geometry, MINE.mean, MINE.std)


def test_the_old_spelling_of_the_backend_is_read(tmp_path: Path) -> None:
    benchmark = load_benchmark("msrvtt_qa")
    config, _ = parse(benchmark, [*flags(tmp_path / "new"), "--augmentation", "torch"])
    assert (config.loader.augment_backend, config.loader.augment) == ("torch", "none")
