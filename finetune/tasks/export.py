"""The model class of a checkpoint, with transformers' conventions (model/task_models.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from allinone.engine.checkpoint.layout import CheckpointError
from allinone.finetune.task_model.source import SourceCheckpoint, config_fields
from allinone.finetune.tasks.options import ActionOptions, ChoiceOptions, VCROptions
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.model.all_in_one import AllInOnePreTrainedModel
from allinone.model.task_models import PROTOCOLS, AllInOneForTask

_MAY_LACK = ("logit_scale.", "image_mlm_head.", "image_vtm_head.")
"""Parameters with a meaning of their own where a file lacks them."""


def exported_config(
    source: SourceCheckpoint,
) -> tuple[type[AllInOnePreTrainedModel], AllInOneConfig]:
    """The class of the checkpoint's model and its config.

    Args:
        source: The checkpoint.

    Returns:
        The class that holds the head, AllInOneForPreTraining if there is none; and the config, with
        `id2label` and what the inputs of the head need under "task": `prompt`, `list_options`,
        `highlight`, `naming`.
    """
    fields = config_fields(source.config)
    task = dict(source.task)
    found = PROTOCOLS.get(str(task.get("protocol", "")))
    if found is None or not {"kind", "protocol"} <= task.keys():
        config = AllInOneConfig(**fields)
        config.architectures = [AllInOneForPreTraining.__name__]
        return AllInOneForPreTraining, config
    # options of the run, of which a checkpoint keeps a record; a folder has them under "task"
    options: Mapping[str, Any] = source.run.get("task") or {}
    if task["protocol"] == "action_recognition":
        task.setdefault("prompt", options.get("prompt", ActionOptions().prompt))
    if task["protocol"] == "multiple_choice":
        listed = options.get("list_options", ChoiceOptions().list_options)
        task.setdefault("list_options", listed)
    if task["protocol"] == "vcr":
        for name in ("highlight", "naming"):
            task.setdefault(name, options.get(name, getattr(VCROptions(), name)))
    if task["protocol"] == "retrieval":
        task["contrastive"] = "text_projection.weight" in source.tensors
    config = AllInOneConfig(**{**fields, "image_heads": False}, task=task)
    config.architectures = [found.__name__]
    return found, config


def checked_tensors(
    cls: type[AllInOnePreTrainedModel], config: AllInOneConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that the class holds.

    Args:
        cls: The model's class.
        config: Its config.
        tensors: All tensors of a checkpoint.

    Raises:
        CheckpointError: One is missing or has another shape.
    """
    with torch.device("meta"):  # a config.json of other shapes must not take memory
        own = cls(config).state_dict()
    missing = [n for n in own if n not in tensors and not n.startswith(_MAY_LACK)]
    if missing:
        raise CheckpointError(
            f"the weights lack {len(missing)} tensors of {cls.__name__}, first: {missing[0]}"
        )
    kept = {name: tensor for name, tensor in tensors.items() if name in own}
    wrong = [name for name, tensor in kept.items() if tensor.shape != own[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} tensors do not have the shapes of config.json, first: {name}"
            f" {list(kept[name].shape)} instead of {list(own[name].shape)}"
        )
    return kept


def load_task_model(source: SourceCheckpoint) -> AllInOneForTask | None:
    """The model with the checkpoint's head, in float32 and evaluation mode; None without a head.

    Raises:
        CheckpointError: The weights are not complete.
    """
    cls, config = exported_config(source)
    if not issubclass(cls, AllInOneForTask):
        return None
    kept = checked_tensors(cls, config, source.tensors)
    model = cls(config)
    model.load_state_dict(kept, strict=False)
    return model.float().eval()
