"""Load a checkpoint at another number of ranks, ZeRO stage or tensor-parallel size.

Every rank reads its share of the optimizer state from the old partitions by parameter name, and
passes it to DeepSpeed as the state that this layout would have saved. Nothing is converted or
written, and a rank holds at most its own share and one full parameter at a time. From ZeRO 1 or 2
to ZeRO 1 or 2, a rank reads little more than its share from the disk.

DeepSpeed's own converter (ds_to_universal) copies the checkpoint, and in 0.19 it gives every group
the weight decay of the first group when it reads ZeRO 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allinone.engine import ds_config
from allinone.engine.checkpoint.layout import LAYOUT, STATE, WEIGHTS, CheckpointError
from allinone.engine.checkpoint.zero_reader import PICKLED_CLASSES, Key, SavedState
from allinone.engine.deepspeed_adapter import (
    ParameterSlice,
    flat_partitions,
    load_partitions,
    load_state_kept_in_memory,
)
from allinone.engine.distributed import topology
from allinone.model.weights_file import read_pickle

KEYS: tuple[Key, ...] = ("weight", "exp_avg", "exp_avg_sq")
LABELS = {
    "data_ranks": "data ranks",
    "stage": "ZeRO",
    "tensor_parallel": "tensor parallel",
    "offload": "offload",
    "precision": "precision",
}
"""Entries of layout.json that must be equal for DeepSpeed's own loading → their names in text."""


def describe(
    module: nn.Module,
    groups: list[dict[str, Any]],
    config: Mapping[str, Any],
    layout: topology.Layout,
) -> dict[str, Any]:
    """The content of layout.json: which state of which parameter is stored where.

    Args:
        module: The model.
        groups: Parameter groups of the optimizer.
        config: The resolved DeepSpeed configuration.
        layout: Ranks of this run.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    divisions = {
        name: topology.division_of(parameter) for name, parameter in module.named_parameters()
    }
    return {
        **identity(config, layout),
        # in the optimizer's order: without ZeRO the moments are stored by number, not by name
        "groups": [
            [names[parameter] for parameter in group["params"] if parameter in names]
            for group in groups
        ],
        # a reader without megatron-core needs these to join the shards
        "divided": {name: [found.dim, found.blocks] for name, found in divisions.items() if found},
    }


def identity(config: Mapping[str, Any], layout: topology.Layout) -> dict[str, Any]:
    """The entries of layout.json that must be equal for DeepSpeed's own loading.

    They are known before the engine is built.
    """
    return {
        "stage": ds_config.stage(config),
        "precision": ds_config.precision(config),
        "offload": ds_config.offload(config),
        "data_ranks": layout.data_world,
        "tensor_parallel": layout.tensor,
    }


def read_layout(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's layout.json; CheckpointError if it has none."""
    if not (folder / LAYOUT).is_file():
        raise CheckpointError(
            f"{folder} was written by an earlier version, without {LAYOUT}; start a new run from"
            f" its weights in {folder / WEIGHTS}"
        )
    return json.loads((folder / LAYOUT).read_text())


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The entries of two layouts that differ, as text; '' if DeepSpeed's own loading applies."""
    return ", ".join(
        f"{label} {before[name]} → {now[name]}"
        for name, label in LABELS.items()
        if before[name] != now[name]
    )


def check_movable(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a change of layout that is not supported; equal layouts always pass.

    Args:
        folder: The checkpoint, for messages.
        before: Its layout.
        now: The layout of this run.

    Raises:
        CheckpointError: NVMe offload is involved, whose state is stored in DeepSpeed's swap files,
            or the precision differs.
    """
    if not difference(before, now):
        return
    if "nvme" in (before["offload"], now["offload"]):
        raise CheckpointError(
            f"{folder} cannot be loaded at this layout ({difference(before, now)}): with NVMe"
            " offload the optimizer state is stored in DeepSpeed's swap files. Continue at the"
            " layout that wrote it, or start a new run with"
            f" --init-from {folder / WEIGHTS}"
        )
    # weights and moments are fp32 in every precision and would load; the losses would not continue
    if before["precision"] != now["precision"]:
        raise CheckpointError(
            f"{folder} was written in {before['precision']}, this run computes in"
            f" {now['precision']}; use a --ds-config of the same precision"
        )


def load(
    engine: Any, module: nn.Module, folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Restore weights, moments and step count from a verified checkpoint of another layout.

    Args:
        engine: DeepSpeed's engine.
        module: The model inside the engine.
        folder: The checkpoint.
        before: Layout that wrote it.
        now: Layout of this run.

    Raises:
        CheckpointError: As `check_movable`, or files of the checkpoint are missing.
    """
    check_movable(folder, before, now)
    # each rank opens all partitions: which of them hold its share depends on both layouts
    saved = SavedState(folder)
    names = {parameter: name for name, parameter in module.named_parameters()}
    optimizer, layout = engine.optimizer, topology.current()

    flats: list[Tensor] = []
    state: dict[int, dict[str, Tensor]] = {}
    partitions = flat_partitions(optimizer, now["stage"], layout.data_rank, layout.data_world)
    for number, (flat, slices) in enumerate(partitions):
        weight, *moments = (
            fill_slices(flat, slices, names, partial(saved.full_tensor, key=key)) for key in KEYS
        )
        flats.append(weight)
        state[number] = {
            # Adam's bias correction needs it; a tensor, because AdamW updates it in place
            "step": torch.tensor(saved.step),
            **dict(zip(KEYS[1:], moments, strict=True)),
        }
    load_partitions(optimizer, now["stage"], flats, state, layout.data_world)


def fill_slices(
    flat: Tensor,
    slices: Iterable[ParameterSlice],
    names: Mapping[nn.Parameter, str],
    full: Callable[[str], Tensor],
) -> Tensor:
    """New content of a flat tensor of this rank, float32; padding is 0.

    Args:
        flat: Gives the shape.
        slices: The parameters in it.
        names: Parameter → name.
        full: Name → complete tensor.
    """
    layout = topology.current()
    filled = torch.zeros_like(flat, dtype=torch.float32, requires_grad=False)
    for piece in slices:
        part = full(names[piece.parameter])
        if (division := topology.division_of(piece.parameter)) is not None:
            # cut for tensor parallelism first: ZeRO partitions what is left on this rank
            part = division.part(part, layout.tensor_rank, layout.tensor)
        numbers = part.flatten()[piece.start : piece.start + piece.count]
        filled.view(-1)[piece.offset : piece.offset + piece.count] = numbers
    return filled


def load_kept_in_memory(engine: Any, folder: Path) -> None:
    """Load the state that DeepSpeed omits from a checkpoint with NVMe offload."""
    layout = topology.current()
    # DeepSpeed begins the name with bf16_ in bf16
    (file,) = (folder / STATE).glob(
        f"*zero_pp_rank_{layout.data_rank}_mp_rank_{layout.tensor_rank:02d}_optim_states.pt"
    )
    saved = read_pickle(file, PICKLED_CLASSES)[0]["optimizer_state_dict"]
    load_state_kept_in_memory(
        engine.optimizer, saved["optimizer_state_dict"]["state"], saved["fp32_flat_groups"]
    )
