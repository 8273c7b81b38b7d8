"""Whether and how a run compiles its model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from allinone.common.errors import ConfigError
from allinone.engine import ds_config
from allinone.engine.config import TrainConfig

log = logging.getLogger(__name__)


def compile_model(
    model: nn.Module, config: TrainConfig, ds: Mapping[str, Any], device: torch.device
) -> None:
    """Compile the model in place, if --compile says so; nothing is compiled before the first pass.

    A model with a method `compile_blocks` compiles its blocks, any other one is compiled as one
    function. Names of parameters, by which checkpoints find them, do not change.

    Args:
        model: The model, divided by tensor parallelism.
        config: Training options.
        ds: Resolved DeepSpeed options.
        device: This rank's device.

    Raises:
        ConfigError: --compile was given for a run that cannot be compiled.
    """
    if config.compile is False:
        return
    obstacle = _obstacle(config, ds)
    if config.compile == "auto":
        if obstacle or device.type != "cuda":
            return
        if problem := _problem(device):
            log.warning("the model runs uncompiled, because torch.compile fails: %s", problem)
            return
    elif obstacle:
        raise ConfigError(f"--compile: {obstacle}; give --no-compile")
    blocks = hasattr(model, "compile_blocks")
    log.info("compiling %s in the first step", "each kind of block" if blocks else "the model")
    # in place: torch.compile(model) would put _orig_mod. in front of the names
    model.compile_blocks() if blocks else model.compile()  # type: ignore[operator]


def _obstacle(config: TrainConfig, ds: Mapping[str, Any]) -> str:
    """Why a block cannot be one graph; empty if it can."""
    if ds_config.stage(ds) == 3:
        return f"{config.ds_config} (ZeRO 3) gathers the weights of every layer inside a block"
    if config.tensor_parallel > 1:
        return f"--tensor-parallel {config.tensor_parallel} communicates inside a block"
    return ""


def _problem(device: torch.device) -> str:
    """What fails when a small function is compiled, as without a C compiler; empty if nothing."""
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(lambda x: (x * 2).exp().sum())(x).backward()
    except Exception as error:  # noqa: BLE001 - whatever it is, the run can go uncompiled
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""
