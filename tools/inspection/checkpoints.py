"""From a path that a person gives to a model ready for inference."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from allinone.common.errors import InputError
from allinone.data.config import DataConfig
from allinone.data.processor import AllInOneProcessor
from allinone.engine.checkpoint import manager
from allinone.engine.checkpoint.manager import CheckpointError
from allinone.model import AllInOneConfig, AllInOneForPreTraining

_HEADS = {"mlm_head": "MLM", "vtm_head": "VTM", "text_projection": "VTC", "video_projection": "VTC"}


@dataclass
class LoadedModel:
    """A model ready for inference, and what is known about its training."""

    model: AllInOneForPreTraining
    weights: Path
    data: DataConfig = field(default_factory=DataConfig)
    """How its run normalised and cropped frames, as AllInOneProcessor finds it."""
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
                    f"--checkpoint {self.weights} has no {head} ({_HEADS[head]}); this task needs a"
                    " model pre-trained with it"
                )

    def untrained(self, objective: str) -> bool:
        """Whether the run is known to have trained without this objective (mlm, vtm, vtc)."""
        return self.trained is not None and not self.trained.get(objective)


def find_weights(path: Path, option: str = "--checkpoint") -> Path:
    """allinone.engine.checkpoint.manager.find_weights, whose error names the option."""
    try:
        return manager.find_weights(path)
    except CheckpointError as error:
        raise InputError(f"{option} {error}") from error


def load_checkpoint(path: Path, device: str = "auto", option: str = "--checkpoint") -> LoadedModel:
    """Load a model for inference in float32. `device` is cpu, cuda or auto. Raises InputError where
    the folder holds no model of ours."""
    from transformers.utils import logging

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
    # heads that are missing or unknown are reported by the task that needs them
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AllInOneForPreTraining.from_pretrained(
            weights, output_loading_info=True, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{option} {weights} cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    absent = [name for name in info["missing_keys"] if not name.startswith("logit_scale")]
    backbone = [name for name in absent if name.startswith("backbone.")]
    if backbone:
        raise InputError(
            f"{option} {weights} misses {len(backbone)} tensors of the transformer, first:"
            f" {sorted(backbone)[0]}"
        )
    target = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    run = _run_facts(weights)
    return LoadedModel(
        model=model.float().eval().to(target),
        weights=weights,
        data=replace(AllInOneProcessor.from_pretrained(weights).config, dali_threads=1),
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
            f"{weights.parent / 'run.json'} cannot be read ({error}); how the run cropped its"
            " frames is unknown"
        ) from error
