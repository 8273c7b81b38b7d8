"""Estimated time of a training step from data-sheet rates (engine/planning/hardware.py).

docs/planning.md derives the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from allinone.engine.planning.hardware import (
    GPUS_PER_NODE,
    LINK_EFFICIENCY,
    LINK_LATENCY,
    Device,
    Network,
)
from allinone.engine.planning.memory import (
    CONTEXT_BYTES,
    FRAGMENTATION,
    Activations,
    Collective,
    Groups,
    Memory,
    Zero,
    state_memory,
    traffic,
)
from allinone.engine.planning.operations import Operation

KERNEL_GAP_S = 2e-6
"""Seconds between the end of a kernel and the start of the next: an assumption."""
HOST_LAUNCH_S = 5e-6
"""Seconds that the host needs to launch a kernel from Python or autograd: an assumption. Where this
adds up to more than the kernels take, launches bound the step."""
HOST_OVERHEAD = {0: 0.0, 1: 0.0, 2: 0.06, 3: 0.15}
"""ZeRO stage → share of the throughput lost to hooks and small kernels, apart from communication.
Published by DeepSpeed for BERT-base on 16 V100 (stages 0 and 1 equal, 2 −6 %, 3 −15 %); not
measured here."""
HOST_BANDWIDTH = 200e9
"""Bytes/s of a node's host memory: an assumption."""
PCIE_BANDWIDTH = 25e9
"""Bytes/s between a GPU and its host: an assumption."""
BUCKET_COPIES = 2
"""Times that DeepSpeed reads and writes every gradient between backward pass and reduction: into
the bucket, and divided by the number of ranks."""


@dataclass(frozen=True)
class ComputeTime:
    """Seconds of forward and backward passes, by what bounds each kernel."""

    gemm: float
    """Matrix products and attention."""
    memory: float
    launches: float
    """Gaps between kernels, or waiting for the host to launch them."""

    @property
    def total(self) -> float:
        """Sum."""
        return self.gemm + self.memory + self.launches

    def times(self, number: float) -> ComputeTime:
        """Of that many micro-batches."""
        return ComputeTime(number * self.gemm, number * self.memory, number * self.launches)


def compute_time(operations: Sequence[Operation], device: Device, precision: str) -> ComputeTime:
    """Time of operations that run one after the other.

    A kernel takes as long as its FLOPs or its bytes, whichever is longer (the roofline model,
    Williams et al. 2009), and a gap follows it. A product that is bound by memory counts there.

    Args:
        operations: The step's operations.
        device: The GPU.
        precision: fp32, bf16 or fp16.
    """
    rate, bandwidth = device.rate_of(precision), device.memory_share * device.bandwidth
    shares = {"GEMM": device.gemm_share, "attention": device.attention_share}
    computing = moving = launches = 0.0
    for each in operations:
        by_flops = each.flops / (shares.get(each.kind, 1.0) * rate)
        by_bytes = each.bytes / bandwidth
        if by_flops >= by_bytes:
            computing += by_flops
        else:
            moving += by_bytes
        launches += each.launches
    busy = computing + moving
    return ComputeTime(
        computing, moving, max(KERNEL_GAP_S * launches, HOST_LAUNCH_S * launches - busy)
    )


def collective_seconds(
    kind: str,
    payload: float,
    calls: float,
    gpus: int,
    device: Device,
    network: Network,
    gpus_per_node: int = GPUS_PER_NODE,
) -> float:
    """Seconds of one kind of collective in a step.

    A ring over all ranks, as NCCL uses it (nccl-tests, doc/PERFORMANCE.md): an all-reduce sends
    2 (N-1)/N of its payload over every rank's link, a gather or scatter half of that. Between nodes
    the ring uses all adapters of a node, so the slower of NVLink and the node's adapters limits the
    rate. Latency: N-1 messages around the ring inside a node, and a tree of depth log2(nodes)
    between nodes; both in two directions for an all-reduce.

    Args:
        kind: all_reduce, all_gather or reduce_scatter.
        payload: Bytes per rank and step.
        calls: Calls per step.
        gpus: Number of ranks, N.
        device: The GPU.
        network: The network between nodes.
        gpus_per_node: GPUs of a node.
    """
    if gpus == 1:
        return 0.0
    # a ring all-reduce is a reduce-scatter followed by an all-gather
    ways = 2 if kind == "all_reduce" else 1
    inside, nodes = min(gpus, gpus_per_node), math.ceil(gpus / gpus_per_node)
    bandwidth = device.link * LINK_EFFICIENCY
    latency = ways * (inside - 1) * LINK_LATENCY
    if nodes > 1:
        bandwidth = min(bandwidth, network.node_bandwidth * network.efficiency)
        latency += ways * math.ceil(math.log2(nodes)) * network.latency
    return ways * (gpus - 1) / gpus * payload / bandwidth + calls * latency


@dataclass(frozen=True)
class Candidate:
    """One configuration of a run, with its memory and time."""

    ds_config: str
    """Name in ds_configs/."""
    stage: int
    offload: bool
    micro_batch: int
    accumulation: int
    checkpointing: bool
    memory: dict[str, float]
    """Part → bytes per rank at the peak; sums to `peak`."""
    peak: float
    host: float
    fits: bool
    collectives: tuple[Collective, ...]
    compute: ComputeTime
    compute_s: float
    """Forward and backward passes of all micro-batches, with the overhead of stages 2 and 3."""
    exposed_s: float
    """Communication that does not overlap with compute."""
    hidden_s: float
    """Communication that overlaps with compute."""
    update_s: float
    step_s: float
    samples_per_s: float
    mfu: float
    """Of the complete step."""

    @property
    def bounds(self) -> dict[str, float]:
        """What the step consists of → seconds, the longest first."""
        parts = {
            "GEMM": self.compute.gemm,
            "memory": self.compute.memory + self.update_s,
            # what stages 2 and 3 lose, they lose to hooks and small kernels
            "launches": self.compute_s - self.compute.gemm - self.compute.memory,
            "network": self.exposed_s,
        }
        return dict(sorted(parts.items(), key=lambda part: -part[1]))


@dataclass(frozen=True)
class TrainingJob:
    """The training to estimate."""

    groups: Groups
    gpus: int
    global_batch: int
    flops_per_sample: float
    """That the model needs, forward and backward; a multiply-add counts as 2. MFU counts these."""
    reduce_window: float
    """Share of a micro-batch's compute during which gradients become final: the backward pass of
    the pass that ran first. Until then gradients of the other passes are incomplete sums."""
    gpus_per_node: int = GPUS_PER_NODE
    average: bool = False
    """Keep a moving average of the weights (--ema)."""


@dataclass(frozen=True)
class CountedSteps:
    """The operations of a run, from which its time is planned."""

    operations: Callable[[str, bool, bool], Sequence[tuple[float, Sequence[Operation]]]]
    """(fp32, bf16 or fp16; blocks are compiled; FlashAttention runs) → (share of the steps,
    operations of a micro-batch) of each kind of step."""
    reduce_window: float
    """As in TrainingJob."""


def parts_at_peak(memory: Memory, activations: Activations) -> dict[str, float]:
    """Bytes at the peak, by part."""
    # the same four candidates as in Memory.peak: which of them won says what is in memory
    peak = memory.peak(activations.total, activations.last_pass, activations.working)
    if peak in (memory.reduce, memory.step):
        moment = memory.update if peak == memory.step else memory.backward
        parts = {
            "weights": moment.weights,
            "optimizer": moment.optimizer,
            "buckets": moment.buckets,
        }
        return parts | {"gradients": peak - sum(parts.values()), "activations": 0.0}
    back = memory.backward
    first = memory.start + activations.total + activations.working
    held = activations.total if peak == first else activations.total - activations.last_pass
    parts = {
        "weights": back.weights,
        "optimizer": back.optimizer,
        "buckets": back.buckets,
        "activations": held + activations.working,
    }
    return parts | {"gradients": peak - sum(parts.values())}


def candidate(
    job: TrainingJob,
    ds_name: str,
    zero: Zero,
    micro_batch: int,
    activations: Activations,
    compute: ComputeTime,
    device: Device,
    network: Network,
    checkpointing: bool = False,
) -> Candidate:
    """Estimate memory and time of one configuration.

    Args:
        job: The training.
        ds_name: Name in ds_configs/.
        zero: Content of that file.
        micro_batch: Clips per rank and forward pass.
        activations: Bytes of such a micro-batch.
        compute: Forward and backward pass of such a micro-batch.
        device: The GPU.
        network: The network between nodes.
        checkpointing: Whether blocks are recomputed in the backward pass.
    """
    accumulation = job.global_batch // (job.gpus * micro_batch)
    memory = state_memory(job.groups, job.gpus, zero, accumulation, job.average)
    parts = parts_at_peak(memory, activations)
    tensors = sum(parts.values())
    parts["reserve"] = CONTEXT_BYTES + FRAGMENTATION * tensors
    peak = tensors + parts["reserve"]
    passes = compute.times(accumulation)
    compute_s = passes.total / (1 - HOST_OVERHEAD[zero.stage])
    sent = traffic(job.groups, job.gpus, zero, accumulation)
    exposed, hidden = _communication(job, sent, compute_s, accumulation, zero, device, network)
    # without ZeRO every rank updates all parameters
    share = sum(map(sum, job.groups)) / (1 if zero.stage == 0 else job.gpus)
    # AdamW reads and writes master weights, moments, gradient and weights once
    accessed = (28 + 2 * zero.element) * share
    if job.average:  # reads weight and average, writes the average
        accessed += 12 * share
    bandwidth = device.memory_share * device.bandwidth
    update = accessed / bandwidth
    if zero.offload:  # in host memory, with gradients and weights transferred over PCIe
        transferred = 2 * zero.element * share
        # the ranks of a node share its host memory, but each has a PCIe link of its own
        update = (
            accessed * min(job.gpus, job.gpus_per_node) / HOST_BANDWIDTH
            + transferred / PCIE_BANDWIDTH
        )
    if job.gpus > 1:
        copied = 2 * BUCKET_COPIES * zero.element * sum(map(sum, job.groups))
        update += copied * (accumulation if zero.stage >= 2 else 1) / bandwidth
    step = compute_s + exposed + update
    ideal = job.global_batch / job.gpus * job.flops_per_sample / device.rate_of(zero.precision)
    return Candidate(
        ds_config=ds_name,
        stage=zero.stage,
        offload=zero.offload,
        micro_batch=micro_batch,
        accumulation=accumulation,
        checkpointing=checkpointing,
        memory=parts,
        peak=peak,
        host=memory.host,
        fits=peak <= device.memory,
        collectives=tuple(sent),
        compute=passes,
        compute_s=compute_s,
        exposed_s=exposed,
        hidden_s=hidden,
        update_s=update,
        step_s=step,
        samples_per_s=job.global_batch / step,
        mfu=ideal / step,
    )


def _communication(
    job: TrainingJob,
    sent: Sequence[Collective],
    compute: float,
    accumulation: int,
    zero: Zero,
    device: Device,
    network: Network,
) -> tuple[float, float]:
    """Seconds of communication in a step.

    Reductions overlap with the window in which gradients become final, except the last bucket.
    Gathers of stage 3 overlap with all compute. The rest is exposed.

    Args:
        job: The training.
        sent: The step's collectives.
        compute: Seconds of forward and backward.
        accumulation: Micro-batches per step.
        zero: The DeepSpeed configuration.
        device: The GPU.
        network: The network between nodes.

    Returns:
        Exposed and hidden seconds.
    """
    exposed = hidden = 0.0
    for collective in sent:
        seconds = collective_seconds(
            collective.name,
            collective.bytes,
            collective.calls,
            job.gpus,
            device,
            network,
            job.gpus_per_node,
        )
        rounds = accumulation if zero.stage >= 2 else 1
        # stage 3 gathers ahead of every block, so anywhere in the step: the optimistic assumption
        window = (
            compute
            if collective.name == "all_gather"
            else compute * job.reduce_window * rounds / accumulation
        )
        # no compute is left to hide the last bucket: the backward pass has just filled it
        last = (
            0.0 if collective.name == "all_gather" else seconds / max(collective.calls, 1) * rounds
        )
        behind = min(seconds - last, window) if collective.overlapped else 0.0
        exposed, hidden = exposed + seconds - behind, hidden + behind
    return exposed, hidden


def recommend(candidates: Sequence[Candidate], tolerance: float = 0.02) -> tuple[Candidate, str]:
    """Choose a configuration.

    Of those that fit and are within `tolerance` of the fastest, choose the largest micro-batch,
    then the lowest memory per rank.

    Returns:
        The configuration, and the reason in words.

    Raises:
        ValueError: No configuration fits.
    """
    fitting = [each for each in candidates if each.fits]
    if not fitting:
        least = min(candidates, key=lambda each: each.peak)
        raise ValueError(
            f"nothing fits: the smallest, {least.ds_config} with micro-batch"
            f" {least.micro_batch}{' and recomputed blocks' * least.checkpointing}, needs"
            f" {least.peak / 2**30:.1f} GiB per rank"
        )
    fastest = max(each.samples_per_s for each in fitting)
    near = [each for each in fitting if each.samples_per_s >= (1 - tolerance) * fastest]
    chosen = min(near, key=lambda each: (-each.micro_batch, each.peak))
    return chosen, _reason(chosen, fitting)


def _reason(chosen: Candidate, fitting: Sequence[Candidate]) -> str:
    same_size = {
        each.stage: each
        for each in fitting
        if (each.micro_batch, each.checkpointing, each.offload)
        == (chosen.micro_batch, chosen.checkpointing, False)
    }
    comparisons = []
    for stage, other in sorted(same_size.items()):
        if stage != chosen.stage:
            speed = 100 * (other.samples_per_s / chosen.samples_per_s - 1)
            comparisons.append(
                f"ZeRO {stage}: {speed:+.1f} % samples/s,"
                f" {(other.peak - chosen.peak) / 2**30:+.2f} GiB"
            )
    against = f"; compared with it, {'; '.join(comparisons)}" if comparisons else ""
    recompute = (
        "blocks must be recomputed to fit" if chosen.checkpointing else "no block is recomputed"
    )
    return (
        "within 2 % of the fastest that fits, with the largest micro-batch, then least memory;"
        f" {recompute}{against}"
    )
