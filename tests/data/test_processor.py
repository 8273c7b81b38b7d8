"""The processor gives what evaluation gives; wrong files and shapes are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allinone.common.errors import DataError
from allinone.data import AllInOneProcessor, EvalSet
from allinone.data.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipConfig,
    DataConfig,
    DatasetSpec,
)
from allinone.data.prepare.pipeline import PrepareOptions, prepare
from allinone.data.processor import released_data_config
from allinone.data.text import Tokenizer
from tests.data import media

CLIP = ClipConfig(num_frames=3, image_size=32, max_text_len=12)
DATA = DataConfig(workers=0, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), eval_crop=0.8)


@pytest.fixture
def processor() -> AllInOneProcessor:
    return AllInOneProcessor.of(CLIP, DATA)


def test_videos_and_captions_become_what_evaluation_sees(
    tmp_path: Path, processor: AllInOneProcessor
) -> None:
    media.write_video(tmp_path / "a.mp4", frames=30, width=96, height=64)
    media.write_video(tmp_path / "b.webm", frames=11, width=64, height=80, codec="libvpx-vp9")
    media.write_rotated(tmp_path / "c.mp4", 90, width=96, height=64)
    names, captions = ("a.mp4", "b.webm", "c.mp4"), ["a red ball", "Café, two dogs", "x " * 40]
    rows = "".join(
        f'{name},"{caption}",val\n' for name, caption in zip(names, captions, strict=True)
    )
    (tmp_path / "my.csv").write_text(f"path,caption,split\n{rows}")
    prepare(PrepareOptions(tmp_path / "my.csv", tmp_path / "prepared", workers=1))
    evaluation = EvalSet(DatasetSpec(tmp_path / "prepared", "val"), CLIP, DATA)
    batch = next(evaluation.batches(rank=0, world=1, batch_size=3, device=torch.device("cpu")))
    inputs = processor([tmp_path / name for name in names], captions)
    order = [
        next(row for row, caption in enumerate(batch.captions) if caption.strip() == wanted.strip())
        for wanted in captions
    ]
    assert torch.equal(inputs["pixels"], batch.pixels[order])
    assert torch.equal(inputs["text_ids"], batch.text_ids[order])
    assert torch.equal(inputs["text_mask"], batch.text_mask[order])


def test_arrays_give_their_middle_frames_cropped_and_normalised(
    processor: AllInOneProcessor,
) -> None:
    frames = np.zeros((9, 40, 80, 3), np.uint8)
    # The rest is outside of the central square.
    frames[:, :, 20:60] = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20
    pixels = processor(frames)["pixels"]
    assert pixels.shape == (1, 3, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATA.mean, DATA.std))
    for shown, frame in zip(pixels[0], (1, 4, 7), strict=True):
        torch.testing.assert_close(
            shown, ((frame * 20 / 255 - mean) / std).expand_as(shown), atol=1e-5, rtol=0
        )
    assert torch.equal(processor(list(frames))["pixels"], pixels)
    assert torch.equal(processor([Image.fromarray(frame) for frame in frames])["pixels"], pixels)
    assert torch.equal(processor([frames, frames])["pixels"], pixels.expand(2, -1, -1, -1, -1))


def test_an_image_is_one_frame_from_a_file_or_from_memory(
    tmp_path: Path, processor: AllInOneProcessor
) -> None:
    picture = media.write_image(tmp_path / "p.png", 5)
    from_file = processor(picture)["pixels"]
    assert from_file.shape == (1, 1, 3, 32, 32)
    array = np.asarray(Image.open(picture).convert("RGB"))
    torch.testing.assert_close(processor(array)["pixels"], from_file, atol=0.02, rtol=0)
    torch.testing.assert_close(
        processor(Image.open(picture))["pixels"], from_file, atol=0.02, rtol=0
    )
    with pytest.raises(ValueError, match="cannot be mixed"):
        processor([str(picture), np.zeros((4, 40, 40, 3), np.uint8)])


def test_one_video_is_repeated_for_many_captions_and_the_reverse(
    processor: AllInOneProcessor,
) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 40, 3), dtype=np.uint8)
    inputs = processor(frames, ["one", "two"])
    assert inputs["pixels"].shape[0] == inputs["text_ids"].shape[0] == 2
    assert torch.equal(inputs["pixels"][0], inputs["pixels"][1])
    assert not torch.equal(inputs["text_ids"][0], inputs["text_ids"][1])
    assert len(processor([frames, frames, frames], "one")["text_ids"]) == 3
    assert set(processor(texts="one")) == {"text_ids", "text_mask"}
    with pytest.raises(ValueError, match="2 videos and 3 texts"):
        processor([frames, frames], ["a", "b", "c"])


def test_files_that_do_not_decode_are_named_with_the_reason(
    tmp_path: Path, processor: AllInOneProcessor
) -> None:
    cases = {
        tmp_path / "absent.mp4": "cannot be opened",
        tmp_path: "cannot be opened",
        media.write_html(tmp_path / "page.mp4"): "a text file, not a video",
        media.write_empty(tmp_path / "empty.mp4"): "no content",
        media.write_audio_only(tmp_path / "sound.mp4"): "no_video_track",
    }
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    cases[tmp_path / "noise.mp4"] = "undecodable"
    for path, reason in cases.items():
        with pytest.raises(DataError, match=reason) as caught:
            processor(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 3, 40, 40), np.uint8),
        np.zeros((4, 40, 40, 3), np.float32),
        np.zeros((0, 40, 40, 3), np.uint8),
        [np.zeros((40, 40, 3), np.uint8), np.zeros((41, 40, 3), np.uint8)],
    ],
)
def test_wrong_frames_say_what_is_needed(frames: object, processor: AllInOneProcessor) -> None:
    with pytest.raises(ValueError, match="frames"):
        processor(frames)  # type: ignore[arg-type]


def test_saved_and_loaded_it_gives_the_same(tmp_path: Path, processor: AllInOneProcessor) -> None:
    processor.save_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 255, (4, 50, 40, 3), dtype=np.uint8)
    loaded = AllInOneProcessor.from_pretrained(tmp_path)(frames, "a word")
    for name, value in processor(frames, "a word").items():
        assert torch.equal(loaded[name], value)
    (tmp_path / "processor_config.json").write_text('{"num_frames": 3}')
    with pytest.raises(DataError, match="image_size"):
        AllInOneProcessor.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="holds neither"):
        AllInOneProcessor.from_pretrained(tmp_path / "absent")


def test_geometry_is_saved_and_missing_geometry_means_crop(tmp_path: Path) -> None:
    squash = AllInOneProcessor.of(CLIP, replace(DATA, geometry="squash", eval_crop=1.0))
    squash.save_pretrained(tmp_path)
    assert AllInOneProcessor.from_pretrained(tmp_path).config.geometry == "squash"
    content = json.loads((tmp_path / "processor_config.json").read_text())
    earlier = {name: value for name, value in content.items() if name != "geometry"}
    (tmp_path / "processor_config.json").write_text(json.dumps(earlier))
    loaded = AllInOneProcessor.from_pretrained(tmp_path).config
    assert (loaded.geometry, loaded.mean, loaded.std) == ("crop", DATA.mean, DATA.std)
    (tmp_path / "processor_config.json").write_text(json.dumps({**content, "geometry": "fisheye"}))
    with pytest.raises(DataError, match="'fisheye'; this version knows crop and squash"):
        AllInOneProcessor.from_pretrained(tmp_path)


def test_squash_shows_the_sides_of_a_video_and_crops_an_image() -> None:
    """White sides beyond the central square: squash sees a part of them, crop none."""
    frames = np.zeros((9, 40, 80, 3), np.uint8)
    frames[:, :, :20] = frames[:, :, 60:] = 255
    config = DataConfig(mean=(0.0,) * 3, std=(1.0,) * 3)
    crop = AllInOneProcessor.of(CLIP, config)
    squash = AllInOneProcessor.of(CLIP, replace(config, geometry="squash"))
    assert crop(frames)["pixels"].mean() < 0.02
    # 84 % of the width are seen, 50 % of it are black
    white = 1 - 0.5 * 268 / 224
    assert squash(frames)["pixels"].mean() == pytest.approx(white, abs=0.02)
    assert torch.equal(squash(frames[0])["pixels"], crop(frames[0])["pixels"])


def test_released_checkpoints_are_squashed_and_normalised_as_trained() -> None:
    plain = released_data_config(["itm_score.fc.weight", "transformer.norm.weight"])
    assert (plain.geometry, plain.mean, plain.std) == ("squash", IMAGENET_MEAN, IMAGENET_STD)
    plus = released_data_config(["vtm_score.fc.weight", "transformer.norm.weight"])
    assert (plus.geometry, plus.mean, plus.std) == ("squash", (0.45,) * 3, (0.225,) * 3)


def test_tensors_have_their_colours_first_as_torchvision_reads(
    processor: AllInOneProcessor,
) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (4, 40, 60, 3), dtype=np.uint8)
    expected = processor(frames)["pixels"]
    tensor = torch.from_numpy(frames)
    for given in (tensor, tensor.permute(0, 3, 1, 2), list(tensor.permute(0, 3, 1, 2))):
        assert torch.equal(processor(given)["pixels"], expected)
    batch = torch.stack([tensor, tensor.flip(0)]).permute(0, 1, 4, 2, 3)
    assert torch.equal(processor(batch)["pixels"][:1], expected)
    with pytest.raises(ValueError, match="frames must be uint8"):
        processor(tensor.float() / 255)


def test_clips_of_several_lengths_make_one_batch(processor: AllInOneProcessor) -> None:
    random = np.random.default_rng(0)
    clips = [random.integers(0, 255, (n, 40, 40, 3), dtype=np.uint8) for n in (1, 2, 9, 50)]
    inputs = processor(videos=clips, text=["a", "b", "c", "d"], return_tensors="pt")
    assert inputs["pixels"].shape == (4, 3, 3, 32, 32)
    for clip, pixels in zip(clips, inputs["pixels"], strict=True):
        assert torch.equal(processor(clip)["pixels"][0], pixels)


def test_images_are_clips_of_one_frame(processor: AllInOneProcessor) -> None:
    pictures = [Image.new("RGB", (40, 50), colour) for colour in ("red", "blue")]
    assert processor(images=pictures)["pixels"].shape == (2, 1, 3, 32, 32)
    assert torch.equal(
        processor(images=pictures[0])["pixels"], processor(np.asarray(pictures[0]))["pixels"]
    )
    with pytest.raises(ValueError, match="cannot be mixed"):
        processor(videos=pictures, images=pictures)


def test_the_result_is_a_batch_feature(processor: AllInOneProcessor) -> None:
    inputs = processor(text=["a word"], return_tensors="pt").to("meta")
    assert inputs["text_ids"].device.type == "meta"
    assert isinstance(processor(text="a word", return_tensors="np")["text_ids"], np.ndarray)


def test_auto_classes_load_processor_and_tokenizer(
    tmp_path: Path, processor: AllInOneProcessor
) -> None:
    import transformers

    import allinone

    config = allinone.AllInOneConfig(num_frames=3, image_size=32, max_text_len=12)
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, transformers.ProcessorMixin)
    assert type(loaded) is AllInOneProcessor
    assert loaded.to_dict() == processor.to_dict()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    caption = "Café, two dogs " * 9
    given = tokenizer(caption, truncation=True)["input_ids"]
    assert given == Tokenizer().encode(caption, 12)[0].tolist()
    assert given == loaded(text=caption)["text_ids"][0].tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_frames": 10**9}, "num_frames must be from 1 to"),
        ({"image_size": -1}, "image_size must be from 1 to"),
        ({"mean": "x"}, "mean must be three numbers"),
        ({"std": [1, 2]}, "std must be three numbers"),
    ],
)
def test_hostile_values_of_a_processor_are_refused(
    tmp_path: Path, processor: AllInOneProcessor, values: dict[str, object], message: str
) -> None:
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({**processor.to_dict(), **values}))
    with pytest.raises(DataError, match=message):
        AllInOneProcessor.from_pretrained(tmp_path)
