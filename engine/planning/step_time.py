"""Time of a training step on GPUs that are not at hand: arithmetic on data-sheet rates
(engine/planning/hardware.py). docs/planning.md derives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from allinone.engine.planning.estimate import Activations
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
    Collective,
    Groups,
    Memory,
    Zero,
    state_memory,
    traffic,
)

HOST_OVERHEAD = {0: 0.0, 1: 0.0, 2: 0.06, 3: 0.15}
"""Share of the throughput that a stage costs beside its traffic (hooks, small launches), by
DeepSpeed's own comparison on BERT-base, 16 V100: 0 and 1 equal, 2 −6 %, 3 −15 %. Read, not measured
here."""
RECOMPUTE = 1 / 3
"""More FLOPs with activation checkpointing: a second forward pass of the blocks; not counted in
MFU."""


def collective_seconds(
    kind: str, payload: float, calls: float, gpus: int, device: Device, network: Network
) -> float:
    """Seconds of one rank's collectives in a step.

    A ring over all ranks, as NCCL builds it (nccl-tests, doc/PERFORMANCE.md): an all-reduce puts 2
    (N-1)/N of its payload on every rank's link, a gather or scatter half of that. The ring crosses
    between nodes over all adapters of a node, so the slower of NVLink and the node's adapters
    decides. Latency: in a node N-1 messages around the ring; between nodes a tree, log2(nodes)
    deep; both ways for an all-reduce.
    """
    if gpus == 1:
        return 0.0
    ways = 2 if kind == "all_reduce" else 1
    inside, nodes = min(gpus, GPUS_PER_NODE), math.ceil(gpus / GPUS_PER_NODE)
    bandwidth = device.link * LINK_EFFICIENCY
    latency = ways * (inside - 1) * LINK_LATENCY
    if nodes > 1:
        bandwidth = min(bandwidth, network.node_bandwidth * network.efficiency)
        latency += ways * math.ceil(math.log2(nodes)) * network.latency
    return ways * (gpus - 1) / gpus * payload / bandwidth + calls * latency


@dataclass(frozen=True)
class Candidate:
    """One way to run a recipe: its memory and its time."""

    ds_config: str
    """Name in ds_configs/."""
    stage: int
    offload: bool
    micro_batch: int
    accumulation: int
    checkpointing: bool
    memory: dict[str, float]
    """Part → bytes per rank at the highest moment; sums to `peak`."""
    peak: float
    host: float
    fits: bool
    collectives: tuple[Collective, ...]
    compute_s: float
    exposed_s: float
    """Communication that nothing hides."""
    hidden_s: float
    """Communication behind the backward pass."""
    update_s: float
    step_s: float
    samples_per_s: float
    mfu: float
    """Of the whole step."""


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained, in numbers."""

    groups: Groups
    gpus: int
    global_batch: int
    flops_per_sample: float
    """Forward and backward, FMA = 2."""
    mfu: float
    """Assumed for forward and backward passes alone."""
    reduce_window: float
    """Share of a micro-batch's compute in which gradients are finished one after the other: the
    backward pass of the pass that ran first. Gradients of the passes after it only wait to be
    added."""


def parts_at_peak(memory: Memory, activations: Activations) -> dict[str, float]:
    """The highest moment, by part."""
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
    device: Device,
    network: Network,
    checkpointing: bool = False,
) -> Candidate:
    """Memory and time of one configuration."""
    accumulation = job.global_batch // (job.gpus * micro_batch)
    memory = state_memory(job.groups, job.gpus, zero, accumulation)
    parts = parts_at_peak(memory, activations)
    tensors = sum(parts.values())
    parts["reserve"] = CONTEXT_BYTES + FRAGMENTATION * tensors
    peak = tensors + parts["reserve"]
    rate = device.rate_fp32 if zero.precision == "fp32" else device.rate
    ideal = job.global_batch / job.gpus * job.flops_per_sample / rate
    compute = (
        ideal / job.mfu * (1 + RECOMPUTE if checkpointing else 1) / (1 - HOST_OVERHEAD[zero.stage])
    )
    sent = traffic(job.groups, job.gpus, zero, accumulation)
    exposed, hidden = _communication(job, sent, compute, accumulation, zero, device, network)
    share = sum(map(sum, job.groups)) / (1 if zero.stage == 0 else job.gpus)
    update = (
        (28 + 2 * zero.element) * share / device.bandwidth
    )  # AdamW reads and writes master weights, moments, gradient and weights once
    # the same on the host's memory (200 GB/s per node, stated), and gradients and weights over PCIe
    if zero.offload:
        update = (
            28 + 2 * zero.element
        ) * share * GPUS_PER_NODE / 200e9 + 2 * zero.element * share / 25e9
    step = compute + exposed + update
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
        compute_s=compute,
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
    """(exposed, hidden) seconds. Reductions hide behind the window in which gradients finish,
    except the last bucket; stage 3's gathers hide behind all of the compute. What does not fit is
    exposed."""
    exposed = hidden = 0.0
    for collective in sent:
        seconds = collective_seconds(
            collective.name, collective.bytes, collective.calls, job.gpus, device, network
        )
        rounds = accumulation if zero.stage >= 2 else 1
        window = (
            compute
            if collective.name == "all_gather"
            else compute * job.reduce_window * rounds / accumulation
        )
        last = (
            0.0 if collective.name == "all_gather" else seconds / max(collective.calls, 1) * rounds
        )
        behind = min(seconds - last, window) if collective.overlapped else 0.0
        exposed, hidden = exposed + seconds - behind, hidden + behind
    return exposed, hidden


def recommend(candidates: Sequence[Candidate], tolerance: float = 0.02) -> tuple[Candidate, str]:
    """The candidate to take and why. Among those that fit and are within `tolerance` of the
    fastest: the one that needs least memory per rank at the largest micro-batch. Raises ValueError
    if none fits."""
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
    alike = {
        each.stage: each
        for each in fitting
        if (each.micro_batch, each.checkpointing, each.offload)
        == (chosen.micro_batch, chosen.checkpointing, False)
    }
    words = []
    for stage, other in sorted(alike.items()):
        if stage != chosen.stage:
            speed = 100 * (other.samples_per_s / chosen.samples_per_s - 1)
            words.append(
                f"ZeRO {stage}: {speed:+.1f} % samples/s,"
                f" {(other.peak - chosen.peak) / 2**30:+.2f} GiB"
            )
    against = f"; against it, {'; '.join(words)}" if words else ""
    recompute = (
        "blocks must be recomputed to fit" if chosen.checkpointing else "no block is recomputed"
    )
    return (
        "within 2 % of the fastest that fits, with the largest micro-batch and least memory;"
        f" {recompute}{against}"
    )
