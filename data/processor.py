"""Videos, images and captions → inputs of the model, exactly as evaluation makes them.

For use from Python, without prepared data.

Letters: N pairs, F frames given, T frames taken, L text tokens, S side of the image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import DataError
from allinone.data.config import (
    PYTORCHVIDEO_MEAN,
    PYTORCHVIDEO_STD,
    ClipConfig,
    DataConfig,
)
from allinone.data.decoding.codecs import image_extension
from allinone.data.decoding.frames import DecodeError, Timeline, decode_frames
from allinone.data.decoding.images import upright_rgb
from allinone.data.loading.augmentation import Augmentation, augmentation_for
from allinone.data.loading.clip_input import ClipWindow, choose_frames
from allinone.data.loading.sampling import SampleChoices
from allinone.data.prepare.probe import Limits, ProbeError, probe
from allinone.data.text import Tokenizer

FILE = "processor_config.json"
_CLIP_FIELDS = ("num_frames", "image_size", "max_text_len")
_DATA_FIELDS = ("mean", "std", "eval_crop", "geometry")
"""Options of the data path that change what evaluation sees. A folder of an earlier version lacks
geometry: its model was trained with crop, the default."""

Video = str | Path | np.ndarray | Sequence[Any]
"""A file; frames uint8 RGB [F, H, W, 3]; an image [H, W, 3]; a list of such or of PIL images."""


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


class AllInOneProcessor:
    """Makes inputs of the model: `model(**processor(videos, texts))`.

    Args:
        clip: Frames per clip, image size and text length of the model.
        config: Normalisation, geometry and evaluation's crop; default: ImageNet's, crop and the
            full short side.
    """

    def __init__(self, clip: ClipConfig, config: DataConfig | None = None) -> None:
        self.clip = clip
        self.config = replace(config or DataConfig(), backend="cpu", decoder="pyav", augment="none")
        self._tokenizer = Tokenizer()
        self._augment: Augmentation | None = None
        self._capacity = 0

    def __call__(
        self, videos: Video | None = None, texts: str | Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Make inputs of the model.

        One video with several texts (or the reverse) is repeated; other numbers must be equal.

        Args:
            videos: One video or a list of them. An image file or an array [H, W, 3] gives T = 1.
            texts: One caption or a list of them.

        Returns:
            pixels float32 [N, T, 3, S, S], text_ids and text_mask int64 [N, L]; without videos or
            texts, without their entries.

        Raises:
            DataError: A file cannot be opened or decoded.
            ValueError: Shapes or numbers do not fit.
        """
        if videos is None and texts is None:
            raise ValueError("give a video, a text or both")
        pixels = None if videos is None else self._pixels(_as_videos(videos))
        ids: Tensor | None = None
        mask: Tensor | None = None
        if texts is not None:
            ids, mask = self._text([texts] if isinstance(texts, str) else list(texts))
        if pixels is not None and ids is not None and mask is not None:
            pairs = max(len(pixels), len(ids))
            if len(pixels) not in (1, pairs) or len(ids) not in (1, pairs):
                raise ValueError(
                    f"{len(pixels)} videos and {len(ids)} texts: give one video, one text,"
                    " or equally many of both"
                )
            pixels, ids, mask = (x.expand(pairs, *x.shape[1:]) for x in (pixels, ids, mask))
        inputs = {"pixels": pixels, "text_ids": ids, "text_mask": mask}
        return {name: value for name, value in inputs.items() if value is not None}

    def _text(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
        if wrong or not texts:
            raise ValueError(
                "texts must be a string or a list of strings, got"
                f" {wrong[0] if wrong else 'an empty list'}"
            )
        encoded = [self._tokenizer.encode(text, self.clip.max_text_len)[:2] for text in texts]
        ids, mask = (torch.from_numpy(np.stack(column)) for column in zip(*encoded, strict=True))
        return ids, mask

    def _pixels(self, videos: list[Video]) -> Tensor:
        read = [
            self._read(Path(video))
            if isinstance(video, (str, Path))
            else self._choose(*_as_frames(video))
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

    def save_pretrained(self, folder: str | Path) -> None:
        """Write processor_config.json into `folder`."""
        values = {name: getattr(self.clip, name) for name in _CLIP_FIELDS} | {
            name: getattr(self.config, name) for name in _DATA_FIELDS
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomic(Path(folder) / FILE, json.dumps(values, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AllInOneProcessor:
        """Load the processor of a model's folder.

        Reads processor_config.json; else config.json, with the normalisation and geometry of the
        run next to it (run.json of a checkpoint); else with ImageNet's and crop.

        Raises:
            DataError: Neither file exists, or one is damaged.
        """
        folder = Path(folder)
        sources = [folder / FILE, folder / "config.json"]
        found = next((path for path in sources if path.is_file()), None)
        if found is None:
            raise DataError(
                f"{folder} holds neither {FILE} nor config.json; give a folder of save_pretrained,"
                " or weights/ of a checkpoint"
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
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{found} is not a configuration of this model: {error!r}; it needs"
                f" {', '.join(_CLIP_FIELDS)}"
            ) from error
        if chosen.get("geometry", "crop") not in ("crop", "squash"):
            raise DataError(
                f"{found} has the geometry {chosen['geometry']!r}; this version knows crop and"
                " squash"
            )
        return cls(clip, DataConfig(**chosen))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def _as_videos(given: Any) -> list[Video]:
    """Tell one video from several.

    A list of files or of arrays [F, H, W, 3] is a list of videos, a list of images is one video.
    """
    if isinstance(given, (str, Path)) or not isinstance(given, (list, tuple)):
        return [given]
    if not given:
        raise ValueError("the list of videos is empty")
    # [F, H, W, 3] is a video by itself, [H, W, 3] only a frame of one
    several = all(
        isinstance(item, (str, Path, list, tuple)) or getattr(item, "ndim", 0) == 4
        for item in given
    )
    return list(given) if several else [given]


def _as_frames(video: Any) -> tuple[NDArray[np.uint8], bool]:
    """Convert an array, a tensor, a PIL image or a list of these to frames.

    Returns:
        Frames uint8 [F, H, W, 3], and whether it is an image (F = 1).

    Raises:
        ValueError: Names what was given.
    """
    try:
        if isinstance(video, (list, tuple)):
            frames = np.stack([_image(item) for item in video])
        else:
            frames = _image(video)
    except ValueError as error:
        raise ValueError(f"the frames of a video must have one size: {error}") from error
    shaped = frames.ndim in (3, 4) and frames.shape[-1] == 3 and 0 not in frames.shape
    if frames.dtype != np.uint8 or not shaped:
        raise ValueError(
            f"frames must be uint8 RGB [F, H, W, 3], or [H, W, 3] for an image, got {frames.dtype}"
            f" {list(frames.shape)}; give bytes from 0 to 255, colours last"
        )
    return (frames[None], True) if frames.ndim == 3 else (frames, False)


def _image(item: Any) -> NDArray[Any]:
    return np.asarray(upright_rgb(item) if hasattr(item, "convert") else item)
