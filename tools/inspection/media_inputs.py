"""A video file and a text, as a person gives them and as the model sees them.

Letters: T frames, S the model's image size, L text tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
from allinone.data.prepare.probe import Limits, ProbeError
from allinone.data.processor import read_as_evaluation
from allinone.data.text import Tokenizer
from allinone.model import AllInOneConfig

GAP = "[MASK]"


@dataclass(frozen=True)
class InputClip:
    """One video as the model sees it."""

    path: Path
    pixels: Tensor
    """float32 [1, T, 3, S, S], normalised."""
    pictures: NDArray[np.uint8]
    """The same crops for drawing, RGB [T, side, side, 3]; side as in the file, not scaled."""
    numbers: tuple[int, ...]
    """Which frames of the file these are, from 0."""


class ClipReader:
    """Video or image files → clips, by the same steps as evaluation: middle frames of T segments,
    central square."""

    def __init__(self, config: AllInOneConfig, data: DataConfig) -> None:
        from allinone.data.loading.dali_pipeline import DaliPipeline

        self._clip = ClipConfig(
            num_frames=config.num_frames,
            image_size=config.image_size,
            max_text_len=config.max_text_len,
        )
        self._data = data
        self._augment = DaliPipeline(self._clip, data, torch.device("cpu"), 1)

    def __call__(self, path: Path, option: str = "--video") -> InputClip:
        """Read one file; raises InputError naming `option` where it is no video that decodes."""
        if not path.is_file():
            kind = "is a folder; give a file" if path.is_dir() else "does not exist"
            raise InputError(f"{option} {path} {kind}")
        content, extension = path.read_bytes(), path.suffix.lstrip(".").lower()
        try:
            frames, choices = read_as_evaluation(
                content, extension, self._clip, self._data, Limits(min_frames=1)
            )
        except (ProbeError, DecodeError) as error:
            raise InputError(f"{option} {path} is no video that can be used: {error}") from error
        top, left, height, width = choices.box
        rows, columns = frames.shape[1:3]
        y, x, side = (
            round(top * rows),
            round(left * columns),
            max(1, round(min(height * rows, width * columns))),
        )
        return InputClip(
            path,
            self._augment([frames], [choices]),
            frames[:, y : y + side, x : x + side],
            choices.frames,
        )


def media_files(folder: Path, option: str = "--videos") -> list[Path]:
    """Videos and images below a folder, sorted; InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"{option} {folder} is no folder")
    files = sorted(
        path for path in folder.rglob("*") if path.suffix.lstrip(".").lower() in VIDEOS | IMAGES
    )
    if not files:
        raise InputError(
            f"{option} {folder} holds no video; known endings: {', '.join(sorted(VIDEOS | IMAGES))}"
        )
    return files


@dataclass(frozen=True)
class Words:
    """A text as the model sees it."""

    text: str
    ids: Tensor
    """int64 [1, L]"""
    mask: Tensor
    """int64 [1, L], 1 at tokens"""
    gaps: tuple[int, ...]
    """Places of [MASK] among the tokens."""


class TextReader:
    """Texts → token tensors for one model."""

    def __init__(self, config: AllInOneConfig) -> None:
        self.tokenizer = Tokenizer()
        self._length = config.max_text_len
        if self.tokenizer.size > config.vocab_size:
            raise InputError(
                f"--checkpoint has a vocabulary of {config.vocab_size} word pieces; the tokenizer"
                f" of this project needs {self.tokenizer.size}"
            )

    def __call__(self, text: str) -> Words:
        """Tokens of one text; [MASK] in any case is a gap. Longer texts are cut at max_text_len."""
        text = re.sub(re.escape(GAP), GAP, text, flags=re.IGNORECASE)
        ids, mask, _ = self.tokenizer.encode(text, self._length)
        gaps = tuple(int(place) for place in np.flatnonzero(ids == self.tokenizer.mask_id))
        return Words(text, torch.from_numpy(ids)[None], torch.from_numpy(mask)[None], gaps)

    def with_gaps(self, text: str, option: str = "--text") -> Words:
        """Tokens of a text that has at least one [MASK]; InputError if it has none, or if one is
        cut off."""
        words = self(text)
        written = words.text.count(GAP)
        if not written:
            raise InputError(
                f"{option} {text!r} has no {GAP}; write {GAP} where a word is to be filled in"
            )
        if len(words.gaps) < written:
            raise InputError(
                f"{option} {text!r} is longer than the {self._length} tokens that the model reads:"
                f" {written - len(words.gaps)} {GAP} is cut off"
            )
        return words

    def pieces(self, text: str) -> list[str]:
        """The word pieces of a text."""
        words = self(text)
        return [self.word(int(token)) for token in words.ids[0, 1 : int(words.mask.sum()) - 1]]

    def word(self, token: int) -> str:
        """How a word piece is shown; a continuation keeps its ##."""
        return self.tokenizer.decode([token])


def upscaled(picture: NDArray[np.uint8], side: int) -> Image.Image:
    """A square picture [h, w, 3] at `side` pixels for people to look at."""
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)


def read_lines(path: Path, option: str) -> Sequence[str]:
    """Non-empty lines of a UTF-8 file; InputError where it cannot be read or is empty."""
    try:
        lines = [
            line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path} cannot be read: {error}") from error
    if not lines:
        raise InputError(f"{option} {path} has no line of text")
    return lines
