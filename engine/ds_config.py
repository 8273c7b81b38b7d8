"""DeepSpeed's JSON: found by name, "auto" filled from the run, contradictions refused."""

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
    """The JSON of a name in ds_configs/ or of a path; ConfigError lists the valid names."""
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not path.is_file():
        valid = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise ConfigError(f"--ds-config {name}: no such file {path}; valid names: {valid}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"--ds-config {path} is no valid JSON: {error}") from error


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
    """Where the optimizer's state lies: none (on the device), cpu or nvme."""
    return (config.get("zero_optimization", {}).get("offload_optimizer") or {}).get(
        "device", "none"
    )


def arithmetic(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a file changes numbers: precisions. The rest says where things lie and when they
    move."""
    blocks = {
        name: config.get(name)
        for name in ("fp16", "bf16", "data_types", "communication_data_type", "torch_autocast")
    }
    return blocks | {
        "bf16": {k: v for k, v in (config.get("bf16") or {}).items() if k != "check_grad_overflow"}
    }


def clips_itself(config: dict[str, Any]) -> bool:
    """Does our optimizer clip and skip (on the device), or DeepSpeed (which asks the device once
    per step and waits)?

    Ours: ZeRO 0 in fp32, ZeRO 1 and 2 in fp32 and bf16. DeepSpeed's: fp16, whose loss scaler must
    know; ZeRO 3 and ZeRO 0 in bf16, whose wrappers always ask; and offload, where the optimizer
    runs on the host anyway.
    """
    return offload(config) == "none" and (stage(config), precision(config)) in {
        (0, "fp32"),
        (1, "fp32"),
        (2, "fp32"),
        (1, "bf16"),
        (2, "bf16"),
    }


def resolve(config: TrainConfig, world: int, on_cpu: bool) -> dict[str, Any]:
    """What deepspeed.initialize gets. A value that stands both here and in the run and differs
    raises ConfigError."""
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
                ' "auto" there or change the option'
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
            " ZeRO 0 in 16 bits DeepSpeed 0.19 leaves all parts but the first of divided layers"
            " out of the gradient norm; choose zero1_*"
        )
    if clips_itself(resolved):
        if resolved.get("zero_optimization", {}).get("compute_grad_norm", True) is False:
            raise ConfigError(
                f"{config.ds_config} sets compute_grad_norm = false, but clipping and skipping need"
                " the norm; remove the line"
            )
        resolved["gradient_clipping"] = 0.0  # done by SkippingAdamW, without waiting for the device
    resolved["zero_allow_untested_optimizer"] = True  # SkippingAdamW is AdamW, but not by name
    if offload(resolved) != "none":
        _settle_offload(resolved, config.ds_config)
    return resolved


def _settle_offload(resolved: dict[str, Any], name: str) -> None:
    """AdamW's fused CPU kernel is torch's: no C++ build at the first start. `nvme_path` "auto" is a
    folder on the node's own disk.

    Each process gets a folder of its own there.
    """
    if resolved.get("bf16", {}).get("check_grad_overflow", True) is False:
        raise ConfigError(
            f"{name}: with offload only DeepSpeed can skip a step; remove check_grad_overflow"
        )
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
    """A folder of this process alone, gone when it ends: DeepSpeed names swap files by parameter
    only, so two runs would write over each other's, and it copies whatever lies beside them into
    every checkpoint."""
    try:
        made = tempfile.mkdtemp(prefix="all-in-one-", dir=base)
    except OSError as error:
        raise LocalConfigError(
            f"nothing can be written in {base} ({error}); give a folder on this node's own disk in"
            " NVME_DIR"
        ) from error
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
