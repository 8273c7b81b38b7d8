"""A pre-training run is this one dataclass: recipe values, changed by options, saved with every
checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from allinone.common.options import MAY_CHANGE, RunOptions, option
from allinone.common.validation import COUNT, NOT_NEGATIVE, require
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec, require_distinct
from allinone.engine.config import TrainConfig
from allinone.model import AllInOneConfig
from allinone.pretrain.objectives import ObjectiveConfig


@dataclass(frozen=True)
class ModelOptions:
    """The model of a run. None keeps the value of the size."""

    size: str = "base"
    """nano, tiny, small, base, large or huge (model/config.py)."""
    frames: int = 3
    """Frames per clip, T."""
    image_size: int | None = None
    """Height and width of the frames, pixels."""
    max_text_len: int | None = None
    """Tokens per caption, [CLS] and [SEP] included."""
    roll: Literal["roll", "average", "flatten", "channel"] = "roll"
    """How frames exchange information: temporal token rolling, or one of the paper's
    alternatives."""
    patch_order: Literal["raster", "shuffled"] | None = None
    """Which patches roll: those of the first and last rows, or a random choice per clip and
    step."""
    dropout: float | None = None
    """Dropout of hidden states."""
    drop_path: float | None = None
    """Stochastic depth of the last block, linear over depth."""
    init_from: Path | None = None
    """Start from these weights: a folder written by tools/convert.py or save_pretrained, or
    `weights/` inside a checkpoint. Another resolution, text length or number of frames is resized
    and reported."""

    def build_config(self, image_heads: bool = False) -> AllInOneConfig:
        """The model's config; raises ValueError that lists the valid sizes."""
        overrides = {
            "num_frames": self.frames,
            "image_heads": image_heads,
            "image_size": self.image_size,
            "max_text_len": self.max_text_len,
            "roll": self.roll,
            "patch_order": self.patch_order,
            "hidden_dropout": self.dropout,
            "drop_path": self.drop_path,
        }
        return AllInOneConfig.from_size(
            self.size, **{name: value for name, value in overrides.items() if value is not None}
        )


@dataclass(frozen=True)
class CoTrainOptions:
    """Co-training on images (All-in-one+). Images are clips of one frame: they neither roll nor
    have a place in time."""

    images: tuple[str, ...] = ()
    """Prepared image sets to train on beside the video, each DIR[:SPLIT][=WEIGHT]; none trains on
    video only."""
    image_batch: int = 2048
    """Images per step that holds images, over all ranks."""
    image_mode: Literal["joint", "alternate"] = "joint"
    """joint: video and images in every step, losses added, as the original does. alternate: a step
    holds one of the two."""
    image_share: float = 0.5
    """Share of the steps that hold images; used by alternate only."""
    image_heads: Literal["shared", "separate"] = "shared"
    """Whether images use the MLM and VTM heads of video, or have their own (the paper's rows
    "Shared" and "Not Shared")."""
    image_workers: int | None = option(None, resume="may_change")
    """Reader processes per rank for the images; as many as --workers if not given."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("image_batch",))
        require(self, NOT_NEGATIVE, ("image_workers",))


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that a pre-training run depends on."""

    out: Path = field(metadata=MAY_CHANGE)
    """Folder of the run: checkpoints, TensorBoard, history. The same command on the same folder
    resumes."""
    data: tuple[str, ...]
    """Prepared data sets to train on, each DIR[:SPLIT][=WEIGHT]."""
    val: tuple[str, ...] = option((), resume="may_change")
    """Prepared data sets to evaluate on during training, each DIR[:SPLIT] (default split val)."""
    val_items: int = option(1000, resume="may_change")
    """Evaluate at most this many items of each validation set; 0 takes all."""
    model: ModelOptions = field(default_factory=ModelOptions)
    cotrain: CoTrainOptions = field(default_factory=CoTrainOptions)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    loader: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        require(self, NOT_NEGATIVE, ("val_items",))
        require_distinct([*self.train_specs(), *self.image_specs()], "--data and --images")
        require_distinct(self.val_specs(), "--val")

    def train_specs(self) -> list[DatasetSpec]:
        """The mixture."""
        return [DatasetSpec.parse(text, "train") for text in self.data]

    def image_specs(self) -> list[DatasetSpec]:
        """The mixture of images; empty without co-training."""
        return [DatasetSpec.parse(text, "train") for text in self.cotrain.images]

    def model_config(self) -> AllInOneConfig:
        """The model's config; raises ValueError for values that do not fit together."""
        return self.model.build_config(
            image_heads=bool(self.cotrain.images) and self.cotrain.image_heads == "separate"
        )

    def val_specs(self) -> list[DatasetSpec]:
        """The validation sets."""
        return [DatasetSpec.parse(text, "val") for text in self.val]

    def clip(self, config: AllInOneConfig) -> ClipConfig:
        """What the loader must deliver for this model."""
        return ClipConfig(
            num_frames=config.num_frames,
            image_size=config.image_size,
            max_text_len=config.max_text_len,
        )

    def as_json(self) -> RunOptions:
        """JSON values with their resume policies, for checkpoints and reports."""
        return RunOptions.of(self)
