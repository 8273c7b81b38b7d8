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
) -> bool:
    """Compile the model in place, if --compile says so; nothing is compiled before the first pass.

    A model with a method `compile_blocks` compiles its blocks, any other one is compiled as one
    function. Names of parameters, by which checkpoints find them, do not change.

    Args:
        model: The model, divided by tensor parallelism.
        config: Training options.
        ds: Resolved DeepSpeed options.
        device: This rank's device.

    Returns:
        Whether the model is compiled.

    Raises:
        ConfigError: --compile was given for a run that cannot be compiled.
    """
    gathers, divided = ds_config.stage(ds) == 3, config.tensor_parallel > 1
    if config.compile == "auto":
        if device.type != "cuda" or gathers or divided:
            return False
        if problem := _problem(device):
            log.warning("the model runs uncompiled, because torch.compile fails: %s", problem)
            return False
    elif not config.compile:
        return False
    elif gathers:
        raise ConfigError(
            f"--compile: {config.ds_config} (ZeRO 3) gathers the weights of each layer inside the"
            " compiled blocks; give --no-compile, or a ZeRO stage below 3"
        )
    log.info("the model is compiled in the first steps")
    if hasattr(model, "compile_blocks"):
        # megatron-core's layers communicate, which no graph contains: pieces between them
        model.compile_blocks(fullgraph=not divided)  # type: ignore[operator]
    else:
        # in place: torch.compile(model) would put _orig_mod. in front of the names
        model.compile()
    return True


def _problem(device: torch.device) -> str:
    """What fails when a small function is compiled, as without a C compiler; empty if nothing."""
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(lambda x: (x * 2).exp().sum())(x).backward()
    except Exception as error:  # noqa: BLE001 - whatever it is, the run can go uncompiled
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return ""
