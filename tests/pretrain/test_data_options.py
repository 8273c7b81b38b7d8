"""Geometry and augmentation of the recipes, and runs of versions that did not have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from allinone.common.command_line import parse
from allinone.common.earlier_runs import parse_for_run
from allinone.data.config import IMAGENET_MEAN, IMAGENET_STD
from allinone.engine.resume import compare_options
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.recipes import RECIPES

NEW = ("geometry", "squash_scale", "augment", "randaug_layers", "randaug_magnitude")
PLUS = sorted(name for name in RECIPES if name.startswith("plus-"))


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"demo", "own"}))
def test_video_of_the_papers_recipes_is_squashed(name: str) -> None:
    loader = RECIPES[name][1].loader
    assert loader.geometry == ("crop" if name == "cc3m-coco" else "squash")
    if name not in PLUS:
        assert (loader.augment, loader.flip, loader.squash_scale) == ("none", 0, (1.2, 1.2))
        assert (loader.mean, loader.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("name", PLUS)
def test_co_trained_recipes_augment_as_pytorchvideo(name: str) -> None:
    """create_video_transform: short side 1.2 to 1.5 crops, flip 0.5, RandAugment(9, 2)."""
    loader = RECIPES[name][1].loader
    assert (loader.augment, loader.randaug_layers, loader.randaug_magnitude) == ("randaug", 2, 9)
    assert (loader.flip, loader.squash_scale) == (0.5, (1.2, 1.5))
    assert (loader.mean, loader.std) == ((0.45,) * 3, (0.225,) * 3)


@pytest.mark.parametrize("name", ["plus-seven", "webvid-howto-base", "demo"])
def test_a_run_without_the_new_options_continues_with_crops(name: str, tmp_path: Path) -> None:
    recipe = replace(RECIPES[name][1], out=tmp_path)
    earlier = json.loads(json.dumps(recipe.as_json()))
    for option in NEW:
        del earlier["loader"][option]
    earlier["loader"] |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "flip": 0.0}
    earlier["loader"]["augmentation"] = earlier["loader"].pop("augment_backend")
    (tmp_path / "run.json").write_text(json.dumps(earlier))
    config, _ = parse_for_run(lambda base: parse(base, [], prog="train"), recipe)
    assert isinstance(config, PretrainConfig)
    loader = config.loader
    assert (loader.geometry, loader.augment, loader.flip) == ("crop", "none", 0)
    assert (loader.mean, loader.std) == (IMAGENET_MEAN, IMAGENET_STD)
    found = compare_options(earlier, config.as_json())
    assert (found.refused, found.unknown) == ([], [])


def test_another_geometry_is_refused_on_resume(tmp_path: Path) -> None:
    recipe = replace(RECIPES["demo"][1], out=tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(recipe.as_json()))
    config, _ = parse_for_run(
        lambda base: parse(base, ["--geometry", "squash"], prog="train"), recipe
    )
    refused = compare_options(recipe.as_json(), config.as_json()).refused
    assert [str(change) for change in refused] == ["loader.geometry: crop → squash"]
