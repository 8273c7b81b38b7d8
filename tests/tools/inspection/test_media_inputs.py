"""A file from the command line gives the same model inputs as in a prepared data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allinone.data import EvalSet
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.tools.inspection.media_inputs import ClipReader, TextReader
from tests.data.media import read_frame_number, vfr_times, write_rotated, write_video
from tests.tools.conftest import FRAMES, SIDE, tiny_config


def test_pixels_and_tokens_equal_those_of_evaluation(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_video(source / "wide.mp4", width=96, height=64)
    write_video(source / "uneven.mp4", times=vfr_times(24))
    write_rotated(source / "turned.mp4", 90, width=64, height=48)
    names = ("wide", "uneven", "turned")
    (source / "clips.csv").write_text(
        "path,caption\n" + "".join(f"{name}.mp4,A {name} clip\n" for name in names)
    )
    prepare(PrepareOptions(source / "clips.csv", tmp_path / "prepared", workers=1))
    options = DataConfig(backend="cpu", workers=0, dali_threads=1, eval_crop=0.9)
    dataset = EvalSet(
        DatasetSpec(tmp_path / "prepared", "train"), ClipConfig(FRAMES, SIDE, 16), options
    )
    batch = next(dataset.batches(rank=0, world=1, batch_size=3, device=torch.device("cpu")))
    read_clip, read_text = ClipReader(tiny_config(), options), TextReader(tiny_config())
    assert sorted(batch.captions) == sorted(f"A {name} clip" for name in names)
    for row, caption in enumerate(batch.captions):
        clip, words = read_clip(source / f"{caption.split()[1]}.mp4"), read_text(caption)
        assert torch.equal(clip.pixels[0], batch.pixels[row])
        assert torch.equal(words.ids[0], batch.text_ids[row])
        assert torch.equal(words.mask[0], batch.text_mask[row])


def test_drawn_frames_are_the_middle_frames_of_three_segments(tmp_path: Path) -> None:
    clip = ClipReader(tiny_config(), DataConfig(backend="cpu", dali_threads=1))(
        write_video(tmp_path / "a.mp4", frames=24)
    )
    assert clip.numbers == (3, 11, 19)
    assert [read_frame_number(picture) for picture in clip.pictures] == [3, 11, 19]


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (63, 45)])
def test_drawn_frames_are_the_central_square(width: int, height: int, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.webm", codec="libvpx-vp9", width=width, height=height)
    clip = ClipReader(tiny_config(), DataConfig(backend="cpu", dali_threads=1))(video)
    side = min(width, height)
    assert clip.pictures.shape == (3, side, side, 3)


def test_drawn_frames_of_squash_are_what_the_model_sees(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.webm", codec="libvpx-vp9", width=96, height=64)
    options = DataConfig(
        backend="cpu", dali_threads=1, geometry="squash", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    clip = ClipReader(tiny_config(), options)(video)
    side = round(64 * 224 / 268)
    assert clip.pictures.shape == (3, side, side, 3)
    small = [
        np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        for one in clip.pictures
    ]
    seen = 255 * clip.pixels[0].permute(0, 2, 3, 1).numpy()
    assert np.abs(np.stack(small) - seen).mean() < 6
