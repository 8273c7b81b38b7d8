"""Options of a pre-training run. Imports neither torch nor transformers, so that --help is fast.

A run is one PretrainConfig: the values of a recipe, changed by a file and by flags. It is saved
with every checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from allinone.common.earlier_runs import recorded_names
from allinone.common.errors import ConfigError
from allinone.common.options import CONTENT, MAY_CHANGE, RunInput, RunOptions, option
from allinone.common.validation import COUNT, NOT_NEGATIVE, require
from allinone.data.config import ClipConfig, DataConfig, DatasetSpec, require_distinct
from allinone.engine.checkpoint.layout import CheckpointError
from allinone.engine.checkpoint.weights import FoundWeights, resolve_weights
from allinone.engine.config import TrainConfig
from allinone.pretrain.objectives.config import ObjectiveConfig

if TYPE_CHECKING:
    from allinone.model import AllInOneConfig


VIT_SOURCES = {
    "tiny": "facebook/deit-tiny-patch16-224",
    "small": "facebook/deit-small-distilled-patch16-224",
    "base": "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
}
"""Hub ids of the ImageNet weights that the original starts from, by size."""


VAL_OF_DATA, NO_VAL = "of-data", "none"
"""Values of --val: the split val of the training sets, which a bare --val means; no evaluation."""


@dataclass(frozen=True)
class ModelOptions:
    """Options of the model. None keeps the value of the size."""

    size: str = "base"
    """nano, tiny, small, base, large or huge (model/config.py)."""
    frames: int = 3
    """Frames per clip, T; the paper's value."""
    image_size: int | None = None
    """Height and width of the frames, pixels."""
    max_text_len: int | None = None
    """Tokens per caption, including [CLS] and [SEP]."""
    roll: Literal["roll", "average", "flatten", "channel"] = "roll"
    """How frames exchange information: temporal token rolling, or one of the paper's
    alternatives."""
    patch_order: Literal["raster", "shuffled"] | None = option(None, earlier=None)
    """Which patches roll: those of the first and last rows, or a random choice per frame and step,
    as in the training of the released weights. None takes that of the size."""
    distillation_token: bool | None = option(None, earlier=False)
    """DeiT's distillation token as a second visual token, without a temporal embedding (the paper's
    small size); it must match --init-from."""
    dropout: float | None = None
    """Dropout probability of hidden states."""
    drop_path: float | None = None
    """Stochastic depth of the last block; grows linearly over the blocks."""
    init_from: str | None = option(None, resume="content", earlier=None)
    """Initial weights: a run (its best weights), a checkpoint, a model folder, a file of weights,
    or a hub id. Tables are resized to this run's resolution, text length and frames. none starts
    from random weights. The paper's recipes have `required`: one of the two must be given."""

    def initial_weights(self, run: str = "this run") -> FoundWeights | None:
        """The initial weights; None for random ones.

        Args:
            run: What errors call the run.

        Raises:
            ConfigError: The recipe requires a choice, and none was made; or there are no weights.
        """
        if self.init_from == "required":
            source = VIT_SOURCES.get(self.size)
            convert = f"allinone convert from-vit {source or 'SOURCE'} --size {self.size}"
            raise ConfigError(
                f"{run} starts from ImageNet weights, as the paper does, and --init-from is"
                " missing. Give --init-from FOLDER, or --init-from none to start from random"
                " weights",
                hint=f"make the folder with: {convert} --out weights/vit-{self.size}",
            )
        if self.init_from in (None, "none"):
            return None
        try:
            return _found(str(self.init_from))
        except CheckpointError as error:
            raise ConfigError(f"--init-from {error}") from error

    def build_config(self, image_heads: bool = False) -> AllInOneConfig:
        """Build the model's config.

        Args:
            image_heads: Images get their own MLM and VTM heads.

        Raises:
            ValueError: Unknown size (the message lists the valid ones), or values that contradict
                each other.
        """
        from allinone.model import AllInOneConfig  # imports torch and transformers

        overrides = {
            "num_frames": self.frames,
            "image_heads": image_heads,
            "image_size": self.image_size,
            "max_text_len": self.max_text_len,
            "roll": self.roll,
            "patch_order": self.patch_order,
            "distillation_token": self.distillation_token,
            "hidden_dropout": self.dropout,
            "drop_path": self.drop_path,
        }
        return AllInOneConfig.from_size(
            self.size, **{name: value for name, value in overrides.items() if value is not None}
        )


@dataclass(frozen=True)
class CoTrainOptions:
    """Co-training on images (All-in-one+).

    Images are clips of one frame without a temporal embedding; they do not roll.
    """

    images: tuple[str, ...] = option((), resume="content")
    """Prepared image sets to co-train on, each DIR[:SPLIT][=WEIGHT]; empty trains on video only."""
    image_batch: int = 2048
    """Images per step that trains on images, over all ranks."""
    image_mode: Literal["joint", "alternate"] = "joint"
    """joint: video and images in every step, losses added, as in the original code. alternate: each
    step trains on one of the two."""
    image_share: float = 0.5
    """Share of the steps that train on images; used by alternate only."""
    image_heads: Literal["shared", "separate"] = "shared"
    """Whether images use the MLM and VTM heads of video or have their own (rows "Shared" and "Not
    Shared" of the paper)."""
    image_workers: int | None = option(None, resume="may_change")
    """Reader processes per rank for the images; None takes --workers."""

    def __post_init__(self) -> None:
        require(self, COUNT, ("image_batch",))
        require(self, NOT_NEGATIVE, ("image_workers",))


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that a pre-training run depends on."""

    out: Path = field(metadata=MAY_CHANGE)
    """Folder of the run: checkpoints, TensorBoard, history. The same command with the same folder
    resumes the run."""
    data: tuple[str, ...] = field(metadata=CONTENT)
    """Prepared data sets to train on, each DIR[:SPLIT][=WEIGHT]."""
    val: tuple[str, ...] = option((), resume="may_change")
    """Prepared data sets to evaluate on during training, each DIR[:SPLIT] (default split val). A
    bare --val means the split val of every set of --data; none evaluates nothing."""
    val_items: int = option(1000, resume="may_change")
    """Evaluate at most this many items of each validation set; 0 evaluates all."""
    keep_best: bool = option(False, resume="may_change")
    """Keep the weights of the best evaluation in OUT/best, which other commands then use: by the
    mean of text-to-video R@1, R@5 and R@10 of the first validation set, without a contrastive loss
    by its first accuracy."""
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
        """Video data sets of the mixture."""
        return _specs("data", self.data, self.out)

    def image_specs(self) -> list[DatasetSpec]:
        """Image data sets of the mixture; empty without co-training."""
        return _specs("images", self.cotrain.images, self.out)

    def val_specs(self) -> list[DatasetSpec]:
        """Validation sets."""
        if self.val == (VAL_OF_DATA,):
            return [replace(spec, split="val", weight=1.0) for spec in self.train_specs()]
        return (
            [] if self.val == (NO_VAL,) else [DatasetSpec.parse(text, "val") for text in self.val]
        )

    @property
    def kept_steps(self) -> int:
        """Steps at the start of the run that use --patch-keep; 0 if all use all patches."""
        objective = self.objective
        share = objective.patch_keep_until if objective.patch_keep < 1 else 0.0
        return round(share * self.train.steps)

    def model_config(self) -> AllInOneConfig:
        """The model's config; raises ValueError for values that contradict each other."""
        return self.model.build_config(
            image_heads=bool(self.cotrain.images) and self.cotrain.image_heads == "separate"
        )

    def clip(self, config: AllInOneConfig) -> ClipConfig:
        """Shape of the clips that the loader delivers for this model."""
        return ClipConfig(
            num_frames=config.num_frames,
            image_size=config.image_size,
            max_text_len=config.max_text_len,
        )

    def as_json(self) -> RunOptions:
        """JSON values with their resume policies, for checkpoints and reports."""
        return RunOptions.of(self, self._inputs())

    def _inputs(self) -> dict[str, RunInput]:
        """What the run reads; a resumed run must find the same content, wherever it is."""
        sets = {
            **{f"data-{i}": ("data", spec) for i, spec in enumerate(self.train_specs())},
            **{f"images-{i}": ("cotrain.images", s) for i, s in enumerate(self.image_specs())},
        }
        inputs = {
            key: RunInput(
                f"data set {spec.path}:{spec.split}", partial(_clips, spec), option, spec.name
            )
            for key, (option, spec) in sets.items()
        }
        inputs["tokenizer"] = RunInput("the tokenizer", _tokenizer)
        source = self.model.init_from
        if source not in (None, "none", "required"):
            inputs["init_from"] = RunInput(
                f"the initial weights {source}",
                partial(_weights, str(source)),
                "model.init_from",
            )
        return inputs


def _specs(kind: str, texts: Sequence[str], out: Path) -> list[DatasetSpec]:
    """Data sets of a mixture, under the names with which the run in `out` started."""
    # names key the random choices: a folder that was moved or staged under another name must give
    # the same ones
    names = recorded_names(out)
    return [
        replace(DatasetSpec.parse(text, "train"), label=names.get(f"{kind}-{number}", ""))
        for number, text in enumerate(texts)
    ]


def _clips(spec: DatasetSpec) -> dict[str, str]:
    from allinone.data.fingerprint import clips_fingerprint  # imports pyarrow

    return clips_fingerprint(spec.path, spec.split)


def _tokenizer() -> dict[str, str]:
    from allinone.data.fingerprint import tokenizer_fingerprint  # imports transformers

    return tokenizer_fingerprint()


@functools.cache
def _found(source: str) -> FoundWeights:
    """The weights of --init-from. Once per process: of a run that is still training, the best
    weights change, and the hash in run.json must be that of the weights that were loaded."""
    return resolve_weights(source)


def _weights(given: str) -> dict[str, str]:
    from allinone.data.fingerprint import files_fingerprint

    source = _found(given).path
    files = [source]
    if source.is_dir():
        files = sorted(p for p in source.iterdir() if p.suffix in (".safetensors", ".bin"))
    return files_fingerprint(files, source if source.is_dir() else source.parent)
