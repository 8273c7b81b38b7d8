"""The model of a task: the backbone, the pre-training heads that the task uses, and its own head;
and how its weights are read from any kind of checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allinone.common.errors import ConfigError
from allinone.data.config import DatasetSpec
from allinone.engine.checkpoint.manager import CheckpointError, find_weights
from allinone.model import SIZES, AllInOneConfig, AllInOneModel, AllInOneOutput
from allinone.model.all_in_one import AllInOnePreTrainedModel
from allinone.model.convert import (
    CONTRASTIVE,
    POSITION,
    TEMPORAL,
    TEXT_POSITION,
    LoadReport,
    fit,
    reference_name,
    rename_reference,
)
from allinone.model.heads import LogitScale
from allinone.model.weights_file import read_weights

TASK_HEAD = "task_head."
MATCHING = "vtm_head."
_NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "drop_path": 0.0}
"""Config of a frozen backbone: its features are the same in training and evaluation."""


class TaskModel(AllInOnePreTrainedModel):
    """The backbone, `task_head`, and the pre-training heads that the task trains. Other heads are
    left out: without training, weight decay would only shrink them."""

    def __init__(
        self,
        config: AllInOneConfig,
        head: nn.Module | None,
        *,
        contrastive: bool = False,
        matching: bool = False,
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.backbone = AllInOneModel(config)
        if contrastive:
            self.text_projection = nn.Linear(width, config.projection_dim)
            self.video_projection = nn.Linear(width, config.projection_dim)
            self.logit_scale = LogitScale()
        if matching:
            self.vtm_head = nn.Linear(width, 2)
        if head is not None:
            self.task_head = head
        self.post_init()

    def forward(
        self, pixels: Tensor, text_ids: Tensor, text_mask: Tensor, **kwargs: Any
    ) -> AllInOneOutput:
        """The joint pass of the backbone. Tasks call the heads themselves."""
        return self.backbone(pixels, text_ids, text_mask)

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """See AllInOneModel.encode_text."""
        return self.backbone.encode_text(text_ids, text_mask)

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See AllInOneModel.encode_video."""
        return self.backbone.encode_video(pixels)


@dataclass(frozen=True)
class HeadSpec:
    """What a task adds to the backbone."""

    build: Callable[[AllInOneConfig], nn.Module] | None = None
    """Makes the task's head; None: the task uses the contrastive projections only."""
    initialize: Callable[[nn.Module, Mapping[str, Tensor]], None] | None = None
    """Sets the first weights of a new head from the checkpoint's tensors; None: random."""
    contrastive: bool = False
    """Add the contrastive projections."""
    matching: bool = False
    """Add the VTM head."""
    frozen: bool = False
    """Train only the parameters whose name contains one of `trained`."""
    trained: tuple[str, ...] = (TASK_HEAD,)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """protocol, kind and labels of the head, stored in config.json as "task". A checkpoint's head
    is reused if its kind and labels are equal."""


@dataclass
class SourceCheckpoint:
    """The checkpoint that a run starts from, before a model is made of it."""

    path: Path
    tensors: dict[str, Tensor]
    """Weights, by this project's parameter names."""
    config: AllInOneConfig
    """The checkpoint's config, not the task's."""
    sha256: str
    report: LoadReport
    task: Mapping[str, Any]
    """Metadata of the head that it was fine-tuned with; empty for a pre-trained model."""
    run: Mapping[str, Any]
    """Options of the run that wrote it; empty if unknown."""
    unexpected: list[str] = field(default_factory=list)
    """Tensors of the file that the model does not know."""

    @property
    def size(self) -> str:
        """Name of its size; empty if it is none of the named sizes."""
        return size_name(self.config)

    @property
    def pretrained_on(self) -> dict[str, str]:
        """What is known about the pre-training; empty if nothing is.

        Returns:
            `pretraining`: names of the data sets joined by +, as recorded by a fine-tuned
            checkpoint, or the folder names of the pre-training run. `heads`: "shared" or "apart",
            whether videos and images shared their heads; only if there were images.
        """
        if self.task:
            # a fine-tuning run has --pretraining among its options
            known = {**self.run, **self.task}
            return {name: str(known[name]) for name in ("pretraining", "heads") if known.get(name)}
        cotrain = self.run.get("cotrain", {})
        images = cotrain.get("images", ())
        names = [DatasetSpec.parse(text).path.name for text in (*self.run.get("data", ()), *images)]
        found = {"pretraining": "+".join(names)} if names else {}
        if images:
            found["heads"] = "shared" if cotrain["image_heads"] == "shared" else "apart"
        return found


def size_name(config: AllInOneConfig) -> str:
    """tiny, small, base, … by width, depth and heads; empty if none matches."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    for size, shape in SIZES.items():
        if all(shape[name] == getattr(config, name) for name in names):
            return size
    return ""


def read_source_checkpoint(path: Path) -> SourceCheckpoint:
    """Read weights and what is known about their training.

    Args:
        path: A run's folder (its best weights), a checkpoint, a model folder, a file of the
            original code, or a safetensors file next to its config.json.

    Raises:
        CheckpointError: There are no weights at this path.
        WeightsError: A file cannot be read.
        ConversionError: Tensors of the original code do not fit.
        ConfigError: The weights fit no known size.
    """
    if path.is_file() and not (path.parent / "config.json").is_file():
        return _read_reference(path)
    folder = find_weights(path.parent if path.is_file() else path)
    file = read_weights(folder)
    config = AllInOneConfig.from_pretrained(folder)
    report = LoadReport(str(folder), notes=list(file.notes))
    tensors = dict(file.tensors)
    if not any(name.startswith("backbone.") for name in tensors):  # a bare AllInOneModel
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    run_file = folder.parent / "run.json"
    run = json.loads(run_file.read_text()).get("run", {}) if run_file.is_file() else {}
    return SourceCheckpoint(
        folder,
        tensors,
        config,
        _hash(folder),
        report,
        getattr(config, "task", None) or {},
        run,
    )


def _read_reference(path: Path) -> SourceCheckpoint:
    file = read_weights(path)
    if not any(reference_name(key) for key in file.tensors):
        raise CheckpointError(
            f"--checkpoint {path} is not a checkpoint of the original code, and there is no"
            " config.json next to it"
        )
    report = LoadReport(str(path), notes=list(file.notes))
    tensors, unexpected = rename_reference(file.tensors, report)
    width = tensors[POSITION].shape[-1]
    depth = len({name.split(".")[3] for name in tensors if ".encoder.blocks." in name})
    size = next(
        (
            name
            for name, shape in SIZES.items()
            if (shape["hidden_size"], shape["num_hidden_layers"]) == (width, depth)
        ),
        None,
    )
    if size is None:
        raise ConfigError(
            f"--checkpoint {path} has width {width} and {depth} blocks; known sizes:"
            f" {', '.join(SIZES)}"
        )
    patch = tensors["backbone.video_embeddings.patch.weight"].shape[-1]
    rows = {"num_frames": tensors[TEMPORAL].shape[1]} if TEMPORAL in tensors else {}
    if TEMPORAL not in tensors:  # some released files predate the temporal embedding
        tensors[TEMPORAL] = torch.zeros(1, 3, width)
        report.initialised.append(
            f"{TEMPORAL}: not in the file, zeros (the model was trained without it)"
        )
    # The file states no config: the resolution and the lengths follow from the tables' shapes.
    config = AllInOneConfig.from_size(
        size,
        patch_order="shuffled",
        patch_size=patch,
        image_size=patch * round((tensors[POSITION].shape[1] - 1) ** 0.5),
        max_text_len=tensors[TEXT_POSITION].shape[0],
        **rows,
    )
    return SourceCheckpoint(path, tensors, config, _hash(path), report, {}, {}, unexpected)


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of the weight files in a folder."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def task_config(
    source: SourceCheckpoint, size: str | None, overrides: Mapping[str, Any]
) -> AllInOneConfig:
    """The checkpoint's config with the task's resolution, frames and text length.

    Args:
        source: The checkpoint.
        size: Size that the checkpoint must have; None accepts any.
        overrides: Values that replace the checkpoint's; None keeps them.

    Raises:
        ConfigError: The checkpoint has another size; the message names both.
    """
    if size is not None and size not in SIZES:
        raise ConfigError(f"--size {size} does not exist; valid sizes: {', '.join(SIZES)}")
    if size is not None and size != source.size:
        config = source.config
        found = (
            source.size
            or f"{config.hidden_size} wide, {config.num_hidden_layers} blocks,"
            f" {config.num_attention_heads} heads"
        )
        raise ConfigError(
            f"--checkpoint {source.path} holds a model of size {found}, not --size {size}; give"
            " another checkpoint"
        )
    given = {name: value for name, value in overrides.items() if value is not None}
    return AllInOneConfig(**{**_fields(source.config), "image_heads": False, **given})


def _fields(config: AllInOneConfig) -> dict[str, Any]:
    return {
        name: value
        for name, value in config.to_dict().items()
        if name in AllInOneConfig.__annotations__
    }


def has_head(source: SourceCheckpoint, spec: HeadSpec) -> bool:
    """Whether the checkpoint holds the task's head: the same kind, with the same labels."""
    same = bool(source.task) and all(
        source.task.get(key) == spec.metadata.get(key) for key in ("kind", "labels")
    )
    return same and any(name.startswith(TASK_HEAD) for name in source.tensors)


def check_head(source: SourceCheckpoint, spec: HeadSpec) -> None:
    """ConfigError if a new head is to be initialised from a VTM head that is not there."""
    new = spec.build and spec.initialize and not has_head(source, spec)
    if new and f"{MATCHING}weight" not in source.tensors:
        raise ConfigError(
            f"--checkpoint {source.path} has no VTM head, from which the rank head is initialised;"
            " give a model pre-trained with VTM, or one that was fine-tuned with the same head"
        )


def build_model(
    source: SourceCheckpoint, config: AllInOneConfig, spec: HeadSpec, seed: int
) -> TaskModel:
    """The task's model with the checkpoint's weights.

    Position tables of another length are resized and reported in `source.report`; the head of
    another task is dropped.

    Args:
        source: The checkpoint.
        config: The task's config, see `task_config`.
        spec: What the task adds to the backbone.
        seed: Seed of new weights.

    Raises:
        ConversionError: The weights do not fit the model.
    """
    torch.manual_seed(seed)  # new weights are equal on every rank
    config = AllInOneConfig(**{**_fields(config), **(_NO_DROPOUT if spec.frozen else {})})
    config.task = dict(spec.metadata)
    model = TaskModel(
        config,
        spec.build(config) if spec.build else None,
        contrastive=spec.contrastive,
        matching=spec.matching,
    )
    own = model.state_dict()
    reuse_head = has_head(source, spec)
    kept = {
        name: tensor
        for name, tensor in source.tensors.items()
        if name in own and (reuse_head or not name.startswith(TASK_HEAD))
    }
    dropped = sorted({name.split(".")[0] for name in source.tensors if name not in kept})
    report = source.report
    report.ignored += [f"{name}: this task does not use it" for name in dropped]
    fit(model, kept, report, unexpected=source.unexpected, may_be_new=(TASK_HEAD, *CONTRASTIVE))
    if spec.build and not reuse_head and spec.initialize:
        spec.initialize(model.task_head, source.tensors)
        report.notes.append("the rank head is initialised from the VTM head")
    if spec.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(pattern in name for pattern in spec.trained))
    return model
