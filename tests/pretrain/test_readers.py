"""--workers auto."""

from __future__ import annotations

from dataclasses import replace

import pytest

from allinone.common.errors import InputError
from allinone.data.config import DataConfig
from allinone.engine.distributed import launch
from allinone.pretrain import readers
from allinone.pretrain.recipes import RECIPES
from allinone.pretrain.train import parse


def test_readers_follow_the_gpu_within_the_cores() -> None:
    assert readers.readers_needed(517, cores=16) == 11, "an H100 at 40 %: 8 readers were too few"
    assert readers.readers_needed(517, cores=8) == 7, "one core is the training's"
    assert readers.readers_needed(3, cores=64) == 2
    assert readers.readers_needed(float("nan"), cores=12) == 11, "an unknown card"


def test_auto_is_read_from_the_command_line_and_means_two_on_a_cpu() -> None:
    config, _ = parse(["demo", "--workers", "auto", "--device", "cpu"], prog="train")
    assert config.loader.workers == "auto"
    assert readers.with_readers(config).loader.readers == 2
    assert parse(["demo", "--workers", "5"], prog="train")[0].loader.readers == 5
    with pytest.raises(InputError, match="--workers must be at least 0, got -1"):
        DataConfig(workers=-1)


def test_auto_becomes_a_number_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """base on an H100: 0.5 x 989.4 TFLOP/s / 683 GFLOPs per clip without padding = 724 clips/s."""
    monkeypatch.setattr(readers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(readers.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(readers, "peak_rate", lambda device, precision: (989.4e12, "H100"))
    monkeypatch.setattr(readers.os, "sched_getaffinity", lambda pid: set(range(32)))
    monkeypatch.setattr(launch, "ranks_of_host", lambda env, world: 1)
    config = RECIPES["webvid-howto"][1]
    assert config.loader.workers == "auto"
    resolved = readers.with_readers(config)
    assert resolved.loader.workers == 15
    assert replace(resolved, loader=config.loader) == config
