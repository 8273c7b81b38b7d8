"""Loads a model for inference from whatever --checkpoint takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from allinone.common.errors import AllInOneError, InputError
from allinone.data.config import DataConfig
from allinone.finetune.task_model.source import (
    SourceCheckpoint,
    config_fields,
    read_source_checkpoint,
)
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.objectives.registry import objective_of_head


@dataclass
class LoadedModel:
    """A model ready for inference, with what is known about its training."""

    model: AllInOneForPreTraining
    weights: Path
    data: DataConfig = field(default_factory=DataConfig)
    """How its run normalised and cropped frames, as AllInOneProcessor reads it."""
    trained: dict[str, float] | None = None
    """Loss weight of each objective in its run; None if unknown."""
    missing: list[str] = field(default_factory=list)
    """Heads (prefixes of parameter names) that are not in the file; they were initialised at
    random."""
    unknown: list[str] = field(default_factory=list)
    """Parameters in the file that this version does not have, such as another task's head."""
    source: SourceCheckpoint | None = None
    """The weights as they were read, with what is known about them."""

    @property
    def what(self) -> str:
        """What the weights are, for the user: `best weights of runs/a, step 400`."""
        return self.source.what if self.source else str(self.weights)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    def needs(self, *heads: str) -> None:
        """Raise InputError unless the file contained these heads."""
        for head in heads:
            if head in self.missing:
                objective = objective_of_head(head)
                label = "" if objective is None else f" ({objective.label})"
                raise InputError(
                    f"--checkpoint {self.weights} has no {head}{label}; this task needs a model"
                    " pre-trained with it"
                )

    def untrained(self, head: str) -> str | None:
        """The objective that trains a head, such as "MLM", if the run is known to have trained
        without it; else None."""
        objective = objective_of_head(head)
        if objective is None or self.trained is None or self.trained.get(objective.name):
            return None
        return objective.label


def load_checkpoint(path: Path, device: str = "auto", option: str = "--checkpoint") -> LoadedModel:
    """Load a model for inference in float32.

    Args:
        path: A run, a checkpoint, a model folder, a file of weights, or a hub id.
        device: cpu, cuda, or auto (cuda if there is a GPU).
        option: The option named in error messages.

    Returns:
        The model in eval mode on the device.

    Raises:
        InputError: The folder holds no All-in-one model, or `device` is not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU on this machine; use --device cpu")
    try:
        source = read_source_checkpoint(path)
    except AllInOneError as error:
        raise InputError(f"{option} {str(error).removeprefix('--checkpoint ')}") from error
    config = AllInOneConfig(**{**config_fields(source.config), "task": dict(source.task)})
    try:
        with torch.device("meta"):  # a config.json of other shapes must not take memory
            shapes = AllInOneForPreTraining(config).state_dict()
        misfits = [
            n for n, t in source.tensors.items() if n in shapes and t.shape != shapes[n].shape
        ]
        if misfits:
            name = misfits[0]
            raise ValueError(
                f"{len(misfits)} tensors do not have the shapes of config.json, first: {name}"
                f" {list(source.tensors[name].shape)} instead of {list(shapes[name].shape)}"
            )
        model = AllInOneForPreTraining(config)
        info = model.load_state_dict(source.tensors, strict=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{option} {source.path} cannot be loaded: {reason}") from error
    # the temperature of the contrastive loss has a default and is not needed for inference
    absent = [name for name in info.missing_keys if not name.startswith("logit_scale")]
    backbone = sorted(name for name in absent if name.startswith("backbone."))
    if backbone:
        raise InputError(
            f"{option} {source.path} misses {len(backbone)} tensors of the transformer, first:"
            f" {backbone[0]}"
        )
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return LoadedModel(
        model=model.float().eval().to(target),
        weights=source.path,
        data=replace(source.data, dali_threads=1),
        trained=source.run.get("objective"),
        missing=sorted({name.split(".")[0] for name in absent}),
        unknown=sorted([*info.unexpected_keys, *source.unexpected]),
        source=source,
    )
