"""Estimate of a run before it starts, compared with its measurements at its end.

Both are written to OUT/plan.json; what differs by over 10 % also to the log.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from allinone.common.atomic_io import write_atomic
from allinone.common.formatting import count, duration, finite, size
from allinone.engine import ds_config
from allinone.engine.config import TrainConfig
from allinone.engine.deepspeed_adapter import count_collective_bytes
from allinone.engine.distributed import launch
from allinone.engine.distributed.topology import Layout
from allinone.engine.planning.hardware import NETWORKS, usual_network
from allinone.engine.planning.memory import Activations, Groups, Zero, state_memory, traffic
from allinone.engine.planning.peak_flops import peak_rate, planned_device
from allinone.engine.planning.step_time import (
    CountedSteps,
    TrainingJob,
    candidate,
    compute_time,
)

ASSUMED_MFU = {"cuda": 0.4, "cpu": 0.35}
"""Assumed share of the peak rate, a GPU's data-sheet rate or a CPU's measured matrix product, where
the operations were not counted: in fine-tuning, and on cards that the planner does not know."""
LOADED_LATER_BYTES = 240 * 2**20
"""What a process on a CPU gains after the plan, besides the model's tensors. Measured in the demo
(resident memory, nano, 3 frames of 64 pixels): DeepSpeed's engine and TensorBoard 45 MiB, DALI with
the batches it holds 95, the evaluation's DALI graph and pictures 65, heap that glibc keeps after it
was freed 35."""
FILE = "plan.json"
TOLERANCE = 0.1
"""Relative difference between estimate and measurement from which the log mentions it."""
MOMENTS = {
    "between": "between steps",
    "backward": "in the backward pass",
    "update": "in the update",
}


def element_sizes(config: TrainConfig) -> tuple[int, int]:
    """(bytes of an activation, bytes of a dropout mask's element) on this machine's device type."""
    element = Zero.from_config(ds_config.load(config.ds_config)).element
    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    return element, 1 if on_gpu else element


@dataclass(frozen=True)
class RunPlan:
    """The estimate of one run, as written to OUT/plan.json.

    The first fields are flat numbers, so that readers can compare them with a run's records.
    """

    samples_per_s: float
    step_s: float
    mfu: float
    """Model FLOPs utilisation."""
    mfu_from: str
    """counted: the step's time follows from its operations; assumed: from ASSUMED_MFU."""
    memory_bytes: float
    """Peak of a rank; on a CPU including what the process holds besides its model."""
    hours: float
    flops_per_sample: float
    flops_per_step: float
    """Of all ranks."""
    bytes_per_step: float
    """Passed to DeepSpeed's collectives by one rank: complete tensors that are reduced, gathered
    or scattered. Collectives of tensor parallelism are not included."""
    parameters: int
    world: int
    global_batch: int
    steps: int
    peak_flops: float
    """Of one rank, per second."""
    peak_source: str
    activations: Activations
    state: dict[str, Any]
    """Bytes of weights, gradients, optimizer state and buckets between steps, in the backward pass
    and in the update."""
    collectives: list[dict[str, Any]]
    got: dict[str, float | None] = field(default_factory=dict)
    """The same keys as measured by this process; empty until the run logs."""


def plan_run(
    config: TrainConfig,
    ds: Mapping[str, Any],
    groups: Groups,
    layout: Layout,
    device: torch.device,
    flops_per_sample: float,
    activations: Activations,
    counted: CountedSteps | None = None,
    compiled: bool = False,
) -> RunPlan:
    """Estimate a run that is about to start on this machine.

    Tensor parallelism divides parameters and FLOPs; its effect on activations and its own
    all-reduces are not included.

    Args:
        config: Options of the run.
        ds: The resolved DeepSpeed configuration.
        groups: Elements of the parameters that a rank holds, by optimizer group.
        layout: Ranks of the run.
        device: This rank's device.
        flops_per_sample: Training FLOPs per clip, forward and backward; 0 if unknown.
        activations: Bytes of one micro-batch.
        counted: The operations of the run; None: its MFU is assumed.
        compiled: Whether blocks are compiled.
    """
    world = layout.data_world
    parameters, accumulation = sum(map(sum, groups)), config.accumulation(world)
    zero = Zero.from_config(ds)
    average = config.ema > 0
    planned = state_memory(groups, world, zero, accumulation, average)
    collectives = traffic(groups, world, zero, accumulation)
    rate, source = peak_rate(device, zero.precision)
    step_s = _counted_step_s(config, zero, groups, layout, device, counted, compiled)
    # NaN, not 0, where nothing is known: comparisons and the log leave it out
    ideal_s = config.global_batch * flops_per_sample / (rate * layout.world) or float("nan")
    mfu = ideal_s / step_s if step_s else ASSUMED_MFU[device.type]
    samples_per_s = config.global_batch / (step_s or ideal_s / mfu)
    resident = 0.0
    if device.type == "cpu":
        # only the pages of a bucket that are written to take memory
        touched = replace(
            zero,
            bucket=min(zero.bucket, parameters),
            overlap=zero.overlap and zero.bucket < parameters,
        )
        peak = state_memory(groups, world, touched, accumulation, average).peak(
            activations.total, activations.last_pass, activations.working
        )
        # the process already holds the fp32 model
        resident = psutil.Process().memory_info().rss - 4.0 * parameters + LOADED_LATER_BYTES
    else:
        peak = planned.peak(activations.total, activations.last_pass, activations.working)
    return RunPlan(
        samples_per_s=samples_per_s,
        step_s=config.global_batch / samples_per_s,
        mfu=mfu,
        mfu_from="counted" if step_s else "assumed",
        memory_bytes=resident + peak,
        hours=config.steps * config.global_batch / samples_per_s / 3600,
        flops_per_sample=flops_per_sample,
        flops_per_step=flops_per_sample * config.global_batch,
        bytes_per_step=sum(collective.bytes for collective in collectives),
        parameters=parameters,
        world=layout.world,
        global_batch=config.global_batch,
        steps=config.steps,
        peak_flops=rate,
        peak_source=source,
        activations=activations,
        state={moment: asdict(getattr(planned, moment)) for moment in MOMENTS},
        collectives=[asdict(collective) for collective in collectives],
    )


def _counted_step_s(
    config: TrainConfig,
    zero: Zero,
    groups: Groups,
    layout: Layout,
    device: torch.device,
    counted: CountedSteps | None,
    compiled: bool,
) -> float | None:
    """Seconds of a step by the planner of tools/plan.py; None where nothing is known.

    The network between nodes is the usual one of the card (`usual_network`).

    Args:
        config: Options of the run.
        zero: The DeepSpeed configuration.
        groups: Elements of the parameters that a rank holds.
        layout: Ranks of the run.
        device: This rank's device.
        counted: The operations of the run.
        compiled: Whether blocks are compiled.
    """
    planned = planned_device(device) if counted is not None else None
    if counted is None or planned is None:
        return None
    network = NETWORKS[usual_network(planned.name)]
    # ranks of machines without GPUs are taken to share one
    per_node = launch.ranks_of_host(os.environ, layout.world) // layout.tensor
    job = TrainingJob(
        groups,
        layout.data_world,
        config.global_batch,
        0.0,
        counted.reduce_window,
        max(1, per_node) if device.type == "cuda" else layout.data_world,
        average=config.ema > 0,
    )
    flash = planned.has_bf16 and zero.precision != "fp32"
    seconds = 0.0
    for share, operations in counted.operations(zero.precision, compiled, flash):
        # a tensor-parallel group divides the operations of a micro-batch
        compute = compute_time(operations, planned, zero.precision).times(1 / layout.tensor)
        one = candidate(job, "", zero, config.micro_batch, Activations(), compute, planned, network)
        seconds += share * one.step_s
    return seconds


class BytesCounter:
    """Counts the bytes that DeepSpeed passes to collectives, without waiting for the device.

    DeepSpeed's own communication logger waits for the device at every call.
    """

    NAMES = (
        "all_reduce",
        "reduce",
        "broadcast",
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "all_gather",
        "reduce_scatter",
    )

    def __init__(self) -> None:
        self.total = 0
        self.on = False
        # after deepspeed.initialize, which creates the backend whose methods are replaced
        count_collective_bytes(self.NAMES, self._counted)

    def _counted(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            tensors = [
                value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)
            ]
            # a gather gets two tensors: the complete result, and the share of one rank
            if self.on:
                self.total += max(
                    (tensor.numel() * tensor.element_size() for tensor in tensors), default=0
                )
            return collective(*args, **kwargs)

        return counted


class RunEstimate:
    """The estimate of a run and its measurements; rank 0 writes both to OUT/plan.json."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self._intervals: list[tuple[int, float]] = []
        self._memory = 0.0
        self._counter: BytesCounter | None = None

    def count_bytes(self) -> None:
        """Start counting collectives; call this after deepspeed.initialize."""
        self._counter = BytesCounter()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count the bytes of a step; checkpoints and evaluations are not counted."""
        if self._counter:
            self._counter.on = True
        yield
        if self._counter:
            self._counter.on = False

    def lines(self) -> list[str]:
        """The estimate for the log, before training."""
        plan = self.plan
        moments = [
            f"{size(sum(plan.state[name].values()))} {title}" for name, title in MOMENTS.items()
        ]
        passed = (
            f"; each rank passes {size(plan.bytes_per_step)} to DeepSpeed's collectives per step"
        )
        lines = [
            f"planned memory per rank: {size(plan.memory_bytes)} at the peak (model state:"
            f" {', '.join(moments)}; activations {size(plan.activations.total)})"
            + (passed if plan.bytes_per_step else "")
        ]
        if plan.samples_per_s == plan.samples_per_s:
            lines.append(
                f"planned: {plan.samples_per_s:,.1f} clips/s and {duration(3600 * plan.hours)} for"
                f" all steps at MFU {plan.mfu:.2f} ({plan.mfu_from}) of"
                f" {count(plan.peak_flops)}FLOP/s per rank ({plan.peak_source})"
            )
        return lines

    def see(self, steps: int, seconds: float, memory: float) -> None:
        """Record one logging interval.

        Args:
            steps: Number of its steps.
            seconds: Training time.
            memory: Peak memory of the largest rank, bytes.
        """
        self._intervals.append((steps, seconds))
        self._memory = max(self._memory, memory)

    def got(self) -> dict[str, float | None]:
        """Measurements under the plan's keys; {} before the first logging interval.

        Rates do not include the first interval, which warms up, if there are others.
        """
        plan = self.plan
        counted = self._intervals[1:] or self._intervals
        steps = sum(steps for steps, _ in counted)
        seconds = sum(seconds for _, seconds in counted)
        if not steps:
            return {}
        step_s = seconds / steps
        flops = plan.flops_per_step
        sent = None
        # over all intervals: counting begins with the first step, and bytes need no warm-up
        if self._counter:
            sent = self._counter.total / sum(steps for steps, _ in self._intervals)
        if not plan.collectives:  # with one rank, DeepSpeed calls collectives that move nothing
            sent = 0.0
        return {
            "samples_per_s": plan.global_batch / step_s,
            "step_s": step_s,
            "mfu": flops / step_s / (plan.peak_flops * plan.world) if flops else None,
            "memory_bytes": self._memory,
            "hours": plan.steps * step_s / 3600,
            "bytes_per_step": sent,
        }

    def write(self, out: Path) -> None:
        """Write OUT/plan.json with the measurements so far."""
        content = asdict(self.plan) | {"got": self.got()}
        write_atomic(out / FILE, json.dumps(finite(content), indent=1) + "\n")

    def summary(self) -> str:
        """Estimate and measurement for the log, at the end, where they differ by over 10 %."""
        plan, got = self.plan, self.got()
        pairs = [
            ("memory per rank", plan.memory_bytes, got.get("memory_bytes"), size),
            ("clips/s", plan.samples_per_s, got.get("samples_per_s"), "{:,.1f}".format),
            ("MFU", plan.mfu, got.get("mfu"), "{:.2f}".format),
            (
                "bytes of DeepSpeed's collectives per rank and step",
                plan.bytes_per_step,
                got.get("bytes_per_step"),
                size,
            ),
            ("hours for all steps", plan.hours, got.get("hours"), "{:.2f}".format),
        ]
        lines = [
            f"planned {name} {show(planned)}, measured {show(seen)}"
            for name, planned, seen, show in pairs
            # NaN: the FLOPs are unknown, so there is no estimate; MFU above 1: the peak was
            # measured too low
            if seen is not None
            and planned == planned
            and not (name == "MFU" and seen > 1)
            and abs(seen - planned) > TOLERANCE * planned
            and show(planned) != show(seen)
        ]
        return "\n".join(lines) or "memory and speed were within 10 % of the plan"
