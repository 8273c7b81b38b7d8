"""Helpers of the tests of batches."""

from __future__ import annotations

from pathlib import Path

import torch

from allinone.data import TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.index import Index

CPU = torch.device("cpu")
CLIP = ClipConfig(num_frames=3, image_size=32, max_text_len=12)


def stream(out: Path, **options: object) -> TrainStream:
    config = DataConfig(
        **{"workers": 0, "dali_threads": 1, "flip": 0.5, "color_jitter": 0.3, **options}
    )  # type: ignore[arg-type]
    return TrainStream([DatasetSpec(out)], CLIP, config, seed=3)


def take(
    data: TrainStream, count: int, first: int = 0, rank: int = 0, world: int = 1
) -> list[object]:
    batches = data.batches(first=first, rank=rank, world=world, micro_batch=4, device=CPU)
    taken = [next(batches) for _ in range(count)]
    batches.close()  # type: ignore[attr-defined]
    return taken


def assert_same(a: object, b: object) -> None:
    for name, value in vars(a).items():
        other = vars(b)[name]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, (
            name
        )


def keys(out: Path) -> list[str]:
    index = Index(out, "train")
    return [index[item]["key"].removeprefix("train/") for item in range(len(index))]
