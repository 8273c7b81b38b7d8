"""Reads video files and texts given on the command line into model inputs.

Letters: T frames, S the model's image size, L text tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from allinone.common.errors import InputError
from allinone.data.config import ClipConfig, DataConfig
from allinone.data.decoding.codecs import IMAGES, VIDEOS
from allinone.data.decoding.frames import DecodeError
from allinone.data.prepare.probe import ProbeError
from allinone.data.processor import read_as_evaluation
from allinone.data.text import Tokenizer
from allinone.finetune.inputs.clip_reader import read_long_file
from allinone.finetune.inputs.media_library import LIMITS, LONG_BYTES
from allinone.finetune.inputs.prompts import Text, encode, option, plain
from allinone.model import AllInOneConfig

_SHOWN = 60
"""Characters of a text in a message."""
MASK_TOKEN = "[MASK]"


@dataclass(frozen=True)
class InputClip:
    """One video as a model input."""

    path: Path
    pixels: Tensor
    """float32 [1, T, 3, S, S], normalised."""
    pictures: NDArray[np.uint8]
    """The same crops for drawing, RGB [T, side, side, 3], at the resolution of the file, or of the
    crop's shorter side if it was squashed."""
    numbers: tuple[int, ...]
    """Indices of these frames in the file, from 0."""


class ClipReader:
    """Reads a video or image file as evaluation does: middle frames of T segments, its geometry."""

    def __init__(self, config: AllInOneConfig, data: DataConfig) -> None:
        from allinone.data.loading.augmentation import augmentation_for

        self._clip = ClipConfig(
            num_frames=config.num_frames,
            image_size=config.image_size,
            max_text_len=config.max_text_len,
        )
        self._data = data
        self._augment = augmentation_for(self._clip, data, torch.device("cpu"), 1)

    def __call__(
        self,
        path: Path,
        option: str = "--video",
        paint: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    ) -> InputClip:
        """Read one file.

        Args:
            path: The file.
            option: The option that errors name.
            paint: Draws into each frame, RGB [H, W, 3], before it is cropped.

        Raises:
            InputError: The file cannot be decoded.
        """
        if not path.is_file():
            problem = "is a folder; give a file" if path.is_dir() else "does not exist"
            raise InputError(f"{option} {path} {problem}")
        extension = path.suffix.lstrip(".").lower()
        try:
            if path.stat().st_size > LONG_BYTES:
                frames, choices = read_long_file(path, self._clip, self._data)
            else:
                # in memory, as a clip of a shard is: one path through the decoder for both. LIMITS:
                # one frame, or any duration, is accepted, unlike in training data
                frames, choices = read_as_evaluation(
                    path.read_bytes(), extension, self._clip, self._data, LIMITS
                )
        except (ProbeError, DecodeError) as error:
            raise InputError(f"{option} {path} cannot be used as a video: {error}") from error
        if paint is not None:
            frames = np.stack([paint(frame) for frame in frames])
        return InputClip(
            path,
            self._augment([frames], [choices]),
            display_crops(frames, choices.box),
            choices.frames,
        )


def display_crops(
    frames: NDArray[np.uint8], box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """Cut the crop out of frames [T, H, W, 3]; squashed to its shorter side if it is not square."""
    top, left, height, width = box
    rows, columns = frames.shape[1:3]
    y, x = round(top * rows), round(left * columns)
    side = max(1, round(min(height * rows, width * columns)))
    if abs(height * rows - width * columns) < 1:
        return frames[:, y : y + side, x : x + side]
    cut = frames[:, y : round((top + height) * rows), x : round((left + width) * columns)]
    return np.stack([np.asarray(Image.fromarray(frame).resize((side, side))) for frame in cut])


def media_files(folder: Path, option: str = "--videos") -> list[Path]:
    """Videos and images in a folder and its subfolders, sorted; InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{option} {folder} is not a folder")
    known = VIDEOS | IMAGES
    files = sorted(path for path in folder.rglob("*") if path.suffix.lstrip(".").lower() in known)
    if not files:
        raise InputError(
            f"{option} {folder} contains no video; known extensions: {', '.join(sorted(known))}"
        )
    return files


@dataclass(frozen=True)
class InputText:
    """One text as a model input."""

    text: str
    ids: Tensor
    """int64 [1, L]"""
    mask: Tensor
    """int64 [1, L], 1 at tokens, 0 at padding."""
    mask_positions: tuple[int, ...]
    """Indices of the [MASK] tokens in `ids`."""
    cut: str = ""
    """What was cut off, for the user; empty if nothing was."""


class TextReader:
    """Tokenizes texts for one model."""

    def __init__(self, config: AllInOneConfig) -> None:
        self.tokenizer = Tokenizer()
        self._length = config.max_text_len
        if self.tokenizer.size > config.vocab_size:
            raise InputError(
                f"--checkpoint has a vocabulary of {config.vocab_size} word pieces; the tokenizer"
                f" of this project needs {self.tokenizer.size}"
            )

    def __call__(self, text: str) -> InputText:
        """Tokenize one text, truncated to max_text_len; [MASK] is accepted in any case."""
        text = re.sub(re.escape(MASK_TOKEN), MASK_TOKEN, text, flags=re.IGNORECASE)
        return self.of_parts(text, plain(text))

    def option(self, question: str, choice: str, listed: Sequence[str] = ()) -> InputText:
        """One option of a question as multiple choice is trained with it, see prompts.option.

        Args:
            question: May be empty.
            choice: The option.
            listed: All options, if each text lists them.
        """
        return self.of_parts(f"{question} {choice}", option(question, choice, listed))

    def of_parts(self, text: str, parts: Text) -> InputText:
        """Tokenize the parts of a text, which messages show as `text`."""
        found = encode(self.tokenizer, parts, self._length)
        positions = np.flatnonzero(found.ids == self.tokenizer.mask_id)
        cut = ""
        if found.shortened:
            pieces = sum(len(self.tokenizer.ids(part.text)) for part in parts)
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            cut = (
                f"“{shown}” has {pieces + 2} tokens, the model reads {self._length}: the rest was"
                " cut off"
            )
        return InputText(
            text,
            torch.from_numpy(found.ids)[None],
            torch.from_numpy(found.mask)[None],
            tuple(map(int, positions)),
            cut,
        )

    def masked(self, text: str, option: str = "--text") -> InputText:
        """Tokenize a text with [MASK]; InputError if it has none or if truncation removes one."""
        result = self(text)
        written = result.text.count(MASK_TOKEN)
        if not written:
            raise InputError(
                f"{option} {text!r} has no {MASK_TOKEN}; write {MASK_TOKEN} in place of the word to"
                " predict"
            )
        # counted after truncation: a mask behind max_text_len would be dropped silently
        lost = written - len(result.mask_positions)
        if lost:
            raise InputError(
                f"{option} {text!r} is longer than the {self._length} tokens that the model reads:"
                f" {lost} {MASK_TOKEN} would be cut off"
            )
        return result

    def word_pieces(self, text: str) -> list[str]:
        """The word pieces of a text, without [CLS] and [SEP]."""
        result = self(text)
        return [self.word(int(token)) for token in result.ids[0, 1 : int(result.mask.sum()) - 1]]

    def word(self, token: int) -> str:
        """A word piece as text; a continuation keeps its ##."""
        return self.tokenizer.decode([token])


def upscaled(picture: NDArray[np.uint8], side: int) -> Image.Image:
    """A square picture [h, w, 3] resized to `side` pixels for display."""
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)


def read_lines(path: Path, option: str) -> Sequence[str]:
    """Non-empty lines of a UTF-8 file; InputError if it is unreadable or empty."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path} cannot be read: {error}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"{option} {path} has no line of text")
    return lines
