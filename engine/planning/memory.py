"""Memory of a rank for weights, gradients and optimizer state, and its collectives, by ZeRO stage.

Activations are estimated in model/activations.py.

The formulas were read in DeepSpeed 0.19.8 (runtime/zero/stage_1_and_2.py, stage3.py,
fp16/unfused_optimizer.py) for this project's ds_configs/ and fused AdamW, and are compared with
live tensors and collectives by tests/engine/planning/test_memory.py and
tests/benchmarks/plan_check.py. docs/planning.md derives them.

Letters: P parameters, N ranks, s bytes of a weight, b bucket elements, S activations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from allinone.engine import ds_config
from allinone.engine.optim.adamw import parameter_groups

Groups = Sequence[Sequence[int]]
"""Number of elements of every parameter, by optimizer group, in the order of the module."""

ALL_REDUCE_CHUNK = 500_000_000
"""Elements that DeepSpeed flattens per all-reduce without ZeRO."""
CONTEXT_BYTES = 1.5 * 2**30
"""Reserved on a GPU for the CUDA context, cuBLAS workspace and NCCL buffers: an assumption, not
measured."""
FRAGMENTATION = 0.05
"""Share of all tensors reserved for fragmentation of torch's caching allocator: an assumption, not
measured."""


def groups_of(module: nn.Module) -> list[list[int]]:
    """Parameter sizes by optimizer group; the module may be on the meta device."""
    # the groups follow from the parameters' dimensions: any weight decay gives the same ones
    return [
        [parameter.numel() for parameter in group["params"]]
        for group in parameter_groups(module, 0.01)
    ]


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps for one micro-batch (model/activations.py)."""

    total: float = 0.0
    last_pass: float = 0.0
    """Of these, those of the pass that runs last in forward and is freed first in backward."""
    working: float = 0.0
    """Needed in addition while one block's backward pass runs."""


@dataclass(frozen=True)
class Zero:
    """The part of a DeepSpeed configuration that determines memory and communication."""

    stage: int
    precision: str
    """fp32, bf16 or fp16."""
    bucket: int = 50_000_000
    """Elements of a reduction bucket, b."""
    overlap: bool = True
    """Reduce during the backward pass; stages 1 and 2 then hold two buckets."""
    persistence: int = 100_000
    """Stage 3 does not partition parameters below this many elements."""
    offload: bool = False
    """fp32 weights, moments and the update are on the host."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Zero:
        """From the content of a DeepSpeed JSON file."""
        block = config.get("zero_optimization", {})
        device = block.get("offload_optimizer", {}).get("device", "none")
        return cls(
            stage=ds_config.stage(dict(config)),
            precision=ds_config.precision(dict(config)),
            bucket=int(block.get("reduce_bucket_size", cls.bucket)),
            overlap=bool(block.get("overlap_comm", cls.overlap)),
            persistence=int(block.get("stage3_param_persistence_threshold", cls.persistence)),
            offload=device != "none",
        )

    @property
    def element(self) -> int:
        """Bytes of a weight, s."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True)
class Parts:
    """Bytes of one rank at one moment."""

    weights: float
    gradients: float
    optimizer: float
    """fp32 master weights, AdamW's two moments and, with --ema, the average of the weights."""
    buckets: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.buckets


@dataclass(frozen=True)
class Memory:
    """Bytes of model state on the rank that needs most."""

    between: Parts
    """Between two steps."""
    backward: Parts
    """In the backward pass, when gradients take most memory."""
    update: Parts
    """While AdamW runs on the last optimizer group."""
    start: float
    """When the backward pass begins, without activations."""
    pending: float
    """Gradients of finished passes: several passes use the model, and autograd keeps a parameter's
    gradient until its last use."""
    reduce: float
    """Peak of the reductions at the end of the backward pass, with flattened copies."""
    step: float
    """Peak of the optimizer step, with the copies that norm and conversion make."""
    host: float = 0.0
    """On the host, with offloading."""

    def peak(self, activations: float = 0.0, last_pass: float = 0.0, working: float = 0.0) -> float:
        """Highest number of bytes during a step. Activations are freed before the optimizer steps.

        Args:
            activations: Bytes saved by all passes of a micro-batch.
            last_pass: Of these, those of the pass that runs last and is therefore freed first.
            working: Additional bytes for the backward pass of one block.
        """
        # a block's backward pass needs most either at the first block, when all activations exist,
        # or after the last pass, when its activations are freed but its gradients are not final
        in_backward = max(
            self.start + activations + working,
            self.start + activations - last_pass + self.pending + working,
        )
        return max(in_backward, self.reduce, self.step)


def padded(elements: int, world: int) -> int:
    """Elements of a group after DeepSpeed's padding to a multiple of two per rank."""
    # nccl_start_alignment_factor = 2 in stage_1_and_2.py: two 16-bit numbers are 4 bytes
    return math.ceil(elements / (2 * world)) * 2 * world


@functools.lru_cache(64)
def owned(groups: tuple[tuple[int, ...], ...], world: int) -> tuple[list[set[int]], int]:
    """Parameters that overlap with each rank's partitions at stages 1 and 2.

    A rank keeps the full gradient of each of them, however small the overlap is.

    Args:
        groups: As `Groups`, hashable.
        world: Number of ranks.

    Returns:
        Per rank, the numbers of these parameters over all groups; and the number of elements of the
        largest piece of a parameter in one partition.
    """
    touched: list[set[int]] = [set() for _ in range(world)]
    largest, number = 0, 0
    for group in groups:
        size, offset = padded(sum(group), world) // world, 0
        for elements in group:
            for rank in range(offset // size, (offset + elements - 1) // size + 1):
                touched[rank].add(number)
            largest = max(largest, min(elements, size))
            offset, number = offset + elements, number + 1
    return touched, largest


def state_memory(
    groups: Groups, world: int, zero: Zero, accumulation: int = 1, average: bool = False
) -> Memory:
    """Memory of the rank that needs most.

    Args:
        groups: Parameter sizes.
        world: Number of data ranks.
        zero: The DeepSpeed configuration.
        accumulation: Micro-batches per step.
        average: The run keeps a moving average of the weights (--ema).
    """
    if zero.stage == 0:
        memory = _replicated(groups, zero)
    elif zero.stage == 3:
        memory = _partitioned_weights(groups, world, zero)
    else:
        memory = _partitioned_optimizer(groups, world, zero, accumulation)
    return _with_average(memory, groups, world, zero) if average else memory


def _with_average(memory: Memory, groups: Groups, world: int, zero: Zero) -> Memory:
    """The memory with an fp32 copy of the optimizer's share of the weights, where those are."""
    if zero.stage == 0:
        share = sum(map(sum, groups))
    elif zero.stage == 3:
        share = sum(math.ceil(elements / world) for group in groups for elements in group)
    else:
        share = sum(padded(sum(group), world) // world for group in groups)
    added = 4 * share
    if zero.offload:
        return replace(memory, host=memory.host + added)
    moments = {
        name: replace(parts, optimizer=parts.optimizer + added)
        for name in ("between", "backward", "update")
        for parts in (getattr(memory, name),)
    }
    return replace(
        memory,
        **moments,
        start=memory.start + added,
        reduce=memory.reduce + added,
        step=memory.step + added,
    )


def _replicated(groups: Groups, zero: Zero) -> Memory:
    """ZeRO 0: 16-bit weights have an fp32 copy, and the all-reduce flattens the full gradient."""
    s, parameters = zero.element, sum(map(sum, groups))
    # two fp32 moments, and a master copy only of 16-bit weights
    weights, optimizer = s * parameters, (8 if s == 4 else 12) * parameters
    gradients = s * parameters
    # AdamW takes fp32: a converted copy exists together with the 16-bit gradients
    at_update = gradients if s == 4 else gradients + 4 * parameters
    return Memory(
        between=Parts(weights, 0, optimizer, 0),
        backward=Parts(weights, gradients, optimizer, 0),
        update=Parts(weights, at_update, optimizer, 0),
        start=weights + optimizer,
        pending=gradients,
        reduce=weights + optimizer + gradients + s * min(parameters, ALL_REDUCE_CHUNK),
        step=weights + optimizer + at_update,
    )


def _partitioned_optimizer(groups: Groups, world: int, zero: Zero, accumulation: int) -> Memory:
    """ZeRO 1 and 2: both all-reduce buckets, and keep the gradients that overlap the partition."""
    s, b = zero.element, zero.bucket
    shares = [padded(sum(group), world) // world for group in groups]
    parameters, share, largest_group = sum(map(sum, groups)), sum(shares), max(shares)
    sizes = [elements for group in groups for elements in group]
    touched, piece = owned(tuple(map(tuple, groups)), world)
    kept = [sum(sizes[number] for number in numbers) for numbers in touched]
    own = s * max(kept)
    weights = s * share * world  # with the padding: DeepSpeed flattens each group
    optimizer = 0 if zero.offload else 12 * share
    # with overlap_comm, one bucket is reduced while the next one fills
    buckets = (2 if zero.overlap else 1) * s * b
    # stage 2 reduces every micro-batch and keeps its own part; stage 1 reduces the last one only
    accumulated = 0 if accumulation == 1 else own if zero.stage == 2 else s * parameters
    loose = [_loose(sizes, numbers, b, zero.stage) for numbers in touched]
    # if the model is smaller than a bucket, all gradients stay in the bucket until the pass ends
    sets = (parameters > b) + (zero.stage == 2 and accumulation > 1)
    if zero.stage == 1 and accumulation > 1:
        full = s * parameters + sets * own
    else:
        full = s * max(sets * mine + other for mine, other in zip(kept, loose, strict=True))
    base = weights + optimizer
    # stage 1 keeps accumulated gradients in full until the last micro-batch reduces them
    left = max(parameters - b, 0) * s if zero.stage == 1 and accumulation > 1 else 0
    flat = s * min(b, parameters)
    at_end = (
        left
        + (flat + own if parameters > b else max(flat, own))
        + (own if zero.stage == 2 and accumulation > 1 else 0)
    )
    at_end += s * max(loose)
    # 16-bit gradients of a partition are flattened, then copied to fp32; fp32 ones only flattened
    converted = (s + 4 if s == 2 else 4) * largest_group
    # a group's fp32 gradient, while 16-bit gradients are kept for the groups that follow
    at_update = (
        0
        if zero.offload
        else max(4 * part + own * (group < len(shares) - 1) for group, part in enumerate(shares))
    )
    # DeepSpeed's norm converts one piece of a parameter at a time to fp64: 8 bytes per element
    at_step = own + max(8 * piece, 0 if zero.offload else converted)
    host = (12 + 4 + s) * share + s * max(max(group) for group in groups) if zero.offload else 0
    return Memory(
        between=Parts(weights, 0, optimizer, 0),
        backward=Parts(weights, full, optimizer, buckets),
        update=Parts(weights, at_update, optimizer, 0),
        start=base + buckets + accumulated,
        pending=s * parameters,
        reduce=base + buckets + at_end,
        step=base + at_step,
        host=host,
    )


def _loose(sizes: Sequence[int], owned_by_rank: set[int], bucket: int, stage: int) -> int:
    """Elements of gradients too large for a bucket, which are reduced one at a time.

    Stage 1 frees those of other ranks' partitions only at the end of the backward pass.
    """
    oversized = {number: elements for number, elements in enumerate(sizes) if elements > bucket}
    if stage == 2:
        return max(oversized.values(), default=0)
    foreign = sum(elements for number, elements in oversized.items() if number not in owned_by_rank)
    return foreign + max(
        (elements for number, elements in oversized.items() if number in owned_by_rank), default=0
    )


def _partitioned_weights(groups: Groups, world: int, zero: Zero) -> Memory:
    """ZeRO 3: gathered parameters stay until their last use within 1e9 elements.

    stage3_max_reuse_distance and max_live_parameters have DeepSpeed's defaults, so a smaller model
    is fully gathered from its first use to the end of the backward pass.
    """
    s, b = zero.element, zero.bucket
    sizes = [elements for group in groups for elements in group]
    parameters = sum(sizes)
    # unlike stages 1 and 2, stage 3 pads every parameter by itself
    share = sum(math.ceil(elements / world) for elements in sizes)
    largest_group = max(sum(math.ceil(elements / world) for elements in group) for group in groups)
    persistent = (
        0 if world == 1 else sum(elements for elements in sizes if elements < zero.persistence)
    )
    gathered = 0 if world == 1 else min(parameters, 10**9)
    weights = s * share
    kept = s * share  # gradients of the partition; DeepSpeed never frees this buffer
    optimizer = 0 if zero.offload else 12 * share
    bucket = s * b
    oversized = s * max((elements for elements in sizes if elements > b), default=0)
    device_kept = 0 if zero.offload else kept
    base = weights + optimizer + bucket + device_kept
    return Memory(
        between=Parts(weights + s * persistent, device_kept, optimizer, bucket),
        backward=Parts(weights + s * gathered, device_kept + oversized, optimizer, bucket),
        update=Parts(
            weights, device_kept + (0 if zero.offload else 4 * largest_group), optimizer, bucket
        ),
        start=base + s * gathered,
        pending=s * parameters,
        reduce=base + s * gathered + 2 * max(s * min(b, parameters), oversized),
        step=base + (0 if zero.offload else (s + 4 if s == 2 else 4) * largest_group),
        host=(12 + 4) * share + kept if zero.offload else 0,
    )


@dataclass(frozen=True)
class Collective:
    """Communication of one kind of collective in a step, per rank."""

    name: str
    """all_reduce, all_gather or reduce_scatter."""
    calls: float
    bytes: float
    """Payload: the complete tensor that is reduced, gathered or scattered."""
    overlapped: bool
    """Whether it runs during the backward pass."""
    when: str


def traffic(groups: Groups, world: int, zero: Zero, accumulation: int = 1) -> list[Collective]:
    """Collectives of one optimizer step; empty for one rank.

    Stages 1 and 2 use all-reduce (`use_multi_rank_bucket_allreduce`, DeepSpeed's default) instead
    of reduce-scatter, and gather the weights afterwards. Stage 1 reduces once per step, stages 2
    and 3 once per micro-batch. Norms and flags of a few bytes are not included.

    Args:
        groups: Parameter sizes.
        world: Number of data ranks.
        zero: The DeepSpeed configuration.
        accumulation: Micro-batches per step.
    """
    if world == 1:
        return []
    s, b = zero.element, zero.bucket
    sizes = [elements for group in groups for elements in group]
    parameters = sum(sizes)
    if zero.stage == 0:
        return [
            Collective(
                "all_reduce",
                math.ceil(parameters / ALL_REDUCE_CHUNK),
                s * parameters,
                False,
                "gradients, after the backward pass",
            )
        ]
    rounds = accumulation if zero.stage >= 2 else 1
    reductions = max(math.ceil(parameters / b), 1) * rounds
    if zero.stage == 3:
        large = sum(elements for elements in sizes if elements >= zero.persistence)
        wide = sum(
            math.ceil(elements / world) * world
            for elements in sizes
            if elements >= zero.persistence
        )
        fetches = max(math.ceil(large / b), 1) + 2 * sum(
            elements >= zero.persistence for elements in sizes
        )
        small = sum(
            math.ceil(elements / world) * world for elements in sizes if elements < zero.persistence
        )
        return [
            Collective(
                "all_gather",
                fetches * accumulation,
                s * wide * accumulation,
                True,
                "weights, before their first use",
            ),
            Collective(
                "reduce_scatter",
                reductions,
                s * parameters * rounds,
                True,
                "gradients, in the backward pass",
            ),
            Collective("all_gather", 1, s * small, False, "small weights, after the update"),
        ]
    gathered = sum(padded(sum(group), world) for group in groups)
    return [
        Collective(
            "all_reduce",
            reductions,
            s * parameters * rounds,
            zero.overlap,
            "gradients, in the last backward pass of the micro-batch",
        ),
        Collective("all_gather", len(groups), s * gathered, False, "weights, after the update"),
    ]
