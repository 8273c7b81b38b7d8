"""The checkpoint that a run starts from: our own runs, model folders, repositories of the model
hub, or released files of the original code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allinone.common.errors import ConfigError
from allinone.data.config import DataConfig, DatasetSpec
from allinone.data.processor import released_data_config, saved_options
from allinone.engine.checkpoint.layout import WEIGHTS, CheckpointError, WeightsKind
from allinone.engine.checkpoint.weights import FoundWeights, resolve_weights
from allinone.finetune.task_model.reference_heads import ReferenceHead, read_heads
from allinone.model import SIZES, AllInOneConfig
from allinone.model.convert import (
    DISTILLATION,
    POSITION,
    TEMPORAL,
    TEXT_POSITION,
    LoadReport,
    reference_name,
    rename_reference,
)
from allinone.model.weights_file import read_weights

PATCH = "backbone.video_embeddings.patch.weight"


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
    heads: dict[str, ReferenceHead] = field(default_factory=dict)
    """Kind → head, of a file that the original code wrote after fine-tuning."""
    data: DataConfig = field(default_factory=DataConfig)
    """How the inputs of its evaluation are made: geometry and normalisation."""
    what: str = ""
    """What the weights are: `best weights of runs/a, step 400`."""

    @property
    def size(self) -> str:
        """Name of its size; empty if it is none of the named sizes."""
        return size_name(self.config)

    def has_kind(self, kind: str) -> bool:
        """Whether it was fine-tuned with a head of this kind."""
        return kind in self.heads or self.task.get("kind") == kind

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


def read_source_checkpoint(
    path: Path, tensors: Mapping[str, Tensor] | None = None, kind: WeightsKind = "raw"
) -> SourceCheckpoint:
    """Read weights and what is known about their training.

    Args:
        path: A run's folder (its best weights), a checkpoint, a model folder, a file of the
            original code, a safetensors file next to its config.json, or a hub id.
        tensors: Take these weights instead of those in the checkpoint `path`, which may be lost.
        kind: Which weights of a run or checkpoint.

    Raises:
        CheckpointError: There are no weights at this path, or they are no All-in-one model's.
        WeightsError: A file cannot be read.
        ConversionError: Tensors of the original code do not fit.
        ConfigError: The weights fit no known size.
    """
    found = FoundWeights(path / WEIGHTS, "") if tensors else resolve_weights(path, kind)
    if found.path.is_file() and not (found.path.parent / "config.json").is_file():
        return _read_reference(found.path)
    # a file next to config.json is read itself: it may be a moving average next to the weights
    named = found.path if found.path.is_file() else None
    folder = named.parent if named else found.path
    config = _read_config(folder)
    notes: list[str] = []
    if tensors is None:
        file = read_weights(named or folder)
        tensors, notes = file.tensors, file.notes
    report = LoadReport(str(named or folder), notes=list(notes))
    tensors = dict(tensors)
    if not any(name.startswith("backbone.") for name in tensors):  # a bare AllInOneModel
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    # weights/ is inside the folder of a checkpoint, which records the options in run.json
    run_file = folder.parent / "run.json"
    run = json.loads(run_file.read_text()).get("run", {}) if run_file.is_file() else {}
    return SourceCheckpoint(
        named or folder,
        tensors,
        config,
        _hash(named or folder),
        report,
        config.task,
        run,
        data=saved_options(folder)[1],
        what=found.what,
    )


def _read_config(folder: Path) -> AllInOneConfig:
    """The config of a model folder, whose values nobody has checked yet.

    Raises:
        CheckpointError: config.json is damaged, of another model, or has impossible values.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind = content.get("model_type")
        if kind == AllInOneConfig.model_type:
            return AllInOneConfig.from_dict(content)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    raise CheckpointError(
        f"{folder} holds a model of type {kind!r}, not {AllInOneConfig.model_type!r}"
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
    heads, unexpected = read_heads(file.tensors, unexpected, report)
    lacking = [name for name in (POSITION, TEXT_POSITION, PATCH) if name not in tensors]
    if lacking:
        raise CheckpointError(
            f"--checkpoint {path} is not a complete checkpoint of the original code: it has no"
            f" {', '.join(lacking)}"
        )
    width = tensors[POSITION].shape[-1]
    # names are backbone.encoder.blocks.N.…: the numbers count the blocks
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
    patch = tensors[PATCH].shape[-1]
    distilled = DISTILLATION in tensors
    rows = {"num_frames": tensors[TEMPORAL].shape[1]} if TEMPORAL in tensors else {}
    # some released files predate the temporal embedding; distilled models never use it
    if TEMPORAL not in tensors and not distilled:
        tensors[TEMPORAL] = torch.zeros(1, 3, width)
        report.initialised.append(
            f"{TEMPORAL}: not in the file, zeros (the model was trained without it)"
        )
    if "text_projection.weight" in tensors:
        rows["projection_dim"] = tensors["text_projection.weight"].shape[0]
    # The file states no config: the resolution and the lengths follow from the tables' shapes.
    config = AllInOneConfig.from_size(
        size,
        # the original permutes the patches of each frame in every pass
        patch_order="shuffled",
        patch_size=patch,
        image_size=patch * round((tensors[POSITION].shape[1] - (2 if distilled else 1)) ** 0.5),
        distillation_token=distilled,
        max_text_len=tensors[TEXT_POSITION].shape[0],
        **rows,
    )
    task = {}
    if heads:
        names = ", ".join(dict.fromkeys(head.name for head in heads.values()))
        task = {"protocol": f"the original's {names}"}
        report.notes.append(
            f"{names}: the original was fine-tuned, and its file does not say on what; a result on"
            " media that it has seen is leaked"
        )
    return SourceCheckpoint(
        path,
        tensors,
        config,
        _hash(path),
        report,
        task,
        {},
        unexpected,
        heads,
        released_data_config(file.tensors),
        f"file {path} of the original code",
    )


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of the weight files in a folder."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    # 4 MiB at a time: the base size has 440 MB of float32 weights
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
    # co-trained models with separate heads are fine-tuned with those of videos, as in the paper
    return AllInOneConfig(**{**config_fields(source.config), "image_heads": False, **given})


def config_fields(config: AllInOneConfig) -> dict[str, Any]:
    """The fields that AllInOneConfig itself declares."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if name in AllInOneConfig.__annotations__
    }
