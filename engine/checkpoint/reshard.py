"""A run continues at another number of ranks, ZeRO stage and tensor-parallel size: every rank reads
its share of the optimizer state from the old partitions by parameter name, and hands it to
DeepSpeed as the state that it would itself have saved.

Nothing is converted or written, and no rank holds more than its own share and one whole parameter
at a time; from ZeRO 1 and 2 to ZeRO 1 and 2 a rank reads little more than its share from the disk.
DeepSpeed's own way (ds_to_universal) copies the checkpoint, and in 0.19 gives every group the
weight decay of the first when it comes from ZeRO 3.
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
from allinone.engine.checkpoint.manager import STATE, CheckpointError
from allinone.engine.checkpoint.zero_reader import STAND_INS, Key, SavedState
from allinone.engine.distributed import topology
from allinone.model.weights_file import read_pickle

KEYS: tuple[Key, ...] = ("weight", "exp_avg", "exp_avg_sq")


def describe(
    module: nn.Module,
    groups: list[dict[str, Any]],
    config: Mapping[str, Any],
    layout: topology.Layout,
) -> dict[str, Any]:
    """JSON-able layout of a run, as layout.json of its checkpoints: who holds what of which
    parameter."""
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
    """In words what is not as it was written; '' if DeepSpeed's own loading fits."""
    words = {
        "data_ranks": "data ranks",
        "stage": "ZeRO",
        "tensor_parallel": "tensor parallel",
        "offload": "offload",
        "precision": "precision",
    }
    return ", ".join(
        f"{word} {before[name]} → {now[name]}"
        for name, word in words.items()
        if before[name] != now[name]
    )


@dataclass
class _Cut:
    """A stretch of a flat tensor that this rank holds: `count` numbers of a parameter from `start`
    on, at `offset`."""

    parameter: nn.Parameter
    start: int
    offset: int
    count: int


def load(
    engine: Any, module: nn.Module, folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Restore weights, moments and step count from a verified checkpoint of another layout.

    Raises CheckpointError for what cannot move: NVMe offload, whose state lies in DeepSpeed's swap
    files, and another precision.
    """
    if "nvme" in (before["offload"], now["offload"]):
        raise CheckpointError(
            f"{folder} cannot move ({difference(before, now)}): with NVMe offload the optimizer's"
            " state lies in DeepSpeed's swap files. Continue at the layout that wrote it, or begin"
            f" a new run with --init-from {folder / 'weights'}"
        )
    if before["precision"] != now["precision"]:
        raise CheckpointError(
            f"{folder} was written in {before['precision']}, this run computes in"
            f" {now['precision']}; use the same"
        )
    saved, names = (
        SavedState(folder),
        {parameter: name for name, parameter in module.named_parameters()},
    )
    optimizer, layout = engine.optimizer, topology.current()

    def fill(flat: Tensor, cuts: list[_Cut], key: Key) -> Tensor:
        """The new content of a flat tensor of this rank; padding is 0."""
        filled = torch.zeros_like(flat, dtype=torch.float32, requires_grad=False)
        for cut in cuts:
            whole = saved.whole(names[cut.parameter], key)
            division = topology.division_of(cut.parameter)
            part = (
                whole
                if division is None
                else division.part(whole, layout.tensor_rank, layout.tensor)
            )
            filled.view(-1)[cut.offset : cut.offset + cut.count] = part.flatten()[
                cut.start : cut.start + cut.count
            ]
        return filled

    flats: list[Tensor] = []
    state: dict[int, dict[str, Tensor]] = {}
    for number, (flat, cuts) in enumerate(_flats_of(optimizer, now["stage"], layout)):
        weight, *moments = (fill(flat, cuts, key) for key in KEYS)
        flats.append(weight)
        state[number] = {
            "step": torch.tensor(saved.step),
            **dict(zip(KEYS[1:], moments, strict=True)),
        }
    _hand_over(optimizer, now["stage"], flats, state, layout)


def load_kept_in_memory(engine: Any, folder: Path) -> None:
    """The rest of a checkpoint with NVMe offload. DeepSpeed 0.19.8 copies the swap files back, but
    reads only the weights of them, and leaves out what it saved beside them: groups too small for
    the disk (norms, biases), and AdamW's count of updates. A loss scale (fp16) is found anew.
    """
    layout, optimizer = topology.current(), engine.optimizer
    (file,) = (folder / STATE).glob(
        f"*zero_pp_rank_{layout.data_rank}_mp_rank_{layout.tensor_rank:02d}_optim_states.pt"
    )
    saved = read_pickle(file, STAND_INS)[0]["optimizer_state_dict"]
    states, masters = saved["optimizer_state_dict"]["state"], saved["fp32_flat_groups"]
    optimizer.checkpoint_event_prologue()
    for number, (flat, master) in enumerate(
        zip(optimizer.fp32_partitioned_groups_flat, masters, strict=True)
    ):
        size = optimizer.fp16_partitioned_groups_flat[number].numel()
        # what is empty lies in a swap file, and is read below because AdamW's state now has a
        # tensor for it
        optimizer.optimizer.state[flat] = {
            name: value.clone() if value.numel() else torch.empty(size, dtype=flat.dtype)
            for name, value in states[number].items()
        }
        if master.numel():
            flat.data.copy_(master)
    optimizer.reset_swap_buffers()
    optimizer.checkpoint_event_epilogue()


def _flats_of(
    optimizer: Any, stage: int, layout: topology.Layout
) -> Iterator[tuple[Tensor, list[_Cut]]]:
    """Every fp32 tensor that this rank's AdamW updates, and what of which parameter lies in it."""
    if stage == 3:
        for flat, parameters in zip(
            optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True
        ):
            yield flat, list(_cuts_per_parameter(parameters, layout))
    elif stage in (1, 2):
        for flat, parameters in zip(
            optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True
        ):
            yield (
                flat,
                list(_cuts_of_group(parameters, layout.data_rank * flat.numel(), flat.numel())),
            )
    else:
        for parameter in _parameters(optimizer):
            yield parameter, [_Cut(parameter, 0, 0, parameter.numel())]


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    """Of ZeRO 0, in the order of the optimizer's groups; in 16 bits DeepSpeed's optimizer holds
    copies in fp32 beside them."""
    groups = getattr(optimizer, "fp16_groups", None) or [
        group["params"] for group in optimizer.param_groups
    ]
    return [parameter for group in groups for parameter in group]


def _cuts_of_group(parameters: list[nn.Parameter], first: int, size: int) -> Iterator[_Cut]:
    """Of parameters laid end to end, what lies in [first, first + size)."""
    begin = 0
    for parameter in parameters:
        end = begin + parameter.numel()
        start, stop = max(begin, first), min(end, first + size)
        if start < stop:
            yield _Cut(parameter, start - begin, start - first, stop - start)
        begin = end


def _cuts_per_parameter(parameters: list[nn.Parameter], layout: topology.Layout) -> Iterator[_Cut]:
    """Of every parameter, the piece of this data rank."""
    offset = 0
    for parameter in parameters:
        numel: int = getattr(parameter, "ds_numel")  # noqa: B009 - DeepSpeed's
        piece = math.ceil(numel / layout.data_world)
        start = min(layout.data_rank * piece, numel)
        yield _Cut(parameter, start, offset, min(piece, numel - start))
        offset += piece


def _hand_over(
    optimizer: Any,
    stage: int,
    flats: list[Tensor],
    state: dict[int, dict[str, Tensor]],
    layout: topology.Layout,
) -> None:
    """Through DeepSpeed's own state_dict and load_state_dict, at the layout that it has now; then
    the weights that the model computes with."""
    content = optimizer.state_dict()
    if stage == 3:
        content["optimizer_state_dict"]["state"], content["fp32_flat_groups"] = state, flats
        optimizer.checkpoint_event_prologue()
        optimizer.load_state_dict([content] * layout.data_world)
        optimizer.checkpoint_event_epilogue()
    elif stage in (1, 2):
        content["base_optimizer_state"]["state"], content["single_partition_of_fp32_groups"] = (
            state,
            flats,
        )
        optimizer.load_state_dict(
            [content] * layout.data_world, load_optimizer_states=True, load_from_fp32_weights=True
        )
        optimizer.update_lp_params()
    else:
        if "fp32_groups" in content:
            left = iter(flats)
            content["optimizer_state_dict"]["state"] = state
            content["fp32_groups"] = [
                [next(left) for _ in group] for group in content["fp32_groups"]
            ]
        else:
            content["state"] = state
        optimizer.load_state_dict(content)
        with torch.no_grad():
            for parameter, flat in zip(_parameters(optimizer), flats, strict=True):
                parameter.copy_(flat)
