"""Loads a model for inference from a run, a checkpoint or a save_pretrained folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from allinone.common.errors import InputError
from allinone.data.config import DataConfig
from allinone.data.processor import AllInOneProcessor
from allinone.engine.checkpoint import weights
from allinone.engine.checkpoint.layout import CheckpointError
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.weights_file import read_weights
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


def find_weights(path: Path, option: str = "--checkpoint") -> Path:
    """Find the model folder of a run, a checkpoint or a folder of save_pretrained.

    Raises:
        InputError: There is none; the message names `option`.
    """
    try:
        return weights.find_weights(path)
    except CheckpointError as error:
        raise InputError(f"{option} {error}") from error


def load_checkpoint(path: Path, device: str = "auto", option: str = "--checkpoint") -> LoadedModel:
    """Load a model for inference in float32.

    Args:
        path: A run, a checkpoint, or a folder of save_pretrained.
        device: cpu, cuda, or auto (cuda if there is a GPU).
        option: The option named in error messages.

    Returns:
        The model in eval mode on the device.

    Raises:
        InputError: The folder holds no All-in-one model, or `device` is not available.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU on this machine; use --device cpu")
    weights = find_weights(path, option)
    try:
        kind = json.loads((weights / "config.json").read_text()).get("model_type")
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {weights}: config.json cannot be read ({error})") from error
    if kind != AllInOneConfig.model_type:
        raise InputError(
            f"{option} {weights} holds a model of type {kind!r}, not {AllInOneConfig.model_type!r}"
        )
    try:
        file = read_weights(weights)
        model = AllInOneForPreTraining(AllInOneConfig.from_pretrained(weights))
        tensors = file.tensors
        if not any(name.startswith("backbone.") for name in tensors):  # a bare AllInOneModel
            tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
        info = model.load_state_dict(tensors, strict=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{option} {weights} cannot be loaded: {reason}") from error
    # the temperature of the contrastive loss has a default and is not needed for inference
    absent = [name for name in info.missing_keys if not name.startswith("logit_scale")]
    backbone = sorted(name for name in absent if name.startswith("backbone."))
    if backbone:
        raise InputError(
            f"{option} {weights} misses {len(backbone)} tensors of the transformer, first:"
            f" {backbone[0]}"
        )
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    run = _run_options(weights)
    return LoadedModel(
        model=model.float().eval().to(target),
        weights=weights,
        data=replace(AllInOneProcessor.from_pretrained(weights).config, dali_threads=1),
        trained=run.get("objective"),
        missing=sorted({name.split(".")[0] for name in absent}),
        unknown=sorted(info.unexpected_keys),
    )


def _run_options(weights: Path) -> dict[str, Any]:
    """The options of the run that wrote the weights; {} for weights outside of a checkpoint."""
    path = weights.parent / "run.json"
    try:
        return json.loads(path.read_text()).get("run", {})
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}), so it is unknown how the run cropped its frames"
        ) from error
