"""fp32 weights from ZeRO's partitions on the disk, without DeepSpeed and without a process group.

`weights/` of a checkpoint holds the same numbers already gathered; this is for a checkpoint whose weights/ is lost, and an independent look at it.
Layout of the partitions: DeepSpeed 0.19, deepspeed/utils/zero_to_fp32.py.

Tensor parallel: its place is `_read_states`. Linears that megatron-core splits would lie in mp_rank_01 and up, and would have to be joined along the
dimension that model/linear.py names (column: outputs, row: inputs) after each mp_rank is gathered. Such a checkpoint is refused here; its weights/ is
whole at every parallel size.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import STATE, CheckpointError
from model.weights_file import read_pickle

_STAND_INS = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
_PREFIX = "model."  # engine.objective.StepModule's


def _rank(path: Path) -> int:
    match = re.search(r"pp_rank_(\d+)_", path.name)
    return int(match[1]) if match else 0


def _read_states(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(rank 0's model states, every rank's optimizer states); CheckpointError where a rank's file is missing or tensor parallel was used."""
    models = sorted(folder.glob("*_model_states.pt"), key=_rank)
    if not models:
        raise CheckpointError(
            f"{folder} holds no *_model_states.pt; give a checkpoint of this program (runs/NAME/checkpoints/step-…)"
        )
    model = read_pickle(models[0], _STAND_INS)[0]
    if model.get("mp_world_size", 1) > 1:
        raise CheckpointError(
            f"{folder} was written with tensor parallel {model['mp_world_size']}; leave out --from-shards: weights/ is whole"
        )
    files = sorted(folder.glob("*_optim_states.pt"), key=_rank)
    if files and [_rank(path) for path in files] != list(range(model["dp_world_size"])):
        raise CheckpointError(
            f"{folder} holds the partitions of ranks {[_rank(p) for p in files]}, but {model['dp_world_size']} ranks wrote it"
        )
    return model, [read_pickle(path, _STAND_INS)[0]["optimizer_state_dict"] for path in files]


def weights_from_shards(checkpoint: Path) -> dict[str, Tensor]:
    """Parameter name (of the model, as in weights/) → fp32 tensor, of a checkpoint of any ZeRO stage and world size.

    Raises CheckpointError for what the partitions do not hold in fp32 by name (fp16 and bf16 without ZeRO), for frozen or shared parameters and for
    missing ranks.
    """
    folder = checkpoint / STATE
    model, states = _read_states(folder)
    special = [name for name in ("frozen_param_shapes", "shared_params") if model.get(name)]
    if special:
        raise CheckpointError(f"{folder} has {' and '.join(special)}, which partitions hold elsewhere; leave out --from-shards")
    if not states:
        found = model["module"]
        low = [name for name, value in found.items() if value.is_floating_point() and value.dtype != torch.float32]
        if low:
            raise CheckpointError(
                f"{folder} holds {low[0]} in {found[low[0]].dtype} only; leave out --from-shards: weights/ is fp32"
            )
    elif "fp32_flat_groups" in states[0]:
        found = _gather_stage_3(states, [shapes for group in model["param_shapes"] for shapes in group.items()])
    else:
        found = _gather_stage_1_2(states, model["param_shapes"])
    return {name.removeprefix(_PREFIX): value for name, value in found.items()}


def _gather_stage_1_2(states: list[dict[str, Any]], shapes: list[dict[str, torch.Size]]) -> dict[str, Tensor]:
    """Each group is one flat tensor, cut into a piece per rank."""
    found = {}
    for number, group in enumerate(shapes):
        flat = torch.cat([state["single_partition_of_fp32_groups"][number] for state in states])
        offset = 0
        for name, shape in group.items():
            found[name] = _take(flat, offset, shape, name)
            offset += shape.numel()
    return found


def _gather_stage_3(states: list[dict[str, Any]], shapes: list[tuple[str, torch.Size]]) -> dict[str, Tensor]:
    """Each parameter is cut into a piece per rank, the last one padded; a rank's pieces follow one another."""
    ranks = [torch.cat(state["fp32_flat_groups"]) for state in states]
    found, offset = {}, 0
    for name, shape in shapes:
        piece = math.ceil(shape.numel() / len(ranks))
        found[name] = _take(torch.cat([flat[offset : offset + piece] for flat in ranks]), 0, shape, name)
        offset += piece
    return found


def _take(flat: Tensor, offset: int, shape: torch.Size, name: str) -> Tensor:
    if offset + shape.numel() > flat.numel():
        raise CheckpointError(f"the partitions end before {name}: {flat.numel()} numbers, {offset + shape.numel()} needed")
    return flat[offset : offset + shape.numel()].view(shape).clone()
