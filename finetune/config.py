"""Options of a fine-tuning or evaluation run: one dataclass, saved with every checkpoint.

A benchmark holds an instance with its published values; the command line changes it. Importing this
module does not import torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from allinone.common.errors import ConfigError
from allinone.common.options import CONTENT, MAY_CHANGE, RECORDED, RunInput, RunOptions, option
from allinone.common.surroundings import adapt, say
from allinone.common.validation import COUNT, NOT_NEGATIVE, POSITIVE, Bounds, require
from allinone.data.config import ClipConfig, DataConfig
from allinone.engine.checkpoint.layout import RUN, WeightsKind
from allinone.engine.config import RENAMED as TRAIN_RENAMED
from allinone.engine.config import TrainConfig
from allinone.finetune.tasks.options import TaskOptions

if TYPE_CHECKING:
    from allinone.model import AllInOneConfig

REQUIRED: Any = tyro.MISSING
"""Value of an option that the command line must give."""
VALIDATIONS = 20
"""Validations per run if --eval-every is not given."""
RENAMED = {**TRAIN_RENAMED}
"""Options of earlier versions → today's names."""


def cache_folder() -> Path:
    """Folder of the cache of probed media, shared by all runs: $XDG_CACHE_HOME/allinone, by default
    below the home folder."""
    # before the command has begun: a benchmark's defaults are made when its script is imported
    say(adapt())
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "allinone"


@dataclass(frozen=True)
class TuneConfig(TrainConfig):
    """Options of the training loop, with the number of steps derived from --epochs."""

    steps: int = 0
    """Optimizer steps; 0 derives them from --epochs."""
    global_batch: int = 512
    """Items per optimizer step over all ranks."""
    save_every: int = option(500, resume="may_change")
    """Steps between two checkpoints; more are written at the end, on a signal and before a
    validation."""

    def __post_init__(self) -> None:
        if self.steps:
            super().__post_init__()
        else:  # check the other values now, and the steps once the data is known
            TrainConfig(**{**vars(self), "steps": 1})


@dataclass(frozen=True)
class TuneDataConfig(DataConfig):
    """Options of the data path, of which some follow the checkpoint."""

    geometry: Literal["auto", "crop", "squash"] = "auto"  # type: ignore[assignment]
    """How a video becomes square: crop (RandomResizedCrop; the central square in evaluation) or
    squash (84 % of the width and height of the frame, squashed to a square, as the original code).
    auto takes the checkpoint's: squash for released weights, the run's own for others. Images are
    always cropped."""
    mean: tuple[float, float, float] | None = None  # type: ignore[assignment]
    """Channel means, RGB in [0, 1]; None takes the checkpoint's."""
    std: tuple[float, float, float] | None = None  # type: ignore[assignment]
    """Channel standard deviations, RGB in [0, 1]; None takes the checkpoint's."""


def resolve_data(
    config: DataConfig, default: DataConfig, out: Path | None, source: DataConfig
) -> tuple[DataConfig, str]:
    """Replace the options that follow the checkpoint by its values.

    What a run in `out` has recorded wins over the checkpoint, and over the benchmark, whose value
    may have changed since; a flag wins over all of them. A run of an earlier version recorded no
    geometry: it cropped.

    Args:
        config: Options as given.
        default: Options of the benchmark.
        out: The folder of a run that trains; None evaluates as the checkpoint was trained.
        source: The checkpoint's values.

    Returns:
        A plain DataConfig, and a line for the log.
    """
    recorded = _recorded_data(out) if out else None
    values = {entry.name: getattr(config, entry.name) for entry in fields(DataConfig)}
    words = []
    for name in ("geometry", "mean", "std"):
        unset = values[name] in (None, "auto")
        if recorded is not None and (unset or values[name] == getattr(default, name)):
            origin, value = "of the run in --out", recorded.get(name, getattr(DataConfig(), name))
        elif unset:
            origin, value = "of the checkpoint", getattr(source, name)
        else:
            origin, value = "given", values[name]
        values[name] = tuple(value) if isinstance(value, list) else value
        shown = value if name == "geometry" else " ".join(map(str, value))
        words.append(f"{name} {shown} ({origin})")
    return DataConfig(**values), ", ".join(words)


def _recorded_data(out: Path) -> dict[str, Any] | None:
    """Data options of the run in a folder; None without a readable record."""
    try:
        record = json.loads((out / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # engine/resume.py decides about it and names what is wrong
    return record.get("loader") if isinstance(record, dict) else None


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that a run of a benchmark depends on."""

    annotations: Path = field(default=REQUIRED, metadata=CONTENT)
    """Folder with the official annotation files."""
    media: Path = field(default=REQUIRED, metadata=MAY_CHANGE)
    """Folder with the videos or images."""
    checkpoint: Path = field(default=REQUIRED, metadata=CONTENT)
    """Source of the weights: a run's folder (its best weights), a checkpoint, a model folder, a hub
    id, or a released file of the original code."""
    out: Path = field(default=REQUIRED, metadata=MAY_CHANGE)
    """Folder of the run: checkpoints, best weights, results, predictions. The same command on the
    same folder resumes."""
    variant: str = ""
    """Variant of the benchmark (split protocol, sub-task); empty takes the first."""
    eval_only: bool = False
    """Evaluate the checkpoint as it is, without training."""
    train_split: str = ""
    """Split to train on; empty takes the variant's."""
    val_split: str = ""
    """Split that selects the best weights; empty takes the variant's. Never the test split. none
    validates nothing and keeps the last weights, for example with --train-split train-full."""
    eval_split: str = ""
    """Split of the final evaluation; empty takes the variant's test split."""
    size: str | None = None
    """Size that the checkpoint must have. Optional: the checkpoint states its own size."""
    frames: int = 3
    """Frames per view, T."""
    views: int = 1
    """Views per clip in evaluation, whose scores are averaged; the paper's 3x3 is 3 views of 3
    frames."""
    image_size: int | None = None
    """Height and width of the frames, pixels; None takes the checkpoint's. Position tables of
    another size are interpolated."""
    max_text_len: int | None = None
    """Tokens per text, [CLS] and [SEP] included; None takes the checkpoint's."""
    patch_order: str | None = None
    """Order of the patches, which decides which of them roll: raster or shuffled; None takes the
    checkpoint's."""
    dropout: float | None = None
    """Dropout probability of hidden states; None takes the checkpoint's."""
    epochs: float = 20.0
    """Passes over the training split, if --steps is 0."""
    patience: int = option(0, earlier=5)
    """Consecutive validations without improvement after which training stops; 0 trains to the end,
    as the original does, and still keeps the best weights. 5 of the 20 validations end 24 to 50 %
    of simulated runs early, which costs 1 point."""
    val_items: int = option(2000, resume="may_change")
    """Validate on at most this many items, chosen by the hash of their ids; 0 takes all."""
    head_lr_mult: float = 1.0
    """The task head's learning rate as a multiple of --lr."""
    layer_decay: float = 1.0
    """Ratio of the learning rates of a layer and the next one, in (0, 1]: with 0.75 and 12 blocks
    the last block has 0.75, the embeddings 0.75 ** 13 = 0.024 of --lr; the pooler and heads have
    it in full. 1 gives all layers the same rate, as the original."""
    weights: WeightsKind = "raw"
    """raw, or ema: their moving average (--ema). It decides which weights select the best step and
    are evaluated at the end; with --eval-only, which ones of --checkpoint are evaluated. Both are
    scored in every validation."""
    eval_batch: int = 32
    """Items per evaluation batch. Scores depend on it through rounding only; cached evaluation
    results are kept per value."""
    cache: Path = field(default_factory=cache_folder, metadata=MAY_CHANGE)
    """Folder of the cache of probed media, shared by all runs."""
    picture_rate: float = 3.0
    """Pictures per second of videos that are folders of numbered pictures (TVQA)."""
    pretraining: str = ""
    """Data sets of the pre-training, joined by + as in the paper (WebVid+HowTo); selects the row of
    the paper that the result is compared with. By default taken from the checkpoint, if one of our
    pre-training runs wrote it."""
    task: TaskOptions = field(default_factory=TaskOptions, metadata=RECORDED)
    """Options of the task: losses, head, vocabulary."""
    loader: DataConfig = field(default_factory=TuneDataConfig)
    """How clips are read, decoded and augmented."""
    train: TuneConfig = field(default_factory=TuneConfig)
    """Options of the training loop."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("frames", "views", "eval_batch"))
        require(self, POSITIVE, ("epochs", "picture_rate"))
        require(self, NOT_NEGATIVE, ("patience", "val_items", "head_lr_mult"))
        require(self, Bounds(0, 1, above=True), ("layer_decay",))
        if getattr(self.task, "mixup", 0) and self.train.micro_batch < 2:
            raise ConfigError(
                f"--mixup mixes the clips of a micro-batch, but --micro-batch is"
                f" {self.train.micro_batch}; give at least 2, or --mixup 0"
            )
        if self.weights == "ema" and not (self.train.ema or self.eval_only):
            raise ConfigError(
                "--weights ema evaluates averaged weights, but --ema 0 averages none; give --ema,"
                " for example 0.999"
            )

    def model_overrides(self) -> dict[str, Any]:
        """Values of the model's config that the task sets; None keeps the checkpoint's."""
        return {
            "num_frames": self.frames,
            "image_size": self.image_size,
            "max_text_len": self.max_text_len,
            "patch_order": self.patch_order,
            "hidden_dropout": self.dropout,
        }

    def with_steps(self, items: int) -> FinetuneConfig:
        """A copy with the number of steps and the validation interval for `items` training
        items."""
        train = self.train
        steps = train.steps or max(1, math.ceil(self.epochs * items / train.global_batch))
        return replace(
            self,
            train=replace(
                train, steps=steps, eval_every=train.eval_every or max(1, steps // VALIDATIONS)
            ),
        )

    def clip(self, config: AllInOneConfig) -> ClipConfig:
        """Shape of the clips that this model needs."""
        return ClipConfig(
            num_frames=self.frames, image_size=config.image_size, max_text_len=config.max_text_len
        )

    def as_json(self, inputs: Mapping[str, RunInput] | None = None) -> RunOptions:
        """JSON values with their resume policies, for run.json, checkpoints and results; --config
        reads them back.

        Args:
            inputs: What else the run depends on.
        """
        return RunOptions.of(self, inputs)
