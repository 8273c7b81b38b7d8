"""Load a checkpoint at another number of ranks, ZeRO stage or tensor-parallel size.

Every rank reads its share of the optimizer state from the old partitions by parameter name, and
passes it to DeepSpeed as the state that this layout would have saved. Nothing is converted or
written, and a rank holds at most its own share and one full parameter at a time. From ZeRO 1 or 2
to ZeRO 1 or 2, a rank reads little more than its share from the disk.

DeepSpeed's own converter (ds_to_universal) copies the checkpoint, and in 0.19 it gives every group
the weight decay of the first group when it reads ZeRO 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allinone.engine import ds_config
from allinone.engine.checkpoint import _deepspeed
from allinone.engine.checkpoint.layout import STATE, WEIGHTS, CheckpointError
from allinone.engine.checkpoint.zero_reader import Key, SavedState
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
        "stage": ds_config.stage(config),
        "precision": ds_config.precision(config),
        "offload": ds_config.offload(config),
        "data_ranks": layout.data_world,
        "tensor_parallel": layout.tensor,
        "groups": [
            [names[parameter] for parameter in group["params"] if parameter in names]
            for group in groups
        ],
        "divided": {name: [found.dim, found.blocks] for name, found in divisions.items() if found},
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The entries of two layouts that differ, as text; '' if DeepSpeed's own loading applies."""
    return ", ".join(
        f"{label} {before[name]} → {now[name]}"
        for name, label in LABELS.items()
        if before[name] != now[name]
    )


def check_movable(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a change of layout that is not supported.

    Args:
        folder: The checkpoint, for messages.
        before: Its layout.
        now: The layout of this run.

    Raises:
        CheckpointError: NVMe offload is involved, whose state is stored in DeepSpeed's swap files,
            or the precision differs.
    """
    if "nvme" in (before["offload"], now["offload"]):
        raise CheckpointError(
            f"{folder} cannot be loaded at this layout ({difference(before, now)}): with NVMe"
            " offload the optimizer state is stored in DeepSpeed's swap files. Continue at the"
            " layout that wrote it, or start a new run with"
            f" --init-from {folder / WEIGHTS}"
        )
    if before["precision"] != now["precision"]:
        raise CheckpointError(
            f"{folder} was written in {before['precision']}, this run computes in"
            f" {now['precision']}; use a --ds-config of the same precision"
        )


@dataclass
class _Slice:
    """Numbers [start, start + count) of a flattened parameter, stored at `offset` of a flat tensor
    of this rank."""

    parameter: nn.Parameter
    start: int
    offset: int
    count: int


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
    saved = SavedState(folder)
    names = {parameter: name for name, parameter in module.named_parameters()}
    optimizer, layout = engine.optimizer, topology.current()

    def fill(flat: Tensor, slices: list[_Slice], key: Key) -> Tensor:
        """New content of a flat tensor of this rank; padding is 0."""
        filled = torch.zeros_like(flat, dtype=torch.float32, requires_grad=False)
        for piece in slices:
            part = saved.full_tensor(names[piece.parameter], key)
            if (division := topology.division_of(piece.parameter)) is not None:
                part = division.part(part, layout.tensor_rank, layout.tensor)
            numbers = part.flatten()[piece.start : piece.start + piece.count]
            filled.view(-1)[piece.offset : piece.offset + piece.count] = numbers
        return filled

    flats: list[Tensor] = []
    state: dict[int, dict[str, Tensor]] = {}
    for number, (flat, parameters) in enumerate(_deepspeed.flat_groups(optimizer, now["stage"])):
        slices = list(_slices(now["stage"], flat, parameters, layout))
        weight, *moments = (fill(flat, slices, key) for key in KEYS)
        flats.append(weight)
        state[number] = {
            "step": torch.tensor(saved.step),
            **dict(zip(KEYS[1:], moments, strict=True)),
        }
    _deepspeed.load_flat_state(optimizer, now["stage"], flats, state, layout.data_world)


def load_kept_in_memory(engine: Any, folder: Path) -> None:
    """Load the state that DeepSpeed omits from a checkpoint with NVMe offload."""
    layout = topology.current()
    (file,) = (folder / STATE).glob(
        f"*zero_pp_rank_{layout.data_rank}_mp_rank_{layout.tensor_rank:02d}_optim_states.pt"
    )
    saved = read_pickle(file, _deepspeed.PICKLED_CLASSES)[0]["optimizer_state_dict"]
    _deepspeed.restore_swapped_state(engine.optimizer, saved)


def _slices(
    stage: int, flat: Tensor, parameters: list[nn.Parameter], layout: topology.Layout
) -> Iterator[_Slice]:
    """Where the parameters of a group are stored in a flat tensor of this rank."""
    if stage == 3:
        return _slices_per_parameter(parameters, layout)
    if stage in (1, 2):
        return _slices_of_group(parameters, layout.data_rank * flat.numel(), flat.numel())
    return iter([_Slice(parameters[0], 0, 0, parameters[0].numel())])


def _slices_of_group(parameters: list[nn.Parameter], first: int, size: int) -> Iterator[_Slice]:
    """Stages 1 and 2: of the concatenated parameters, the range [first, first + size)."""
    begin = 0
    for parameter in parameters:
        end = begin + parameter.numel()
        start, stop = max(begin, first), min(end, first + size)
        if start < stop:
            yield _Slice(parameter, start - begin, start - first, stop - start)
        begin = end


def _slices_per_parameter(
    parameters: list[nn.Parameter], layout: topology.Layout
) -> Iterator[_Slice]:
    """Stage 3: each parameter is divided over the data ranks separately, the last part padded."""
    offset = 0
    for parameter in parameters:
        numel: int = getattr(parameter, "ds_numel")  # noqa: B009 - set by DeepSpeed
        share = math.ceil(numel / layout.data_world)
        start = min(layout.data_rank * share, numel)
        yield _Slice(parameter, start, offset, min(share, numel - start))
        offset += share
