"""What a person gives to a tool, read and checked: a checkpoint, a video file, a text with gaps.

Letters: T frames, S the model's image size, L text tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from data.choices import fixed
from data.config import ClipConfig, DataConfig
from data.decode import DecodeError, decode_frames
from data.media import IMAGES, VIDEOS
from data.probe import Limits, ProbeError, probe
from data.text import Tokenizer
from engine.checkpoint import CheckpointError, damage, newest_weights
from model import AllInOneConfig, AllInOneForPreTraining

GAP = "[MASK]"
EXIT_USER = 2
_HEADS = {"mlm_head": "MLM", "vtm_head": "VTM", "text_projection": "VTC", "video_projection": "VTC"}
_WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class InputError(ValueError):
    """Something that a user gave cannot be used; the message names the option."""


def run_tool(tool: Callable[[], None]) -> int:
    """Exit code of a tool: 0, or 2 after an InputError, which is printed without a traceback."""
    try:
        tool()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return 0


@dataclass
class Loaded:
    """A model ready for inference, and what is known about its training."""

    model: AllInOneForPreTraining
    weights: Path
    data: DataConfig = field(default_factory=DataConfig)
    """How its run normalised and cropped frames; the defaults where no run.json lies beside the weights."""
    trained: dict[str, float] | None = None
    """Objective → weight in its run; None where unknown."""
    missing: list[str] = field(default_factory=list)
    """Heads (prefixes of parameter names) that the weights do not hold; they are new and random."""
    unknown: list[str] = field(default_factory=list)
    """Parameters in the file that this version has no place for, such as another task's head."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def needs(self, *heads: str) -> None:
        """Raise InputError unless the weights hold these heads."""
        for head in heads:
            if head in self.missing:
                raise InputError(
                    f"--checkpoint {self.weights} has no {head} ({_HEADS[head]}); this task needs a model pre-trained with it"
                )

    def untrained(self, objective: str) -> bool:
        """Whether the run is known to have trained without this objective (mlm, vtm, vtc)."""
        return self.trained is not None and not self.trained.get(objective)


def find_weights(path: Path, option: str = "--checkpoint") -> Path:
    """The folder to give to from_pretrained: `path` itself, `weights/` of a checkpoint, or those of a run's newest whole checkpoint.

    Raises InputError for anything else, and for a checkpoint that is damaged.
    """
    if not path.is_dir():
        kind = "is a file; give the folder that holds it" if path.is_file() else "does not exist"
        raise InputError(f"{option} {path} {kind}")
    if (path / "config.json").is_file():
        if not any((path / name).is_file() for name in _WEIGHT_FILES):
            raise InputError(f"{option} {path} has a config.json but no weights ({' or '.join(_WEIGHT_FILES)})")
        return path
    if (path / "manifest.json").is_file():
        if problem := damage(path):
            raise InputError(f"{option} {path} is damaged: it {problem}; give another checkpoint of the run, or the run's folder")
        return find_weights(path / "weights", option)
    if (path / "checkpoints").is_dir():
        try:
            return newest_weights(path)
        except CheckpointError as error:
            raise InputError(f"{option} {path}: {error}") from error
    raise InputError(
        f"{option} {path} holds no weights; give a folder of save_pretrained (config.json and model.safetensors), a checkpoint "
        "(step-…, with weights/), or a run's folder (with checkpoints/)"
    )


def load_checkpoint(path: Path, device: str = "auto", option: str = "--checkpoint") -> Loaded:
    """Load a model for inference in float32. `device` is cpu, cuda or auto. Raises InputError where the folder holds no model of ours."""
    from transformers.utils import logging

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU on this machine; use --device cpu")
    weights = find_weights(path, option)
    try:
        kind = json.loads((weights / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {weights}: config.json cannot be read ({error})") from error
    if kind != AllInOneConfig.model_type:
        raise InputError(f"{option} {weights} holds a model of type {kind!r}, not {AllInOneConfig.model_type!r}")
    logging.set_verbosity_error()  # heads that are missing or unknown are reported by the task that needs them
    logging.disable_progress_bar()
    try:
        model, info = AllInOneForPreTraining.from_pretrained(weights, output_loading_info=True, local_files_only=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{option} {weights} cannot be loaded: {str(error).splitlines()[0]}") from error
    absent = [name for name in info["missing_keys"] if not name.startswith("logit_scale")]
    backbone = [name for name in absent if name.startswith("backbone.")]
    if backbone:
        raise InputError(f"{option} {weights} misses {len(backbone)} tensors of the transformer, first: {sorted(backbone)[0]}")
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    run = _run_facts(weights)
    return Loaded(
        model=model.float().eval().to(target),
        weights=weights,
        data=_data_config(run),
        trained=run.get("objective"),
        missing=sorted({name.split(".")[0] for name in absent}),
        unknown=sorted(info["unexpected_keys"]),
    )


def _run_facts(weights: Path) -> dict[str, Any]:
    """The run's configuration, or {} for weights that do not lie in a checkpoint."""
    try:
        return json.loads((weights.parent / "run.json").read_text()).get("run", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{weights.parent / 'run.json'} cannot be read ({error}); how the run cropped its frames is unknown"
        ) from error


def _data_config(run: dict[str, Any]) -> DataConfig:
    kept = {name: value for name, value in run.get("loader", {}).items() if name in ("mean", "std", "eval_crop")}
    return DataConfig(backend="cpu", dali_threads=1, **{k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()})


@dataclass(frozen=True)
class Clip:
    """One video as the model sees it."""

    path: Path
    pixels: Tensor
    """float32 [1, T, 3, S, S], normalised."""
    pictures: NDArray[np.uint8]
    """The same crops for drawing, RGB [T, side, side, 3]; side as in the file, not scaled."""
    numbers: tuple[int, ...]
    """Which frames of the file these are, from 0."""


class ClipReader:
    """Video or image files → clips, by the same steps as evaluation: middle frames of T segments, central square."""

    def __init__(self, config: AllInOneConfig, data: DataConfig) -> None:
        from data.graph import Augment

        self._clip = ClipConfig(num_frames=config.num_frames, image_size=config.image_size, max_text_len=config.max_text_len)
        self._data = data
        self._augment = Augment(self._clip, data, torch.device("cpu"), 1)

    def __call__(self, path: Path, option: str = "--video") -> Clip:
        """Read one file; raises InputError naming `option` where it is no video that decodes."""
        if not path.is_file():
            kind = "is a folder; give a file" if path.is_dir() else "does not exist"
            raise InputError(f"{option} {path} {kind}")
        content, extension = path.read_bytes(), path.suffix.lstrip(".").lower()
        try:
            row = probe(content, extension, Limits(min_frames=1))
            wanted = 1 if extension in IMAGES else self._clip.num_frames
            choices = fixed(self._data, frames=row["frames"], width=row["width"], height=row["height"], wanted=wanted)
            frames = decode_frames(
                content, choices.frames, keyframes=row["keyframes"], times=row["frame_times"], rate=row["frame_rate"]
            )
        except (ProbeError, DecodeError) as error:
            raise InputError(f"{option} {path} is no video that can be used: {error}") from error
        top, left, height, width = choices.box
        rows, columns = frames.shape[1:3]
        y, x, side = round(top * rows), round(left * columns), max(1, round(min(height * rows, width * columns)))
        return Clip(path, self._augment([frames], [choices]), frames[:, y : y + side, x : x + side], choices.frames)


def media_files(folder: Path, option: str = "--videos") -> list[Path]:
    """Videos and images below a folder, sorted; InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"{option} {folder} is no folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lstrip(".").lower() in VIDEOS | IMAGES)
    if not files:
        raise InputError(f"{option} {folder} holds no video; known endings: {', '.join(sorted(VIDEOS | IMAGES))}")
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
                f"--checkpoint has a vocabulary of {config.vocab_size} word pieces; the tokenizer of this project needs {self.tokenizer.size}"
            )

    def __call__(self, text: str) -> Words:
        """Tokens of one text; [MASK] in any case is a gap. Longer texts are cut at max_text_len."""
        text = re.sub(re.escape(GAP), GAP, text, flags=re.IGNORECASE)
        ids, mask, _ = self.tokenizer.encode(text, self._length)
        gaps = tuple(int(place) for place in np.flatnonzero(ids == self.tokenizer.mask_id))
        return Words(text, torch.from_numpy(ids)[None], torch.from_numpy(mask)[None], gaps)

    def with_gaps(self, text: str, option: str = "--text") -> Words:
        """Tokens of a text that has at least one [MASK]; InputError if it has none, or if one is cut off."""
        words = self(text)
        written = words.text.count(GAP)
        if not written:
            raise InputError(f"{option} {text!r} has no {GAP}; write {GAP} where a word is to be filled in")
        if len(words.gaps) < written:
            raise InputError(
                f"{option} {text!r} is longer than the {self._length} tokens that the model reads: {written - len(words.gaps)} {GAP} is cut off"
            )
        return words

    def pieces(self, text: str) -> list[str]:
        """The word pieces of a text."""
        words = self(text)
        return [self.word(int(token)) for token in words.ids[0, 1 : int(words.mask.sum()) - 1]]

    def word(self, token: int) -> str:
        """How a word piece is shown; a continuation keeps its ##."""
        return self.tokenizer.decode([token])


@dataclass(frozen=True)
class Guess:
    """A word piece for a gap."""

    token: int
    word: str
    probability: float
    """Over the whole vocabulary."""


@torch.inference_mode()
def fill_gaps(loaded: Loaded, reader: TextReader, clip: Clip, words: Words, top: int) -> list[list[Guess]]:
    """The `top` likeliest word pieces of every gap, best first, each gap on its own. Special tokens are no words and are left out."""
    loaded.needs("mlm_head")
    device = loaded.device
    text = loaded.model(clip.pixels.to(device), words.ids.to(device), words.mask.to(device)).text
    chances = loaded.model.mlm_head(text[0, list(words.gaps)]).softmax(-1).cpu()
    first = reader.tokenizer.first_word_id
    best = chances[:, first : reader.tokenizer.size].topk(min(top, reader.tokenizer.size - first))
    return [
        [
            Guess(first + int(token), reader.word(first + int(token)), float(chance))
            for chance, token in zip(row_chances, row_tokens, strict=True)
        ]
        for row_chances, row_tokens in zip(best.values, best.indices, strict=True)
    ]


def at_least_one(text: str) -> int:
    """A whole number >= 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least 1, got {text!r}")
    return int(text)


def upscaled(picture: NDArray[np.uint8], side: int) -> Image.Image:
    """A square picture [h, w, 3] at `side` pixels for people to look at."""
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)


def read_lines(path: Path, option: str) -> Sequence[str]:
    """Non-empty lines of a UTF-8 file; InputError where it cannot be read or is empty."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path} cannot be read: {error}") from error
    if not lines:
        raise InputError(f"{option} {path} has no line of text")
    return lines
