"""Trains one step under observation, between two logging steps: `run` is one rank (ranks.py)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from allinone.data.loading.batch import CoBatch
from allinone.engine.callbacks.checkpoint import CheckpointCallback
from allinone.engine.config import TrainConfig
from allinone.engine.distributed import launch
from allinone.engine.trainer import Trainer
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective
from tests.benchmarks.train_step import RepeatedBatch
from tests.engine.fake_streams import FakeDevice, Races
from tests.engine.toy import ToyData, ToyModel, objective
from tests.gpu.sync import WaitCounter, Watch

LOG_EVERY = 2


class CoTraining(RepeatedBatch):
    """The same videos and images of two data sets in every step."""

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Any]:
        video = replace(
            self.batch(micro_batch, rank),
            dataset_ids=torch.arange(micro_batch) % 2,
            dataset_names=("one", "two"),
        )
        images = replace(video, pixels=video.pixels[:, :1])
        while True:
            yield CoBatch(video, images)


def all_objectives() -> dict[str, Any]:
    """The smallest model that all objectives can train, on videos and images."""
    size = AllInOneConfig.from_size(
        "nano", num_frames=2, image_size=32, vocab_size=2000, num_hidden_layers=2
    )
    return {
        "model": AllInOneForPreTraining(size),
        "objective": PretrainObjective(ObjectiveConfig(vtc=0.5, wpa=0.1)),
        "data": CoTraining(size),
    }


def run(out: Path, options: dict[str, Any]) -> int:
    """Train and print what was observed, as JSON.

    Args:
        out: The run's folder.
        options: Those of TrainConfig, and `streams`: look for races in the training of toy.py
            instead of waits in that of all objectives; `ordered`: as in FakeDevice.
    """
    streams, ordered = options.pop("streams", False), options.pop("ordered", True)
    config = TrainConfig(
        **{
            "steps": LOG_EVERY + 2,
            "global_batch": 2 * int(os.environ.get("WORLD_SIZE", "1")),
            "micro_batch": 2,
            "log_every": LOG_EVERY,
            "device": "cpu",
            **options,
        }
    )
    waits = WaitCounter(on_gpu=False)
    device = FakeDevice(ordered) if streams else None
    races = Races(device) if device else None

    @contextlib.contextmanager
    def watched() -> Iterator[None]:
        before = device.waits if device else 0
        with races or waits:
            yield
        if races and device:
            print("races", json.dumps([races.found, device.waits - before]))
        else:
            print("waits", json.dumps(dict(waits.counts)))

    def train() -> None:
        torch.manual_seed(0)
        toy = {"model": ToyModel(), "objective": objective, "data": ToyData()}
        trainer = Trainer(config, **(toy if streams else all_objectives()), run_config={}, out=out)
        trainer.callbacks = (
            Watch(watched, after=LOG_EVERY, count=1),
            # a checkpoint may wait, and takes long
            *(each for each in trainer.callbacks if not isinstance(each, CheckpointCallback)),
        )
        trainer.train()

    return launch.main(train)
