"""Videos, images and captions → inputs of the model, exactly as evaluation makes them.

For use from Python, without prepared data.

Letters: N pairs, F frames given, T frames taken, L text tokens, S side of the image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import VideoProcessorMixin

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import DataError
from allinone.common.hub import PROCESSOR_FILES, hub_folder, is_hub_id
from allinone.data.config import (
    PYTORCHVIDEO_MEAN,
    PYTORCHVIDEO_STD,
    ClipConfig,
    DataConfig,
)
from allinone.data.decoding.codecs import image_extension
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.frame_arrays import Video, as_frames, as_images, as_videos
from allinone.data.loading.augmentation import Augmentation, augmentation_for
from allinone.data.loading.clip_input import ClipWindow, choose_frames
from allinone.data.loading.sampling import SampleChoices
from allinone.data.prepare.probe import Limits, ProbeError, probe
from allinone.data.text import fast_tokenizer

FILE = "processor_config.json"
_CLIP_FIELDS = ("num_frames", "image_size", "max_text_len")
_DATA_FIELDS = ("mean", "std", "eval_crop", "geometry")
"""Options of the data path that change what evaluation sees. A folder of an earlier version lacks
geometry: its model was trained with crop, the default."""


def released_data_config(names: Iterable[str]) -> DataConfig:
    """Return how the original code makes the inputs of a released checkpoint.

    Args:
        names: Names of the file's tensors. Co-trained checkpoints (All-in-one+) call the VTM head
            vtm_score; they were trained with RandAugment and its mean and standard deviation.
    """
    config = DataConfig(geometry="squash")
    if any(name.startswith("vtm_score.") for name in names):
        config = replace(config, mean=PYTORCHVIDEO_MEAN, std=PYTORCHVIDEO_STD)
    return config


def read_as_evaluation(
    content: bytes, extension: str, clip: ClipConfig, config: DataConfig, limits: Limits
) -> tuple[NDArray[np.uint8], SampleChoices]:
    """Read a file that belongs to no prepared data, as evaluation reads clips.

    Args:
        content: The file's bytes.
        extension: Of its name, lower case, without a dot.
        clip: Frames per clip; an image gives one.
        config: Geometry and evaluation's crop, and the decoder's time limit.
        limits: What files are accepted.

    Returns:
        Frames uint8 [T, H, W, 3], and how they are to be cropped.

    Raises:
        ProbeError: The file cannot be used.
        DecodeError: Its frames do not decode.
    """
    extension = image_extension(content, extension)
    facts = probe(content, extension, replace(limits, max_pixels=config.max_pixels))
    num_frames = 1 if facts["media"] == "image" else clip.num_frames
    (choices,) = choose_frames(ClipWindow.of_file(facts), config, num_frames)
    frames = decode_frames(
        content,
        choices.frames,
        Timeline.of(facts),
        timeout_s=config.clip_timeout_s,
        max_pixels=config.max_pixels,
    )
    return frames, choices


class AllInOneVideoProcessor(VideoProcessorMixin):
    """Videos and images → normalised frames, as evaluation makes them.

    Args:
        clip: Frames per clip and image size of the model.
        config: Normalisation, geometry and evaluation's crop; default: ImageNet's, crop and the
            full short side.
    """

    model_input_names: ClassVar[list[str]] = ["pixels"]

    def __init__(self, clip: ClipConfig, config: DataConfig | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.config = replace(config or DataConfig(), backend="cpu", decoder="pyav", augment="none")
        self._augment: Augmentation | None = None
        self._capacity = 0

    def __call__(
        self,
        videos: Video | None = None,
        images: Any = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Read, crop, resize and normalise.

        Args:
            videos: One video or a list of them, of any lengths.
            images: One image or a list of them, each a clip of one frame.
            return_tensors: pt or np.
            **kwargs: Ignored; transformers passes its own.

        Returns:
            pixels float32 [N, T, 3, S, S].

        Raises:
            DataError: A file cannot be opened or decoded.
            ValueError: Shapes do not fit.
        """
        given = as_videos(videos) if images is None else as_images(images)
        return BatchFeature({"pixels": self._pixels(given)}, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """The options that change what the model sees."""
        return _options(self.clip, self.config)

    def _pixels(self, videos: list[Video]) -> Tensor:
        read = [
            self._read(Path(video))
            if isinstance(video, (str, Path))
            else self._choose(*as_frames(video))
            for video in videos
        ]
        lengths = {len(frames) for frames, _ in read}
        if len(lengths) != 1:
            raise ValueError(
                f"images and videos cannot be mixed in one call: they have {sorted(lengths)} frames"
            )
        # a DALI pipeline is built for a largest batch: build another one only for a larger one
        if self._augment is None or self._capacity < len(read):
            self._augment = augmentation_for(self.clip, self.config, torch.device("cpu"), len(read))
            self._capacity = len(read)
        return self._augment([frames for frames, _ in read], [choices for _, choices in read])

    def _read(self, path: Path) -> tuple[NDArray[np.uint8], SampleChoices]:
        if find_spec("av") is None:
            raise DataError(f"{path}: reading files needs PyAV; pip install av, or give frames")
        extension = path.suffix.lower().lstrip(".")
        limits = Limits(min_frames=1, max_duration_s=math.inf)  # the user chose this very file
        try:
            return read_as_evaluation(path.read_bytes(), extension, self.clip, self.config, limits)
        except OSError as error:
            raise DataError(
                f"{path} cannot be opened ({error.strerror or error}); give the path of a video or"
                " image file"
            ) from error
        except ProbeError as error:
            raise DataError(
                f"{path} is not a video or image that decodes: {error.reason}, {error.detail}; try"
                " ffmpeg -i on it"
            ) from error
        except DecodeError as error:
            raise DataError(
                f"{path} does not decode: {error}; re-encode it, for example ffmpeg -i {path.name}"
                " clip.mp4"
            ) from error

    def _choose(
        self, frames: NDArray[np.uint8], image: bool
    ) -> tuple[NDArray[np.uint8], SampleChoices]:
        """Take the middle frames of an array [F, H, W, 3]."""
        number, height, width, _ = frames.shape
        window = ClipWindow(0, number, width, height, image=image)
        num_frames = 1 if image else self.clip.num_frames
        (choices,) = choose_frames(window, self.config, num_frames)
        return np.ascontiguousarray(frames[list(choices.frames)]), choices


class AllInOneProcessor(ProcessorMixin):
    """Makes inputs of the model: `model(**processor(videos=…, text=…))`.

    Args:
        video_processor: Reads videos and images.
        tokenizer: Its `model_max_length` is the model's text length.
    """

    def __init__(
        self, video_processor: AllInOneVideoProcessor, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        # not by ProcessorMixin's __init__: its check of the classes fails without torchvision
        self.video_processor, self.tokenizer = video_processor, tokenizer
        self.chat_template = None
        self.clip = replace(video_processor.clip, max_text_len=tokenizer.model_max_length)
        self.config = video_processor.config
        self.auto_map: dict[str, str] = {}
        """Code files in the folder that `save_pretrained` writes, for trust_remote_code."""

    @classmethod
    def of(cls, clip: ClipConfig, config: DataConfig | None = None) -> AllInOneProcessor:
        """The processor of a model, with the vocabulary of this project.

        Args:
            clip: Frames per clip, image size and text length of the model.
            config: As in AllInOneVideoProcessor.
        """
        return cls(AllInOneVideoProcessor(clip, config), fast_tokenizer(clip.max_text_len))

    def __call__(
        self,
        videos: Video | None = None,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        *,
        texts: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Make inputs of the model.

        One video with several texts (or the reverse) is repeated; other numbers must be equal.

        Args:
            videos: One video or a list of them, of any lengths.
            text: One caption or a list of them.
            images: Instead of videos, one image or a list of them; they give T = 1.
            texts: Another name of `text`.
            return_tensors: pt or np.
            **kwargs: Ignored; transformers passes its own.

        Returns:
            pixels float32 [N, T, 3, S, S], text_ids and text_mask int64 [N, L]; without videos or
            texts, without their entries.

        Raises:
            DataError: A file cannot be opened or decoded.
            ValueError: Shapes or numbers do not fit.
        """
        text = texts if text is None else text
        if videos is None and images is None and text is None:
            raise ValueError("give a video, an image, a text or several of them")
        if videos is not None and images is not None:
            raise ValueError("images and videos cannot be mixed in one call: give one of them")
        inputs: dict[str, Tensor] = {}
        if videos is not None or images is not None:
            inputs |= self.video_processor(videos, images)
        if text is not None:
            inputs |= self._text([text] if isinstance(text, str) else list(text))
        if len(inputs) == 3:
            numbers = len(inputs["pixels"]), len(inputs["text_ids"])
            pairs = max(numbers)
            if not {*numbers} <= {1, pairs}:
                raise ValueError(
                    f"{numbers[0]} videos and {numbers[1]} texts: give one video, one text, or"
                    " equally many of both"
                )
            inputs = {name: x.expand(pairs, *x.shape[1:]) for name, x in inputs.items()}
        return BatchFeature(inputs, tensor_type=return_tensors)

    def _text(self, texts: list[str]) -> dict[str, Tensor]:
        wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
        if wrong or not texts:
            raise ValueError(
                "texts must be a string or a list of strings, got"
                f" {wrong[0] if wrong else 'an empty list'}"
            )
        encoded = self.tokenizer(
            texts,
            max_length=self.clip.max_text_len,
            truncation=True,
            padding="max_length",
            return_tensors="pt",
        )
        return {"text_ids": encoded["input_ids"], "text_mask": encoded["attention_mask"]}

    def decode(self, ids: Any, **kwargs: Any) -> str:
        """The text of one row of token ids, as the tokenizer's `decode`."""
        return str(self.tokenizer.decode(ids, **kwargs))

    def batch_decode(self, ids: Any, **kwargs: Any) -> list[str]:
        """The texts of rows of token ids [N, L], as the tokenizer's `batch_decode`."""
        return list(self.tokenizer.batch_decode(ids, **kwargs))

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs."""
        return ["pixels", "text_ids", "text_mask"]

    def to_dict(self) -> dict[str, Any]:
        """The content of processor_config.json."""
        named = {"processor_class": type(self).__name__, "auto_map": self.auto_map}
        return {**_options(self.clip, self.config), **{k: v for k, v in named.items() if v}}

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write processor_config.json and the tokenizer's files.

        Args:
            save_directory: The folder; created if it does not exist.
            push_to_hub: Also upload them.
            **kwargs: For `push_to_hub`: repo_id, token, private and others of transformers.

        Returns:
            The written files.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        files = self.tokenizer.save_pretrained(str(folder))
        write_atomic(folder / FILE, json.dumps(self.to_dict(), indent=1) + "\n")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [*map(str, files), str(folder / FILE)]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> AllInOneProcessor:
        """Load the processor of a model's folder.

        Reads processor_config.json; else config.json, with the normalisation and geometry of the
        run next to it (run.json of a checkpoint); else with ImageNet's and crop. A folder without
        a tokenizer, of an earlier version, gets this project's.

        Args:
            pretrained_model_name_or_path: The folder, or a hub id.
            **kwargs: `revision` and `subfolder` are used.

        Raises:
            DataError: Neither file exists, or one is damaged.
            InputError: The hub does not deliver the files.
        """
        folder = Path(pretrained_model_name_or_path)
        if is_hub_id(pretrained_model_name_or_path):
            name = str(pretrained_model_name_or_path)
            folder = hub_folder(name, PROCESSOR_FILES, kwargs.get("revision"))
        folder = folder / (kwargs.get("subfolder") or "")
        clip, config = saved_options(folder)
        tokenizer = fast_tokenizer(clip.max_text_len, folder)
        return cls(AllInOneVideoProcessor(clip, config), tokenizer)


def saved_options(folder: Path) -> tuple[ClipConfig, DataConfig]:
    """What a model's folder says about its inputs, see AllInOneProcessor.from_pretrained.

    Raises:
        DataError: The folder does not say it, or a file is damaged.
    """
    sources = [folder / FILE, folder / "config.json"]
    found = next((path for path in sources if path.is_file()), None)
    if found is None:
        raise DataError(
            f"{folder} holds neither {FILE} nor config.json; give a folder of save_pretrained, or"
            " weights/ of a checkpoint"
        )
    values = _read_json(found)
    run = folder.parent / "run.json"
    if found.name != FILE and run.is_file():
        values = {**_read_json(run).get("run", {}).get("loader", {}), **values}
    try:
        clip = ClipConfig(**{name: int(values[name]) for name in _CLIP_FIELDS})
        chosen: dict[str, Any] = {
            name: _plain(values[name]) for name in _DATA_FIELDS if name in values
        }
        _check(clip, chosen)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{found} is not a configuration of this model: {error!r}; it needs"
            f" {', '.join(_CLIP_FIELDS)}"
        ) from error
    if chosen.get("geometry", "crop") not in ("crop", "squash"):
        raise DataError(
            f"{found} has the geometry {chosen['geometry']!r}; this version knows crop and squash"
        )
    return clip, DataConfig(**chosen)


def _check(clip: ClipConfig, chosen: dict[str, Any]) -> None:
    """ValueError for values that no folder of this project has, and that would take all memory."""
    for name, limit in (("num_frames", 2**12), ("image_size", 2**14), ("max_text_len", 2**16)):
        if not 0 < getattr(clip, name) <= limit:
            raise ValueError(f"{name} must be from 1 to {limit:,}, got {getattr(clip, name):,}")
    for name in ("mean", "std"):
        if name in chosen and (isinstance(chosen[name], (str, float)) or len(chosen[name]) != 3):
            raise ValueError(f"{name} must be three numbers")


def _options(clip: ClipConfig, config: DataConfig) -> dict[str, Any]:
    return {name: getattr(clip, name) for name in _CLIP_FIELDS} | {
        name: getattr(config, name) for name in _DATA_FIELDS
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return tuple(map(float, value)) if isinstance(value, list) else float(value)
