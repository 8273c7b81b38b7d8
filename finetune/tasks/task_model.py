"""The backbone with what a task needs of the pre-training heads and a head of its own; weights from
any kind of checkpoint."""

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
"""Of a frozen backbone: its features are those of evaluation."""


class TaskModel(AllInOnePreTrainedModel):
    """The backbone, `task_head`, and those pre-training heads that the task uses: a head that is
    not trained would only decay and go stale."""

    def __init__(
        self,
        config: AllInOneConfig,
        head: nn.Module | None,
        *,
        contrast: bool = False,
        matching: bool = False,
    ) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.backbone = AllInOneModel(config)
        if contrast:
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
        """The joint pass of the backbone; heads are called by the protocol on what they need."""
        return self.backbone(pixels, text_ids, text_mask)

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """See AllInOneModel.encode_text."""
        return self.backbone.encode_text(text_ids, text_mask)

    def encode_video(self, pixels: Tensor) -> Tensor:
        """See AllInOneModel.encode_video."""
        return self.backbone.encode_video(pixels)


@dataclass(frozen=True)
class HeadPlan:
    """What a task adds to the backbone."""

    make: Callable[[AllInOneConfig], nn.Module] | None = None
    """The task's head; None: the contrastive space is all."""
    begin: Callable[[nn.Module, Mapping[str, Tensor]], None] | None = None
    """First weights of a new head; None leaves it random."""
    contrast: bool = False
    matching: bool = False
    frozen: bool = False
    """Nothing but the parameters that hold one of `trained` learns."""
    trained: tuple[str, ...] = (TASK_HEAD,)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a checkpoint must say of its head to be taken over: protocol, kind, labels. Kept in
    config.json as "task"."""


@dataclass
class SourceCheckpoint:
    """A checkpoint as found, before a model is made of it."""

    path: Path
    tensors: dict[str, Tensor]
    """By this project's names."""
    config: AllInOneConfig
    """Of the checkpoint, not of the task."""
    sha256: str
    report: LoadReport
    task: Mapping[str, Any]
    """What it was fine-tuned for; empty for a pre-trained one."""
    run: Mapping[str, Any]
    """Options of the run that wrote it; empty where unknown."""
    unexpected: list[str] = field(default_factory=list)

    @property
    def size(self) -> str:
        """Name of its size; empty where it fits none."""
        return size_name(self.config)

    @property
    def pretrained_on(self) -> dict[str, str]:
        """`pretraining`: names of the data sets, joined by +, as a fine-tuned checkpoint says or as
        the folders of the pre-training run are called. `heads`: whether videos and images shared
        them ("shared" or "apart"), where it had images. Empty where unknown.
        """
        if self.task:
            known = {
                **self.run,
                **self.task,
            }  # a fine-tuning run has --pretraining among its options
            return {name: str(known[name]) for name in ("pretraining", "heads") if known.get(name)}
        cotrain = self.run.get("cotrain", {})
        images = cotrain.get("images", ())
        names = [DatasetSpec.parse(text).path.name for text in (*self.run.get("data", ()), *images)]
        found = {"pretraining": "+".join(names)} if names else {}
        return found | (
            {"heads": {"shared": "shared", "separate": "apart"}[cotrain["image_heads"]]}
            if images
            else {}
        )


def size_name(config: AllInOneConfig) -> str:
    """tiny, small, base, … by width, depth and heads."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    return next(
        (
            name
            for name, shape in SIZES.items()
            if all(shape[key] == getattr(config, key) for key in names)
        ),
        "",
    )


def read_source_checkpoint(path: Path) -> SourceCheckpoint:
    """Our run folder (its best weights), a checkpoint, a model folder, or a file: of the original
    code, or safetensors beside its config.json.

    Raises CheckpointError, WeightsError, ConversionError, ConfigError.
    """
    if path.is_file() and not (path.parent / "config.json").is_file():
        return _read_reference(path)
    folder = find_weights(path.parent if path.is_file() else path)
    file = read_weights(folder)
    config = AllInOneConfig.from_pretrained(folder)
    report = LoadReport(str(folder), notes=list(file.notes))
    bare = not any(name.startswith("backbone.") for name in file.tensors)
    tensors = (
        {f"backbone.{name}": tensor for name, tensor in file.tensors.items()}
        if bare
        else file.tensors
    )
    run_file = folder.parent / "run.json"
    run = json.loads(run_file.read_text()).get("run", {}) if run_file.is_file() else {}
    return SourceCheckpoint(
        folder,
        dict(tensors),
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
            f"--checkpoint {path} is no checkpoint of the original code, and no config.json stands"
            " beside it"
        )
    report = LoadReport(str(path), notes=list(file.notes))
    tensors, unexpected = rename_reference(file.tensors, report)
    width, depth = (
        tensors[POSITION].shape[-1],
        len({name.split(".")[3] for name in tensors if ".encoder.blocks." in name}),
    )
    size = next(
        (
            name
            for name, s in SIZES.items()
            if s["hidden_size"] == width and s["num_hidden_layers"] == depth
        ),
        None,
    )
    if size is None:
        raise ConfigError(
            f"--checkpoint {path} is {width} wide with {depth} blocks; known sizes:"
            f" {', '.join(SIZES)}"
        )
    patch = tensors["backbone.video_embeddings.patch.weight"].shape[-1]
    rows = {"num_frames": tensors[TEMPORAL].shape[1]} if TEMPORAL in tensors else {}
    if TEMPORAL not in tensors:  # some released files predate the temporal embedding
        tensors[TEMPORAL] = torch.zeros(1, 3, width)
        report.initialised.append(
            f"{TEMPORAL}: not in the file, zeros (the model was trained without it)"
        )
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
    """sha256 of a file, or of the weights in a folder."""
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def task_config(
    origin: SourceCheckpoint, size: str | None, overrides: Mapping[str, Any]
) -> AllInOneConfig:
    """The checkpoint's config with the task's resolution, frames and text length; ConfigError
    naming both sizes where another one was asked for."""
    if size is not None and size not in SIZES:
        raise ConfigError(f"--size {size} does not exist; valid sizes: {', '.join(SIZES)}")
    if size is not None and size != origin.size:
        config = origin.config
        found = (
            origin.size
            or f"{config.hidden_size} wide, {config.num_hidden_layers} blocks, {config.num_attention_heads} heads"
        )
        raise ConfigError(
            f"--checkpoint {origin.path} holds a model of size {found}, not --size {size}; give"
            " another checkpoint"
        )
    return AllInOneConfig(
        **{
            **_fields(origin.config),
            "image_heads": False,
            **{name: v for name, v in overrides.items() if v is not None},
        }
    )


def _fields(config: AllInOneConfig) -> dict[str, Any]:
    return {
        name: value
        for name, value in config.to_dict().items()
        if name in AllInOneConfig.__annotations__
    }


def has_head(origin: SourceCheckpoint, plan: HeadPlan) -> bool:
    """Whether the checkpoint holds the very head that the task wants: of the same kind, with the
    same labels."""
    same = bool(origin.task) and all(
        origin.task.get(key) == plan.facts.get(key) for key in ("kind", "labels")
    )
    return same and any(name.startswith(TASK_HEAD) for name in origin.tensors)


def check_head(origin: SourceCheckpoint, plan: HeadPlan) -> None:
    """ConfigError where a new head has nothing to begin from."""
    if (
        plan.make
        and plan.begin
        and not has_head(origin, plan)
        and f"{MATCHING}weight" not in origin.tensors
    ):
        raise ConfigError(
            f"--checkpoint {origin.path} has no VTM head, which the rank head begins from; give a"
            " model pre-trained with VTM, or one that was fine-tuned with the same head"
        )


def build_model(
    origin: SourceCheckpoint, config: AllInOneConfig, plan: HeadPlan, seed: int
) -> TaskModel:
    """The model with the checkpoint's weights. Tables of another length are resized and reported in
    origin.report; a head of another task is left out. Raises ConversionError."""
    torch.manual_seed(seed)
    config = AllInOneConfig(**{**_fields(config), **(_NO_DROPOUT if plan.frozen else {})})
    config.task = dict(plan.facts)
    model = TaskModel(
        config,
        plan.make(config) if plan.make else None,
        contrast=plan.contrast,
        matching=plan.matching,
    )
    own = model.state_dict()
    found = has_head(origin, plan)
    kept = {
        name: t
        for name, t in origin.tensors.items()
        if name in own and (found or not name.startswith(TASK_HEAD))
    }
    left = sorted({name.split(".")[0] for name in origin.tensors if name not in kept})
    report = origin.report
    report.ignored += [f"{name}: this task does not use it" for name in left]
    fit(model, kept, report, unexpected=origin.unexpected, may_be_new=(TASK_HEAD, *CONTRASTIVE))
    if plan.make and not found and plan.begin:
        plan.begin(model.task_head, origin.tensors)
        report.notes.append("the rank head begins as the VTM head")
    if plan.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(pattern in name for pattern in plan.trained))
    return model
