"""DeepSpeed internals that checkpoints need; all of them were read in DeepSpeed 0.19.8.

Public DeepSpeed functions save and load a checkpoint at one layout only. Gathering fp32 weights
without a copy on the disk, and loading state that another layout wrote, need the attributes below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Read in 0.19.8, runtime/engine.py (_save_checkpoint, _save_zero_checkpoint): DeepSpeed pickles
# objects of these classes into its files; the restricted unpickler replaces them by stand-ins.
PICKLED_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def full_parameter(parameter: nn.Parameter, masters: dict[nn.Parameter, Tensor]) -> Tensor:
    """A parameter in full shape over all data ranks, in fp32 where DeepSpeed keeps fp32 weights.

    Collective over the data ranks for a partitioned parameter.

    Args:
        parameter: A parameter of the wrapped module.
        masters: Result of `fp32_masters`.
    """
    full = masters.get(parameter)
    # Stages 1 and 2 mark parameters by _hp_mapping (utils/tensor_fragment.py), stage 3 by ds_id
    # in runtime/zero/partition_parameters.py.
    if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
        full = _gather(parameter)
    value = (parameter if full is None else full).detach()
    return value.reshape(getattr(parameter, "ds_shape", parameter.shape))


def _gather(parameter: nn.Parameter) -> Tensor | None:
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    # stage 3 keeps no fp32 copy of frozen parameters
    if hasattr(parameter, "ds_id") and not parameter.requires_grad:
        with zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return safe_get_full_fp32_param(parameter)


def fp32_masters(optimizer: Any) -> dict[nn.Parameter, Tensor]:
    """Parameter → fp32 master weight at ZeRO 0 in 16 bits; empty for all other optimizers.

    Read in 0.19.8, runtime/bf16_optimizer.py and runtime/fp16/unfused_optimizer.py.
    """
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: full for group in pairs for low, full in zip(*group, strict=True)}


def intercept_writes(engine: Any, write: Callable[[Callable[[], None]], None]) -> None:
    """Run every write of engine.save_checkpoint through `write`, and skip zero_to_fp32.py.

    DeepSpeed copies that script into each checkpoint; `weights/` replaces it. Read in 0.19.8,
    runtime/engine.py (checkpoint_engine.save, _copy_recovery_script).
    """
    original = engine.checkpoint_engine.save

    def save(state_dict: Any, path: str) -> None:
        write(lambda: original(state_dict, path))

    engine.checkpoint_engine.save = save
    engine._copy_recovery_script = lambda save_path: None


def flat_groups(optimizer: Any, stage: int) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
    """Each fp32 tensor that this rank's AdamW updates, with the parameters stored in it.

    Read in 0.19.8, runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py.

    Args:
        optimizer: DeepSpeed's wrapper, or at ZeRO 0 in fp32 the optimizer itself.
        stage: ZeRO stage.
    """
    if stage == 3:
        flats, groups = optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups
        yield from zip(flats, groups, strict=True)
    elif stage in (1, 2):
        flats, groups = optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups
        yield from zip(flats, groups, strict=True)
    else:
        for parameter in _replicated_parameters(optimizer):
            yield parameter, [parameter]


def _replicated_parameters(optimizer: Any) -> list[nn.Parameter]:
    """Parameters at ZeRO 0 in the order of the optimizer's groups.

    In 16 bits DeepSpeed's wrapper holds them in fp16_groups, next to their fp32 copies.
    """
    groups = getattr(optimizer, "fp16_groups", None) or [
        group["params"] for group in optimizer.param_groups
    ]
    return [parameter for group in groups for parameter in group]


def load_flat_state(
    optimizer: Any,
    stage: int,
    flats: list[Tensor],
    state: dict[int, dict[str, Tensor]],
    data_world: int,
) -> None:
    """Load optimizer state through DeepSpeed's own state_dict and load_state_dict, as if this
    layout had written it; then refresh the weights that the model computes with.

    Args:
        optimizer: As in `flat_groups`.
        stage: ZeRO stage.
        flats: New fp32 weights of this rank, one tensor per item of `flat_groups`.
        state: AdamW's state, number of the item → name → tensor.
        data_world: Number of data ranks.
    """
    content = optimizer.state_dict()
    if stage == 3:
        content["optimizer_state_dict"]["state"] = state
        content["fp32_flat_groups"] = flats
        optimizer.checkpoint_event_prologue()
        # load_state_dict picks its own rank's entry of a list over all data ranks
        optimizer.load_state_dict([content] * data_world)
        optimizer.checkpoint_event_epilogue()
    elif stage in (1, 2):
        content["base_optimizer_state"]["state"] = state
        content["single_partition_of_fp32_groups"] = flats
        optimizer.load_state_dict(
            [content] * data_world, load_optimizer_states=True, load_from_fp32_weights=True
        )
        optimizer.update_lp_params()
    else:
        if "fp32_groups" in content:  # 16 bits: weights and state in DeepSpeed's wrapper
            remaining = iter(flats)
            content["optimizer_state_dict"]["state"] = state
            content["fp32_groups"] = [
                [next(remaining) for _ in group] for group in content["fp32_groups"]
            ]
        else:
            content["state"] = state
        optimizer.load_state_dict(content)
        with torch.no_grad():
            for parameter, flat in zip(_replicated_parameters(optimizer), flats, strict=True):
                parameter.copy_(flat)


def restore_swapped_state(optimizer: Any, saved: dict[str, Any]) -> None:
    """Load what DeepSpeed 0.19.8 omits when it loads a checkpoint with NVMe offload.

    It copies the swap files back but reads only the weights from them, and skips what it saved in
    memory: groups too small for the disk (norms, biases) and AdamW's step count. The loss scale of
    fp16 is not restored; it adapts again.

    Args:
        optimizer: DeepSpeed's stage 3 wrapper after load_checkpoint.
        saved: This rank's `optimizer_state_dict` as read from its *_optim_states.pt.
    """
    states, masters = saved["optimizer_state_dict"]["state"], saved["fp32_flat_groups"]
    optimizer.checkpoint_event_prologue()
    flats = optimizer.fp32_partitioned_groups_flat
    for number, (flat, master) in enumerate(zip(flats, masters, strict=True)):
        size = optimizer.fp16_partitioned_groups_flat[number].numel()
        # An empty tensor was saved in a swap file. DeepSpeed reads it below, because AdamW's state
        # now holds a tensor of its size.
        optimizer.optimizer.state[flat] = {
            name: value.clone() if value.numel() else torch.empty(size, dtype=flat.dtype)
            for name, value in states[number].items()
        }
        if master.numel():
            flat.data.copy_(master)
    optimizer.reset_swap_buffers()
    optimizer.checkpoint_event_epilogue()
