"""RandAugment: DALI's operators against Pillow's, and choices that depend on the sample alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from allinone.common.errors import ConfigError
from allinone.data import EvalSet
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec
from allinone.data.loading.augmentation import augmentation_for, eval_augmentations
from allinone.data.loading.dali_pipeline import DaliPipeline, build_pipeline
from allinone.data.loading.rand_augment import OPERATIONS, SIGNED, Operation
from allinone.data.loading.sampling import SampleChoices, generator, sample_eval, sample_train
from tests.data.decoding.test_decoding import operators
from tests.data.helpers import prepare_small_demo
from tests.data.loading.streams import CLIP, CPU, assert_same, stream, take

SIDE = 96
RANDAUG = DataConfig(backend="cpu", dali_threads=1, augment="randaug")
PLAIN = replace(RANDAUG, mean=(0.0,) * 3, std=(1.0,) * 3)
FULL = (0.0, 0.0, 1.0, 1.0)
GREY = (128, 128, 128)


def choices(*operations: Operation) -> SampleChoices:
    """The complete frame, with these operations."""
    return SampleChoices(0, (0,), FULL, False, 1.0, 1.0, 1.0, operations)


def photograph() -> np.ndarray:
    """Smooth waves of different colours with a little grain, uint8 [SIDE, SIDE, 3]."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = [100 + 60 * np.sin(y / (9 + 3 * c) + x / (14 - 2 * c) + c) for c in range(3)]
    grain = random.normal(0, 2, (SIDE, SIDE, 1))
    return np.clip(np.stack(waves, -1) + grain, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def augmented() -> Callable[[np.ndarray, SampleChoices], np.ndarray]:
    """Frames uint8 [T, SIDE, SIDE, 3] → 8-bit levels of the same shape, by DALI's graph."""
    pipeline = DaliPipeline(ClipConfig(3, SIDE, 8), PLAIN, CPU, 4)

    def apply(frames: np.ndarray, chosen: SampleChoices) -> np.ndarray:
        pixels = pipeline([np.ascontiguousarray(frames)], [chosen])
        return np.rint(255 * pixels[0].permute(0, 2, 3, 1).numpy())

    return apply


def by_pillow(picture: np.ndarray, name: str, level: int) -> np.ndarray:
    """The operation as pytorchvideo defines it, by Pillow: magnitude `level` of 100."""
    image, share = Image.fromarray(picture), level / 100
    factor = 1 + 0.9 * share

    def affine(*inverse: float) -> Image.Image:
        return image.transform(
            image.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR, fillcolor=GREY
        )

    made: dict[str, Callable[[], Image.Image]] = {
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(30 * share, Image.Resampling.BILINEAR, fillcolor=GREY),
        # pytorchvideo keeps 4 - 4 * magnitude bits, DALI at least one
        "posterize": lambda: ImageOps.posterize(image, max(1, round(4 - 4 * share))),
        "solarize": lambda: ImageOps.solarize(image, 256 - 256 * share),
        "shear_x": lambda: affine(1, -0.3 * share, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, -0.3 * share, 1, 0),
        "translate_x": lambda: affine(1, 0, -0.45 * share * SIDE, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -0.45 * share * SIDE),
    }
    return np.asarray(made[name]()).astype(np.float64)


GEOMETRIC = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
LEVELS = (30, 62, 90, -30, -90)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"equalize"}))
def test_dalis_operations_equal_pillows(
    name: str, augmented: Callable[[np.ndarray, SampleChoices], np.ndarray]
) -> None:
    picture = photograph()
    changed = []
    for level in LEVELS if name in SIGNED else LEVELS[:3]:
        ours = augmented(picture[None].repeat(3, 0), choices((name, level)))[0]
        difference = np.abs(ours - by_pillow(picture, name, level))
        # Pillow's filter leaves the outermost pixels as they are
        difference = difference[1:-1, 1:-1] if name == "sharpness" else difference
        assert difference.mean() < 1
        if name in GEOMETRIC:  # at the edge of what is uncovered, the two blend differently
            assert np.mean(difference > 2) < 0.02
        else:
            assert difference.max() <= 2
        changed.append(np.abs(ours - picture).mean())
    assert max(changed) > 0.5, "the operation does something"


def test_equalize_follows_the_definition_by_histogram(
    augmented: Callable[[np.ndarray, SampleChoices], np.ndarray],
) -> None:
    """Cumulative histogram, scaled so that the darkest level becomes 0 (OpenCV's formula)."""
    picture = photograph()
    ours = augmented(picture[None].repeat(3, 0), choices(("equalize", 90)))[0]
    for channel in range(3):
        counts = np.bincount(picture[..., channel].ravel(), minlength=256)
        cumulative = counts.cumsum()
        darkest = counts[counts.nonzero()[0][0]]
        table = np.rint(255 * (cumulative - darkest) / (SIDE * SIDE - darkest)).clip(0, 255)
        assert np.abs(ours[..., channel] - table[picture[..., channel]]).max() <= 1
    pillow = np.asarray(ImageOps.equalize(Image.fromarray(picture))).astype(np.float64)
    assert np.abs(ours - pillow).mean() < 12


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_constant_clip_stays_constant_over_time(
    name: str, augmented: Callable[[np.ndarray, SampleChoices], np.ndarray]
) -> None:
    frames = augmented(photograph()[None].repeat(3, 0), choices((name, 90), ("rotate", -40)))
    assert (frames == frames[:1]).all()


def test_all_frames_of_a_clip_get_the_same_operations(
    augmented: Callable[[np.ndarray, SampleChoices], np.ndarray],
) -> None:
    frames = np.stack([photograph(), photograph()[::-1], photograph().transpose(1, 0, 2)])
    chosen = choices(("translate_x", 55), ("invert", 90))
    together = augmented(frames, chosen)
    for k in range(3):
        assert (augmented(frames[k : k + 1].repeat(3, 0), chosen)[0] == together[k]).all()


def test_clips_of_a_batch_get_their_own_operations(
    augmented: Callable[[np.ndarray, SampleChoices], np.ndarray],
) -> None:
    frames = np.ascontiguousarray(photograph()[None].repeat(3, 0))
    several = [choices((name, 90)) for name in OPERATIONS] + [choices()]
    pipeline = DaliPipeline(ClipConfig(3, SIDE, 8), PLAIN, CPU, len(several))
    batch = 255 * pipeline([frames] * len(several), several).permute(0, 1, 3, 4, 2).numpy()
    for pixels, chosen in zip(batch, several, strict=True):
        assert (np.rint(pixels) == augmented(frames, chosen)).all()
    assert (np.rint(batch[-1]) == frames).all(), "without an operation nothing changes"


def test_no_layers_is_no_augmentation() -> None:
    config = replace(RANDAUG, randaug_layers=0)
    shape = {"captions": 2, "frames": 9, "width": 64, "height": 48, "wanted": 3}
    for row in range(50):
        off, none = (
            sample_train(one, generator(0, "d", 0, row), **shape)
            for one in (config, replace(config, augment="none"))
        )
        assert (off, repr(off)) == (none, repr(none))
    assert operators(build_pipeline(CLIP, config, max_batch=2, device_id=None)) == operators(
        build_pipeline(CLIP, replace(config, augment="none"), max_batch=2, device_id=None)
    )


def test_operations_are_drawn_as_pytorchvideo_draws_them() -> None:
    """n = 2 of 14 without repetition, each applied with probability 0.5, magnitude N(9, 0.5)."""
    shape = {"captions": 2, "frames": 9, "width": 64, "height": 48, "wanted": 3}
    drawn = [
        sample_train(RANDAUG, generator(0, "d", 0, row), **shape).operations for row in range(7000)
    ]
    counts = Counter(map(len, drawn))
    for number, share in enumerate((0.25, 0.5, 0.25)):
        assert counts[number] / 7000 == pytest.approx(share, abs=0.02)
    assert all(len({name for name, _ in some}) == len(some) for some in drawn)
    names = Counter(name for some in drawn for name, _ in some)
    assert set(names) == set(OPERATIONS)
    # each 2 / 14 * 0.5 * 7000 = 500; the standard deviation is 22
    assert all(390 < number < 610 for number in names.values())
    levels = np.array([abs(level) for some in drawn for _, level in some]) / 10
    assert levels.mean() == pytest.approx(9, abs=0.03)
    assert levels.max() == 10
    assert levels.std() == pytest.approx(0.48, abs=0.02)  # 0.5, cut at 10
    for name in OPERATIONS:
        negative = np.mean([level < 0 for some in drawn for one, level in some if one == name])
        assert (0.4 < negative < 0.6) if name in SIGNED else negative == 0


def test_randaug_changes_the_digest_and_no_other_choice() -> None:
    shape = {"captions": 5, "frames": 90, "width": 640, "height": 360, "wanted": 3}
    digests = set()
    for row in range(40):
        random, plain_random = (generator(0, "d", 2, row) for _ in range(2))
        with_it = sample_train(RANDAUG, random, **shape)
        without = sample_train(replace(RANDAUG, augment="none"), plain_random, **shape)
        assert replace(with_it, operations=()) == without
        assert random.integers(2**62) == plain_random.integers(2**62), "masking draws the same"
        if with_it.operations:
            digests |= {c.digest("k", np.zeros(1), np.zeros(1)) for c in (with_it, without)}
            digests.add(
                replace(with_it, operations=with_it.operations[::-1] * 2).digest(
                    "k", np.zeros(1), np.zeros(1)
                )
            )
    assert len(digests) > 80
    assert sample_eval(RANDAUG, frames=9, width=64, height=48, wanted=3).operations == ()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_small_demo(tmp_path_factory.mktemp("prepared"))


def test_augmented_batches_are_equal_for_any_readers_and_ranks(prepared: Path) -> None:
    options = {"augment": "randaug", "geometry": "squash", "squash_scale": (1.2, 1.5)}
    base = take(stream(prepared, **options), 6)
    for a, b in zip(base, take(stream(prepared, workers=2, **options), 6), strict=True):
        assert_same(a, b)
    for rank in range(2):
        for k, batch in enumerate(take(stream(prepared, **options), 3, rank=rank, world=2)):
            assert_same(batch, base[2 * k + rank])
    for a, b in zip(base[4:], take(stream(prepared, **options), 2, first=16), strict=True):
        assert_same(a, b)
    plain = take(stream(prepared, **{**options, "augment": "none"}), 1)
    assert not torch.equal(plain[0].pixels, base[0].pixels)  # type: ignore[attr-defined]
    assert torch.equal(plain[0].mlm_ids, base[0].mlm_ids)  # type: ignore[attr-defined]


def test_evaluation_is_not_augmented_and_runs_on_the_twin(prepared: Path) -> None:
    pixels = [
        next(
            EvalSet(DatasetSpec(prepared), CLIP, config).batches(
                rank=0, world=1, batch_size=4, device=CPU
            )
        ).pixels
        for config in (replace(RANDAUG, workers=0), DataConfig(workers=0))
    ]
    assert torch.equal(*pixels)
    twin = replace(RANDAUG, augment_backend="torch")
    assert not eval_augmentations(CLIP, twin, CPU, 1)[0].uses_dali


def test_the_twin_refuses_randaug_and_names_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"--augment randaug needs DALI.*--augment none"):
        augmentation_for(CLIP, replace(RANDAUG, augment_backend="torch"), CPU, 1)


def test_gpu_and_cpu_graphs_augment_with_the_same_operators() -> None:
    gpu, cpu = (
        operators(build_pipeline(CLIP, RANDAUG, max_batch=4, device_id=None, on_gpu=on_gpu))
        for on_gpu in (True, False)
    )
    assert {device for _, device in cpu} == {"cpu"}
    pixel_operators = {"warp_affine", "rotate", "brightness", "saturation", "filter", "equalize"}
    for name in pixel_operators:
        assert {device for one, device in gpu if one == name} == {"gpu"}, name
        assert {device for one, device in cpu if one == name} == {"cpu"}, name
