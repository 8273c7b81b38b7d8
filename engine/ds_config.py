"""DeepSpeed configurations: loaded by name, "auto" filled from the run, conflicts refused."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allinone.common.errors import ConfigError, LocalConfigError
from allinone.common.paths import PACKAGE
from allinone.engine.config import TrainConfig

FOLDER = PACKAGE / "ds_configs"


def load(name: str) -> dict[str, Any]:
    """Load a DeepSpeed JSON file.

    Args:
        name: A name in ds_configs/, or a path that ends in .json.

    Raises:
        ConfigError: There is no such file (lists the valid names), or it is not valid JSON.
    """
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not path.is_file():
        valid = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise ConfigError(f"--ds-config {name}: no such file {path}; valid names: {valid}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"--ds-config {path} is not valid JSON: {error}") from error


def precision(config: Mapping[str, Any]) -> str:
    """fp32, bf16 or fp16."""
    for name in ("bf16", "fp16"):
        if config.get(name, {}).get("enabled"):
            return name
    return "fp32"


def stage(config: Mapping[str, Any]) -> int:
    """ZeRO stage."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def offload(config: Mapping[str, Any]) -> str:
    """Where the optimizer state is stored: none (on the device), cpu or nvme."""
    return (config.get("zero_optimization", {}).get("offload_optimizer") or {}).get(
        "device", "none"
    )


def arithmetic(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that changes results: precisions.

    The rest decides where state is stored and when it is communicated.
    """
    # check_grad_overflow decides who finds an overflow, not what is done about it
    names = ("fp16", "data_types", "communication_data_type", "torch_autocast")
    bf16 = {k: v for k, v in (config.get("bf16") or {}).items() if k != "check_grad_overflow"}
    return {name: config.get(name) for name in names} | {"bf16": bf16}


def clips_itself(config: dict[str, Any]) -> bool:
    """Whether our optimizer clips and skips steps, on the device, instead of DeepSpeed.

    DeepSpeed waits for the device once per step to do so. It is used for fp16, whose loss scaler
    needs the overflow; for ZeRO 3 and for ZeRO 0 in bf16, whose wrappers always check; and with
    offload, where the optimizer runs on the host anyway.
    """
    supported = {(0, "fp32"), (1, "fp32"), (2, "fp32"), (1, "bf16"), (2, "bf16")}
    return offload(config) == "none" and (stage(config), precision(config)) in supported


def resolve(config: TrainConfig, world: int, on_cpu: bool) -> dict[str, Any]:
    """Resolve the run's DeepSpeed file into the configuration for deepspeed.initialize.

    Args:
        config: Options of the run.
        world: Number of data ranks.
        on_cpu: Whether the run trains on CPUs.

    Raises:
        ConfigError: The file contradicts the run's options, or the combination is not supported.
    """
    resolved = load(config.ds_config)
    derived = {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation(world),
        "gradient_clipping": config.clip_grad,
    }
    for name, value in derived.items():
        given = resolved.get(name, "auto")
        if given not in ("auto", value):
            raise ConfigError(
                f"{config.ds_config} sets {name} = {given}, but this run needs {value}; write"
                ' "auto" in the file or change the option'
            )
        resolved[name] = value
    for name in ("optimizer", "scheduler"):
        if name in resolved:
            raise ConfigError(
                f'{config.ds_config} has a block "{name}"; the run\'s own options set it: remove'
                " the block"
            )
    if on_cpu and precision(resolved) == "fp16":
        raise ConfigError(
            f"--ds-config {config.ds_config}: DeepSpeed does not train in fp16 on a CPU; choose a"
            " *_fp32 or *_bf16 file"
        )
    if config.tensor_parallel > 1 and stage(resolved) == 0 and precision(resolved) != "fp32":
        raise ConfigError(
            f"--tensor-parallel {config.tensor_parallel} with --ds-config {config.ds_config}: at"
            " ZeRO 0 in 16 bits, DeepSpeed 0.19 includes only the first part of divided layers in"
            " the gradient norm; choose zero1_*"
        )
    if config.ema and offload(resolved) == "nvme":
        raise ConfigError(
            f"--ema {config.ema} with --ds-config {config.ds_config}: DeepSpeed swaps the fp32"
            " weights to NVMe, where they cannot be averaged; choose *_offload_cpu_*, or --ema 0"
        )
    if clips_itself(resolved):
        if resolved.get("zero_optimization", {}).get("compute_grad_norm", True) is False:
            raise ConfigError(
                f"{config.ds_config} sets compute_grad_norm = false, but clipping and skipping need"
                " the norm; remove the line"
            )
        resolved["gradient_clipping"] = 0.0  # SkippingAdamW clips, without waiting for the device
    # the timer, whose figures nobody reads, waits for the device twice per micro-batch
    resolved["timers"] = {"throughput": {"enabled": False}} | (resolved.get("timers") or {})
    # DeepSpeed knows optimizers by class name, and SkippingAdamW is not on its list
    resolved["zero_allow_untested_optimizer"] = True
    if offload(resolved) != "none":
        _resolve_offload(resolved, config.ds_config)
    return resolved


def _resolve_offload(resolved: dict[str, Any], name: str) -> None:
    """Select the optimizer on the host, and the folder of this process for "nvme_path": "auto"."""
    if resolved.get("bf16", {}).get("check_grad_overflow", True) is False:
        raise ConfigError(
            f"{name}: with offload only DeepSpeed can skip a step; remove check_grad_overflow"
        )
    # torch's fused CPU AdamW needs no C++ build at the first start, DeepSpeedCPUAdam does
    resolved["zero_force_ds_cpu_optimizer"] = False
    block = resolved["zero_optimization"]["offload_optimizer"]
    if block["device"] == "nvme" and block.get("nvme_path") == "auto":
        folder = os.environ.get("NVME_DIR") or os.environ.get("SLURM_TMPDIR")
        if not folder:
            raise ConfigError(
                f"--ds-config {name}: set NVME_DIR to a folder on every node's own NVMe disk"
                " (SLURM_TMPDIR is not set)"
            )
        block["nvme_path"] = _swap_folder(folder)


@functools.cache
def _swap_folder(base: str) -> str:
    """A temporary folder of this process, deleted when it ends.

    DeepSpeed names swap files by parameter only, so two runs would overwrite each other's files,
    and it copies everything in their folder into every checkpoint.
    """
    try:
        made = tempfile.mkdtemp(prefix="all-in-one-", dir=base)
    except OSError as error:
        raise LocalConfigError(
            f"cannot write to {base} ({error}); give a folder on this node's own disk in NVME_DIR"
        ) from error
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
