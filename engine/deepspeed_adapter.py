"""Everything private in DeepSpeed, torch and megatron-core that the engine depends on.

Each function names the version whose source it was checked against. An upgrade of one of these
libraries starts here: read the named source again, then run tests/engine. Nothing else in the
project may use a private attribute of these libraries.

Letters: N elements of a parameter, W data-parallel ranks.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

CHECKED_VERSION = "0.19.8"
"""Version of DeepSpeed whose source `order_on_device` was checked against."""

# --- starting -------------------------------------------------------------------------------------


def skip_inference_op_on_cpu() -> None:
    """Tell DeepSpeed that the shared-memory op cannot be built.

    On a CPU it would compile a C++ extension for minutes that only inference uses.
    deepspeed 0.19.8, ops/__init__.py: `__compatible_ops__` is asked before each build.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def drop_known_warnings() -> None:
    """Leave out a warning that says nothing: "**** You are using ZeRO with an untested optimizer".

    ds_configs/ allows it (zero_allow_untested_optimizer), and tests compare the optimizer with
    torch's. deepspeed 0.19.8, runtime/engine.py: `_configure_zero_optimizer`'s caller logs it to
    the logger "DeepSpeed".
    """
    from deepspeed.utils import logger

    if _is_wanted not in logger.filters:
        logger.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return "ZeRO with an untested optimizer" not in record.getMessage()


def import_muon() -> None:
    """Import DeepSpeed's Muon without torch's compiler.

    deepspeed.initialize imports Muon only to check the optimizer's type, and decorates its
    functions with torch.compile: 4.5 s and 116 MiB per rank. deepspeed 0.19.8,
    runtime/compiler.py: `dummy_decorator` is what it uses itself where torch has no compiler.
    """
    from deepspeed.runtime import compiler

    compile_decorator = compiler.compile
    compiler.compile = lambda: compiler.dummy_decorator
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_decorator


def allow_minimum_loss_scale(engine: Any) -> None:
    """Keep DeepSpeed from ending an fp16 run whose loss scale has reached its minimum.

    --max-skipped decides how many steps may be skipped. deepspeed 0.19.8,
    runtime/fp16/loss_scaler.py: `DynamicLossScaler.raise_error_at_min_scale`.
    """
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if getattr(scaler, "raise_error_at_min_scale", False):
        scaler.raise_error_at_min_scale = False  # type: ignore[union-attr]


def set_timeout_of_new_groups(timeout: timedelta) -> None:
    """Set the time-out of NCCL groups that are created without one.

    DeepSpeed passes none, and NCCL's own ten minutes would end the process before the watchdog can
    name the rank that hangs. torch 2.13, distributed/distributed_c10d.py: `_get_default_timeout`
    reads `default_pg_nccl_timeout`.
    """
    torch.distributed.distributed_c10d.default_pg_nccl_timeout = timeout


def rendezvous_store() -> Any:
    """A client of the key-value store that all ranks share.

    Each call returns a client of its own, because calls of one client wait for each other. torch
    2.13, distributed/distributed_c10d.py: `_get_default_store`.
    """
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store().clone()  # type: ignore[attr-defined]  # not in torch's stub


def set_progress(engine: Any, step: int, samples: int) -> None:
    """Set DeepSpeed's counters after a checkpoint was loaded without load_checkpoint.

    deepspeed 0.19.8, runtime/engine.py: `global_steps` and `global_samples`.

    Args:
        engine: DeepSpeed's engine.
        step: Finished optimizer steps.
        samples: Clips consumed.
    """
    engine.global_steps, engine.global_samples = step, samples


def count_collective_bytes(
    names: Sequence[str], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace collectives of DeepSpeed's communication backend.

    DeepSpeed's own communication logger synchronises the device at every call. deepspeed 0.19.8,
    comm/comm.py: every collective goes through the methods of the module's `cdb`.

    Args:
        names: Methods to replace where the backend has them.
        wrap: Gets the original method, returns its replacement. A replacement of an earlier call is
            undone first.
    """
    from deepspeed.comm import comm

    for name in names:
        if comm.cdb is not None and hasattr(comm.cdb, name):
            method = getattr(comm.cdb, name)
            # a second run in this process must not count through the first one's wrapper
            original = getattr(method, "original", method)
            replacement = wrap(original)
            replacement.original = original  # type: ignore[attr-defined]
            setattr(comm.cdb, name, replacement)


# --- one step -------------------------------------------------------------------------------------


def order_on_device(engine: Any) -> None:
    """Replace two waits of the host in every step of ZeRO 1 and 2 by orders for the device.

    deepspeed 0.19.8, runtime/zero/stage_1_and_2.py:

    - With overlap_comm, `independent_gradient_partition_epilogue` stops the host at the end of each
      backward pass until the device is idle, because the gradients that it then reads and frees are
      reduced on another stream. It is enough that the current stream waits for that one. Between
      two buckets, `average_tensor` already does so.
    - `get_grad_norm_direct` copies -1 from the host to mark a norm that is not finite, once per
      parameter group.

    Configurations in which DeepSpeed takes other ways through these functions keep its waits: with
    offload, without contiguous_gradients, with use_multi_rank_bucket_allreduce off, or with the
    communication logger, which measures time by waiting. Another version of DeepSpeed keeps them
    too, and a warning says so.
    """
    import deepspeed

    optimizer = engine.optimizer
    if type(optimizer).__name__ != "DeepSpeedZeroOptimizer":
        return
    if deepspeed.__version__ != CHECKED_VERSION:
        log.warning(
            "DeepSpeed %s makes the host wait for the device in every step; this is avoided with"
            " %s only",
            deepspeed.__version__,
            CHECKED_VERSION,
        )
        return
    from deepspeed.comm import comm
    from deepspeed.runtime.zero import stage_1_and_2

    stage_1_and_2.mask_nan_or_inf_with_val_inplace = _mark_not_finite
    streams = optimizer.overlap_comm and optimizer.reduction_stream is not None
    buckets = optimizer.contiguous_gradients and optimizer.use_multi_rank_bucket_allreduce
    logged = comm.comms_logger is not None and comm.comms_logger.enabled
    if streams and buckets and not optimizer.cpu_offload and not logged:
        epilogue = optimizer.independent_gradient_partition_epilogue
        optimizer.independent_gradient_partition_epilogue = functools.partial(
            _without_host_wait, optimizer, epilogue
        )


def _without_host_wait(optimizer: Any, epilogue: Callable[[], None]) -> None:
    """Run the end of a backward pass, in which the current stream waits instead of the host."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()

    def wait_for_reductions() -> None:
        accelerator.current_stream().wait_stream(optimizer.reduction_stream)

    # on the instance, in front of the method of its class
    accelerator.synchronize = wait_for_reductions
    try:
        epilogue()
    finally:
        del accelerator.synchronize


def _mark_not_finite(input: Tensor, device: Any = None, val: float = -1.0) -> None:  # noqa: A002 - DeepSpeed's name
    """DeepSpeed's mask_nan_or_inf_with_val_inplace without a copy from the host."""
    input.masked_fill_(~torch.isfinite(input), val)


def partitioned_gradient_norm(engine: Any) -> Tensor:
    """Norm of the complete gradient under ZeRO 1 and 2, a float32 scalar on the device.

    It is reduced over all partitions before the first partition is updated. deepspeed 0.19.8,
    runtime/zero/stage_1_and_2.py: `step` assigns `_global_grad_norm` first.
    """
    return engine.optimizer._global_grad_norm


def step_overflowed(engine: Any) -> bool:
    """Whether DeepSpeed skipped the last step because of a non-finite gradient.

    deepspeed 0.19.8: `overflow` of the optimizers in runtime/fp16 and runtime/zero.
    """
    return bool(getattr(engine.optimizer, "overflow", False))


def global_gradient_norm(engine: Any) -> Tensor | float | None:
    """Norm of the last step's complete gradient before clipping; None where DeepSpeed has none.

    deepspeed 0.19.8, runtime/fp16/unfused_optimizer.py: ZeRO 0 in fp16 reports the norm of the
    scaled gradient, so it is divided by `loss_scale_config.cur_scale` here.
    """
    norm = engine.get_global_grad_norm()
    if norm is not None and type(engine.optimizer).__name__ == "FP16_UnfusedOptimizer":
        norm = norm / engine.optimizer.loss_scale_config.cur_scale
    return norm


# --- parameters and their fp32 weights ------------------------------------------------------------


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO keeps the fp32 weight of this parameter in partitions.

    deepspeed 0.19.8: `_hp_mapping` (utils/mixed_precision_linkage.py, ZeRO 1 and 2), `ds_id`
    (runtime/zero/partition_parameters.py, ZeRO 3).
    """
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter before ZeRO 3 partitioned it.

    deepspeed 0.19.8, runtime/zero/partition_parameters.py: `ds_shape`.
    """
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def full_numel(parameter: nn.Parameter) -> int:
    """Number of elements of a parameter before ZeRO 3 partitioned it.

    deepspeed 0.19.8, runtime/zero/partition_parameters.py: `ds_numel`.
    """
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def full_fp32_parameter(parameter: nn.Parameter) -> Tensor | None:
    """The fp32 weight of a partitioned parameter, gathered over all ranks; collective.

    deepspeed 0.19.8, utils/tensor_fragment.py: `safe_get_full_fp32_param`. ZeRO 3 keeps no fp32
    copy of a frozen parameter: the parameter itself is gathered.
    """
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if hasattr(parameter, "ds_id") and not parameter.requires_grad:
        with zero.GatheredParameters([parameter]):
            # inside the context: at its exit the parameter is partitioned again
            return parameter.detach().clone()
    return safe_get_full_fp32_param(parameter)


def fp32_masters(optimizer: Any) -> dict[nn.Parameter, Tensor]:
    """fp32 copies that DeepSpeed's 16-bit optimizers of ZeRO 0 keep; empty for every other one.

    deepspeed 0.19.8, runtime/fp16/unfused_optimizer.py: `fp16_groups` and `fp32_groups` run in
    parallel, in bf16 too.
    """
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: full for group in pairs for low, full in zip(*group, strict=True)}


def ordered_parameters(optimizer: Any) -> list[nn.Parameter]:
    """Model parameters under ZeRO 0 in the order of the optimizer's groups.

    deepspeed 0.19.8: in 16 bits `fp16_groups` holds them, and `param_groups` the fp32 copies.
    """
    groups = getattr(optimizer, "fp16_groups", None) or [
        group["params"] for group in optimizer.param_groups
    ]
    return [parameter for group in groups for parameter in group]


@dataclass(frozen=True)
class ParameterSlice:
    """A range of one parameter inside a flat fp32 tensor of this rank."""

    parameter: nn.Parameter
    start: int
    """First element of the flattened parameter."""
    offset: int
    """Position of that element in the flat tensor."""
    count: int
    """Number of elements."""


def flat_partitions(
    optimizer: Any, stage: int, rank: int, world: int
) -> Iterable[tuple[Tensor, list[ParameterSlice]]]:
    """Every fp32 tensor that this rank's AdamW updates, and which parameters it holds.

    deepspeed 0.19.8: ZeRO 3 (runtime/zero/stage3.py) cuts every parameter into W pieces of
    ceil(N / W) and concatenates this rank's pieces; ZeRO 1 and 2 (stage_1_and_2.py) concatenate the
    parameters of a group and cut the result into W pieces; ZeRO 0 cuts nothing.

    Args:
        optimizer: `engine.optimizer`.
        stage: ZeRO stage.
        rank: Data-parallel rank.
        world: Number of data-parallel ranks, W.

    Yields:
        (flat tensor, its slices in order); elements in no slice are padding.
    """
    if stage == 3:
        flats, groups = optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups
        for flat, parameters in zip(flats, groups, strict=True):
            yield flat, _slices_per_parameter(parameters, rank, world)
    elif stage in (1, 2):
        flats, groups = optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups
        for flat, parameters in zip(flats, groups, strict=True):
            yield flat, _slices_of_group(parameters, rank * flat.numel(), flat.numel())
    else:
        for parameter in ordered_parameters(optimizer):
            yield parameter, [ParameterSlice(parameter, 0, 0, parameter.numel())]


def _slices_of_group(
    parameters: Iterable[nn.Parameter], first: int, size: int
) -> list[ParameterSlice]:
    """Slices of concatenated parameters that fall into a range.

    Args:
        parameters: A group, in order.
        first: First element of the range.
        size: Its number of elements.
    """
    slices, begin = [], 0
    for parameter in parameters:
        end = begin + parameter.numel()
        start, stop = max(begin, first), min(end, first + size)
        if start < stop:
            slices.append(ParameterSlice(parameter, start - begin, start - first, stop - start))
        begin = end
    return slices


def _slices_per_parameter(
    parameters: Iterable[nn.Parameter], rank: int, world: int
) -> list[ParameterSlice]:
    """This rank's piece of every parameter; the last rank's piece may be shorter or empty.

    Args:
        parameters: A group, in order.
        rank: Data-parallel rank.
        world: Number of data-parallel ranks, W.
    """
    slices, offset = [], 0
    for parameter in parameters:
        numel = full_numel(parameter)
        piece = math.ceil(numel / world)
        start = min(rank * piece, numel)
        slices.append(ParameterSlice(parameter, start, offset, min(piece, numel - start)))
        offset += piece
    return slices


# --- checkpoints ----------------------------------------------------------------------------------


def wrap_state_writer(engine: Any, write: Callable[[Callable[..., Any], Any, str], None]) -> None:
    """Route every file that save_checkpoint writes through a function.

    save_checkpoint holds barriers after its writes: a rank that raised in between would leave the
    others waiting until their time-out, so `write` should remember an error instead. deepspeed
    0.19.8, runtime/engine.py: every write is a call of `checkpoint_engine.save(state_dict, path)`.

    Args:
        engine: DeepSpeed's engine.
        write: Called with (original save, state_dict, path).
    """
    save = engine.checkpoint_engine.save
    engine.checkpoint_engine.save = lambda state_dict, path: write(save, state_dict, path)


def omit_recovery_script(engine: Any) -> None:
    """Keep zero_to_fp32.py out of checkpoints: the folder weights/ serves its purpose.

    deepspeed 0.19.8, runtime/engine.py: `_copy_recovery_script`.
    """
    engine._copy_recovery_script = lambda save_path: None


def load_checkpoint(engine: Any, folder: str, tag: str, classes: Sequence[str]) -> bool:
    """Let DeepSpeed restore its own files, without running what their pickles name. Collective.

    deepspeed 0.19.8 reads every file with torch.load(..., weights_only=False), in
    runtime/checkpoint_engine/torch_checkpoint_engine.py and, for offloaded state, in
    runtime/base_optimizer.py. torch 2.6 to 2.13, torch/serialization.py: `load` lets
    TORCH_FORCE_WEIGHTS_ONLY_LOAD overrule that argument.

    Args:
        engine: DeepSpeed's engine.
        folder: The checkpoint.
        tag: Name of the folder in it that holds DeepSpeed's files.
        classes: Full names of the classes that the files may hold, besides tensors and plain
            containers.

    Returns:
        Whether DeepSpeed found its files.

    Raises:
        pickle.UnpicklingError: A file holds anything else.
    """
    with _only_weights(classes):
        path, _ = engine.load_checkpoint(folder, tag=tag)
    return path is not None


@contextlib.contextmanager
def _only_weights(classes: Sequence[str]) -> Iterator[None]:
    """Make every torch.load of this block use the restricted unpickler."""
    force, allow = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, allow)}
    parts = [name.rpartition(".") for name in classes]
    made = [getattr(importlib.import_module(module), name) for module, _, name in parts]
    os.environ[force] = "1"
    try:
        with torch.serialization.safe_globals(made):
            yield
    finally:
        del os.environ[force]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def load_partitions(
    optimizer: Any,
    stage: int,
    flats: Sequence[Tensor],
    state: Mapping[int, Mapping[str, Tensor]],
    world: int,
) -> None:
    """Restore weights and moments through the optimizer's own load_state_dict.

    deepspeed 0.19.8: the keys are those of `state_dict` in runtime/zero/stage3.py,
    stage_1_and_2.py and runtime/fp16/unfused_optimizer.py. `load_state_dict` of ZeRO reads the
    entry of this rank from a list of all W ranks' states, so the same state is given W times.

    Args:
        optimizer: `engine.optimizer`.
        stage: ZeRO stage.
        flats: New content of the tensors of `flat_partitions`, in their order.
        state: AdamW's state per tensor: step, exp_avg, exp_avg_sq.
        world: Number of data-parallel ranks, W.
    """
    content = optimizer.state_dict()
    if stage == 3:
        content["optimizer_state_dict"]["state"] = state
        content["fp32_flat_groups"] = flats
        optimizer.checkpoint_event_prologue()
        optimizer.load_state_dict([content] * world)
        optimizer.checkpoint_event_epilogue()
    elif stage in (1, 2):
        content["base_optimizer_state"]["state"] = state
        content["single_partition_of_fp32_groups"] = flats
        optimizer.load_state_dict(
            [content] * world, load_optimizer_states=True, load_from_fp32_weights=True
        )
        # the forward pass uses the 16-bit weights: copy the restored fp32 ones into them
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
        # the model's own weights are not in the optimizer's state at ZeRO 0
        with torch.no_grad():
            for parameter, flat in zip(ordered_parameters(optimizer), flats, strict=True):
                parameter.copy_(flat)


def copy_fp32_to_model(optimizer: Any, stage: int) -> None:
    """Copy changed fp32 weights into the weights that the forward pass uses; collective.

    deepspeed 0.19.8: what `step` and `load_state_dict` do after the update. ZeRO 3
    (runtime/zero/stage3.py) gathers small parameters once and keeps them, so these are partitioned
    before and gathered again after it.

    Args:
        optimizer: `engine.optimizer`.
        stage: ZeRO stage.
    """
    if stage == 3:
        optimizer.checkpoint_event_prologue()
        for number, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[number].data.copy_(flat.data)
            optimizer._unflatten_partitioned_parameters(number)
        optimizer.checkpoint_event_epilogue()
    elif stage in (1, 2):
        optimizer.update_lp_params()
    else:
        for parameter, master in fp32_masters(optimizer).items():
            parameter.data.copy_(master.data)


def load_state_kept_in_memory(
    optimizer: Any, states: Mapping[int, Mapping[str, Tensor]], masters: Sequence[Tensor]
) -> None:
    """Restore what NVMe offload keeps in memory: groups too small for the disk, and step counts.

    deepspeed 0.19.8, runtime/zero/stage3.py: load_checkpoint copies the swap files back but reads
    only the weights from them, and ignores what was saved with them.

    Args:
        optimizer: `engine.optimizer` of ZeRO 3.
        states: AdamW's state per flat tensor, as saved; an empty tensor is in a swap file.
        masters: fp32 flat tensors, as saved; an empty one is in a swap file.
    """
    optimizer.checkpoint_event_prologue()
    flats = optimizer.fp32_partitioned_groups_flat
    for number, (flat, master) in enumerate(zip(flats, masters, strict=True)):
        size = optimizer.fp16_partitioned_groups_flat[number].numel()
        # an empty tensor is in a swap file; DeepSpeed reads it in once AdamW's state has a tensor
        # of the right size for it
        optimizer.optimizer.state[flat] = {
            name: value.clone() if value.numel() else torch.empty(size, dtype=flat.dtype)
            for name, value in states[number].items()
        }
        if master.numel():
            flat.data.copy_(master)
    optimizer.reset_swap_buffers()
    optimizer.checkpoint_event_epilogue()


# --- tensor parallelism ---------------------------------------------------------------------------


def tensor_parallel_partition(parameter: nn.Parameter) -> tuple[int, int] | None:
    """(dimension, stride) along which megatron-core cut a parameter; None for a replicated one.

    megatron-core 0.16.1, core/tensor_parallel/layers.py: `set_tensor_model_parallel_attributes`.
    """
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    return getattr(parameter, "partition_dim"), getattr(parameter, "partition_stride")  # noqa: B009
