"""The torch twin against DALI's CPU graph, and the choice between the two."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from allinone.common.errors import ConfigError
from allinone.data import AllInOneProcessor, EvalSet, TrainStream
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.loading import augmentation
from allinone.data.loading.augmentation import DALI_PACKAGE, augmentation_for
from allinone.data.loading.sampling import SampleChoices
from allinone.data.loading.torch_pipeline import TorchPipeline, resize_weights
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from tests.data import media

CPU = torch.device("cpu")
DALI_MODULE = "allinone.data.loading.dali_pipeline"
FULL = (0.0, 0.0, 1.0, 1.0)
CROP = (0.137, 0.211, 0.618, 0.577)
SIZES = [
    (240, 320, 224),  # a little smaller
    (128, 96, 224),  # larger
    (720, 1280, 224),  # much smaller
    (37, 53, 64),  # odd sides, larger
    (224, 224, 224),  # the same
    (500, 300, 96),  # portrait
]


def picture(kind: str, frames: int, height: int, width: int) -> np.ndarray:
    """Noise is the hardest input of a resize; blobs are like photographs."""
    random = np.random.default_rng([frames, height, width])
    if kind == "noise":
        return random.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    y, x = np.ogrid[:height, :width]
    waves = [
        128 + 127 * np.sin(y / random.uniform(5, 30) + x / random.uniform(5, 30) + phase)
        for phase in range(3 * frames)
    ]
    return np.stack(waves).reshape(frames, 3, height, width).transpose(0, 2, 3, 1).astype(np.uint8)


def levels(config: DataConfig, clip: ClipConfig, frames: np.ndarray, box: tuple) -> torch.Tensor:
    """Pixels as 8-bit levels, [dali or torch, T, 3, S, S]."""
    colour = (1.2, 0.8, 1.3) if config.color_jitter else (1.0, 1.0, 1.0)
    both = []
    for kind in ("dali", "torch"):
        chosen = replace(config, augment_backend=kind)
        pixels = [
            augmentation_for(clip, chosen, CPU, 1)(
                [np.ascontiguousarray(frames)], [SampleChoices(0, (0,), box, flip, *colour)]
            )[0]
            for flip in (False, True)
        ]
        both.append(torch.cat(pixels))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    return (torch.stack(both) * std + mean) * 255


@pytest.mark.parametrize("kind", ["noise", "blobs"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("frames", [1, 3])
def test_pixels_equal_dalis_to_one_level(
    kind: str, size: tuple[int, int, int], frames: int
) -> None:
    height, width, side = size
    config, clip = DataConfig(backend="cpu", dali_threads=1), ClipConfig(frames, side, 8)
    for box in (FULL, CROP):
        dali, twin = levels(config, clip, picture(kind, frames, height, width), box)
        assert dali.std() > 10
        assert (dali - twin).abs().max() < 1.01
        assert (dali - twin).abs().mean() < 0.1


@pytest.mark.parametrize("size", SIZES[:3])
def test_colour_jitter_equals_dalis_to_two_levels(size: tuple[int, int, int]) -> None:
    """A resize that rounds the other way is amplified by contrast and saturation."""
    height, width, side = size
    config = DataConfig(backend="cpu", dali_threads=1, color_jitter=0.4)
    dali, twin = levels(config, ClipConfig(3, side, 8), picture("noise", 3, height, width), CROP)
    assert (dali - twin).abs().max() < 2.01
    assert (dali - twin).abs().mean() < 0.1


def test_resize_weights_are_a_partition_of_one() -> None:
    for start, end, size, side in ((0.0, 1.0, 7, 30), (0.1, 0.9, 640, 224), (0.4, 0.5, 32, 224)):
        weights = resize_weights(start, end, size, side)
        assert weights.shape == (side, size)
        assert torch.allclose(weights.sum(1), torch.ones(side))
    assert torch.equal(resize_weights(0.0, 1.0, 5, 5), torch.eye(5))


@pytest.fixture
def without_dali(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine where DALI is not installed."""
    for name in [name for name in sys.modules if name.startswith("nvidia.dali")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, DALI_MODULE, raising=False)
    augmentation._warn_about_dali.cache_clear()
    yield
    augmentation._warn_about_dali.cache_clear()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for k in range(6):
        media.write_video(root / "source" / f"{k}.mp4", first=k)
    rows = "".join(f"{k}.mp4,clip {k}\n" for k in range(6))
    (root / "source" / "own.csv").write_text(f"path,caption\n{rows}")
    options = PrepareOptions(root / "source" / "own.csv", root / "out", workers=1)
    prepare(options, progress=False)
    return root / "out"


def pixels_of(prepared: Path, config: DataConfig) -> dict[str, torch.Tensor]:
    """Pixels of training, evaluation and the processor."""
    clip, spec = ClipConfig(3, 48, 12), DatasetSpec(prepared)
    stream = TrainStream([spec], clip, config, seed=1).batches(
        first=0, rank=0, world=1, micro_batch=4, device=CPU
    )
    trained = next(stream)
    stream.close()  # type: ignore[attr-defined]
    (evaluated,) = EvalSet(spec, clip, config).batches(rank=0, world=1, batch_size=6, device=CPU)
    frames = picture("noise", 9, 60, 80)
    return {
        "train": trained.pixels,
        "eval": evaluated.pixels,
        "processor": AllInOneProcessor.of(clip, config)(frames)["pixels"],
    }


def test_without_dali_everything_runs_on_the_twin(
    prepared: Path, without_dali: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(augmentation.log, "warning", lambda text, *a: warnings.append(text % a))
    twin = pixels_of(prepared, DataConfig(workers=0))
    pixels_of(prepared, DataConfig(workers=0))
    assert len(warnings) == 1, "training warns once, evaluation and processor do not"
    assert DALI_PACKAGE in warnings[0]
    monkeypatch.undo()
    dali = pixels_of(prepared, DataConfig(workers=0, augment_backend="dali"))
    for name, pixels in dali.items():
        difference = (pixels - twin[name]).abs() * min(DataConfig().std) * 255
        assert difference.max() < 1.01, name
        assert difference.mean() < 0.1, name


def test_with_dali_it_is_the_default_and_nothing_warns(caplog: pytest.LogCaptureFixture) -> None:
    clip, config = ClipConfig(1, 32, 8), DataConfig(backend="cpu", dali_threads=1)
    with caplog.at_level(logging.WARNING):
        found = augmentation.training_augmentations(clip, config, CPU, 1)
    assert [type(one).__name__ for one in found] == ["DaliPipeline"]
    assert not caplog.records
    chosen = augmentation_for(clip, replace(config, augment_backend="torch"), CPU, 1)
    assert isinstance(chosen, TorchPipeline)


@pytest.mark.parametrize(("name", "option"), [("augment_backend", "dali"), ("decoder", "dali")])
def test_asking_for_dali_without_it_names_its_package(
    without_dali: None, name: str, option: str
) -> None:
    config = DataConfig(**{name: option})  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match=f"--{name.replace('_', '-')} dali needs DALI.*{DALI_PACKAGE}"
    ):
        augmentation_for(ClipConfig(), config, CPU, 1)


def test_the_data_path_imports_without_dali(without_dali: None) -> None:
    import allinone.data.loading.cotrain
    import allinone.finetune.inputs.loader  # noqa: F401

    assert DALI_MODULE not in sys.modules
