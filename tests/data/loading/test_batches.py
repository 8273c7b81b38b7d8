"""Batches are the same for any number of readers or ranks and after a restart."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from allinone.data import EvalSet
from allinone.data.config import DataConfig, DatasetSpec
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.index import Index
from allinone.data.loading.sampling import sample_eval
from tests.data.helpers import DEMO, prepare_small_demo
from tests.data.loading.streams import CLIP, CPU, assert_same, keys, stream, take


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("prepared"))


def test_batches_are_equal_for_any_readers_ranks_and_restart(prepared: Path) -> None:
    base = take(stream(prepared), 12)
    for a, b in zip(base, take(stream(prepared, workers=2), 12), strict=True):
        assert_same(a, b)
    for world in (2, 3):
        for rank in range(world):
            for k, batch in enumerate(take(stream(prepared), 12 // world, rank=rank, world=world)):
                assert_same(batch, base[k * world + rank])
    for a, b in zip(base[5:], take(stream(prepared), 7, first=20), strict=True):
        assert_same(a, b)
    assert len({batch.digest for batch in base}) == 12  # type: ignore[attr-defined]
    assert sorted(clip for batch in base[:10] for clip in batch.clips) == sorted(
        f"train/{i}" for i in keys(prepared)
    )  # type: ignore[attr-defined]


def test_pixels_equal_pillow_within_interpolation(prepared: Path) -> None:
    dataset = EvalSet(DatasetSpec(prepared), CLIP, DataConfig(workers=0))
    batch, *_ = dataset.batches(rank=0, world=1, batch_size=8, device=CPU)
    index = Index(prepared, "train")
    for item in range(4):
        row = index[item]
        content = (DEMO / "videos" / row["source"]).read_bytes()
        choices = sample_eval(
            DataConfig(), frames=row["frames"], width=row["width"], height=row["height"], wanted=3
        )
        frames = decode_frames(content, choices.frames)
        expected = np.stack(
            [
                np.asarray(Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR))
                for frame in frames
            ]
        )
        pixels = (expected / 255 - np.array(DataConfig().mean)) / np.array(DataConfig().std)
        difference = np.abs(batch.pixels[item].permute(0, 2, 3, 1).numpy() - pixels)
        assert difference.mean() < 0.02
        assert difference.max() < 0.2


def test_evaluation_has_every_item_once_at_any_world_size(prepared: Path) -> None:
    dataset = EvalSet(DatasetSpec(prepared), CLIP, DataConfig(workers=0))
    for world in (1, 3):
        names = [
            clip
            for rank in range(world)
            for batch in dataset.batches(rank=rank, world=world, batch_size=7, device=CPU)
            for clip in batch.clips
        ]
        assert sorted(names) == sorted(f"train/{key}" for key in keys(prepared))


def test_evaluation_keeps_its_limit_at_any_world_size(prepared: Path) -> None:
    data = EvalSet(DatasetSpec(prepared, "train"), CLIP, DataConfig(workers=0))
    for world in (1, 3, 8):
        taken = [
            name
            for rank in range(world)
            for batch in data.batches(
                rank=rank, world=world, batch_size=4, device=torch.device("cpu"), limit=10
            )
            for name in batch.clips
        ]
        assert len(taken) == len(set(taken)) == 10


def test_frames_after_a_seek_equal_those_of_a_full_decode() -> None:

    content = (DEMO / "videos" / "000001_000200" / "7.mp4").read_bytes()
    with av.open(io.BytesIO(content)) as container:
        frames = [
            frame.to_ndarray(format="rgb24", src_colorspace="ITU601", dst_colorspace="ITU601")
            for frame in container.decode(video=0)
        ]
    for wanted in ((0, 5, 23), (13, 20, 22), (12, 12, 12)):
        for keyframes in ((0,), (0, 12)):
            got = decode_frames(content, wanted, Timeline(keyframes, rate=len(frames) / 2.376))
            assert all(
                np.array_equal(frame, frames[number])
                for frame, number in zip(got, wanted, strict=True)
            )
    with pytest.raises(DecodeError, match="frame 99"):
        decode_frames(content, (99,))
