"""What a run is expected to need, before it starts, and what it got, at its end: OUT/plan.json and
the lines "planned … got …"."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from allinone.common.atomic_io import write_atomic
from allinone.common.formatting import count, duration, size
from allinone.engine import ds_config
from allinone.engine.config import TrainConfig
from allinone.engine.distributed.topology import Layout
from allinone.engine.monitoring.peak_flops import peak_rate
from allinone.engine.planning.memory import Groups, Zero, state_memory, traffic

ASSUMED_MFU = {"cuda": 0.4, "cpu": 0.35}
"""Share of the peak rate that a plan assumes: of a GPU's data-sheet rate, of a CPU's measured
matrix product."""
FILE = "plan.json"
MOMENTS = {
    "between": "between steps",
    "backward": "in the backward pass",
    "update": "in the update",
}


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd keeps for one micro-batch (model/activations.py)."""

    total: float = 0.0
    last_pass: float = 0.0
    """Of these, the pass that runs last in the forward and is freed first in the backward."""
    working: float = 0.0
    """Needed beside, while one block's backward pass runs."""


def element_sizes(config: TrainConfig) -> tuple[int, int]:
    """Bytes of an activation and of an element of a dropout mask, in a run on this machine's kind
    of device."""
    element = Zero.from_config(ds_config.load(config.ds_config)).element
    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    return element, 1 if on_gpu else element


@dataclass(frozen=True)
class RunPlan:
    """The plan of one run. The first keys are flat: readers of OUT/plan.json compare them with a
    run's records."""

    samples_per_s: float
    step_s: float
    mfu: float
    """Assumed."""
    memory_bytes: float
    """Peak of a rank; on a CPU with what the process held before its model."""
    hours: float
    flops_per_sample: float
    flops_per_step: float
    """Of all ranks."""
    bytes_per_step: float
    """Handed to DeepSpeed's collectives by one rank: whole tensors that are reduced, gathered or
    scattered; without tensor parallelism's."""
    parameters: int
    world: int
    global_batch: int
    steps: int
    peak_flops: float
    """Of one rank, per second."""
    peak_source: str
    activations: Activations
    state: dict[str, Any]
    """Weights, gradients, optimizer state and buckets between steps, in the backward pass and in
    the update; bytes."""
    collectives: list[dict[str, Any]]
    got: dict[str, float | None] = field(default_factory=dict)
    """The same keys, measured by this process; empty until the run logs."""


def plan_run(
    config: TrainConfig,
    ds: Mapping[str, Any],
    groups: Groups,
    layout: Layout,
    device: torch.device,
    flops_per_sample: float,
    activations: Activations,
) -> RunPlan:
    """The plan of a run that is about to start here. `groups`: parameters that a rank holds. Tensor
    parallel divides them and the FLOPs; that it divides part of the activations, and its own
    all-reduces, are left out."""
    world = layout.data_world
    parameters, accumulation = sum(map(sum, groups)), config.accumulation(world)
    zero = Zero.from_config(ds)
    planned = state_memory(groups, world, zero, accumulation)
    collectives = traffic(groups, world, zero, accumulation)
    rate, source = peak_rate(device, zero.precision)
    mfu = ASSUMED_MFU[device.type]
    samples_per_s = (
        mfu * rate * layout.world / flops_per_sample if flops_per_sample else float("nan")
    )
    resident = 0.0
    if device.type == "cpu":  # of a bucket, only the pages that are written to take memory
        touched = replace(
            zero,
            bucket=min(zero.bucket, parameters),
            overlap=zero.overlap and zero.bucket < parameters,
        )
        peak = state_memory(groups, world, touched, accumulation).peak(
            activations.total, activations.last_pass, activations.working
        )
        resident = (
            psutil.Process().memory_info().rss - 4.0 * parameters
        )  # the fp32 model, which stands already
    else:
        peak = planned.peak(activations.total, activations.last_pass, activations.working)
    return RunPlan(
        samples_per_s=samples_per_s,
        step_s=config.global_batch / samples_per_s,
        mfu=mfu,
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


class BytesCounter:
    """Adds up what DeepSpeed hands to collectives, without waiting for the device (its own logger
    waits at every call)."""

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
        from deepspeed.comm import comm

        for name in self.NAMES:
            if comm.cdb is not None and hasattr(comm.cdb, name):
                found = getattr(comm.cdb, name)
                setattr(
                    comm.cdb, name, self._counted(getattr(found, "uncounted", found))
                )  # not over an earlier run's counter

    def _counted(self, collective: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            tensors = [
                value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)
            ]
            if self.on:
                self.total += max(
                    (tensor.numel() * tensor.element_size() for tensor in tensors), default=0
                )
            return collective(*args, **kwargs)

        counted.uncounted = collective  # type: ignore[attr-defined]
        return counted


class RunEstimate:
    """The plan beside what the run's records say. Rank 0 writes OUT/plan.json at the start and at
    the end."""

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self._intervals: list[tuple[int, float]] = []
        self._memory = 0.0
        self._counter: BytesCounter | None = None

    def count_bytes(self) -> None:
        """Call when the engine stands."""
        self._counter = BytesCounter()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count the bytes of a step; those of checkpoints and evaluations are others."""
        if self._counter:
            self._counter.on = True
        yield
        if self._counter:
            self._counter.on = False

    def lines(self) -> list[str]:
        """For the log, before training."""
        plan = self.plan
        moments = [
            f"{size(sum(plan.state[name].values()))} {title}" for name, title in MOMENTS.items()
        ]
        lines = [
            (
                f"planned memory per rank: {size(plan.memory_bytes)} at the peak (model state:"
                f" {', '.join(moments)}; activations {size(plan.activations.total)}); each rank"
                f" hands {size(plan.bytes_per_step)} to DeepSpeed's collectives per step"
            ),
        ]
        if plan.samples_per_s == plan.samples_per_s:
            lines.append(
                f"planned: {plan.samples_per_s:,.1f} clips/s and {duration(3600 * plan.hours)} for"
                f" the whole run at MFU {plan.mfu:g} of {count(plan.peak_flops)}FLOP/s per rank"
                f" ({plan.peak_source})"
            )
        return lines

    def see(self, steps: int, seconds: float, memory: float) -> None:
        """One logging interval of this process."""
        self._intervals.append((steps, seconds))
        self._memory = max(self._memory, memory)

    def got(self) -> dict[str, float | None]:
        """What was measured, by the plan's keys; the first interval, which warms up, is left out of
        the rates if there are more."""
        plan, counted = self.plan, self._intervals[1:] or self._intervals
        steps, seconds = sum(steps for steps, _ in counted), sum(seconds for _, seconds in counted)
        if not steps:
            return {}
        step_s, flops = seconds / steps, plan.flops_per_step
        sent = (
            self._counter.total / sum(steps for steps, _ in self._intervals)
            if self._counter
            else None
        )
        if not plan.collectives:  # DeepSpeed calls them in a group of one rank too; nothing moves
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
        """OUT/plan.json, with what is known by now."""
        content = asdict(self.plan) | {"got": self.got()}
        write_atomic(out / FILE, json.dumps(_finite(content), indent=1) + "\n")

    def summary(self) -> str:
        """For the log, at the end: "planned … got …"."""
        plan, got = self.plan, self.got()
        pairs = [
            ("memory per rank", plan.memory_bytes, got.get("memory_bytes"), size),
            (
                "clips/s",
                plan.samples_per_s,
                got.get("samples_per_s"),
                lambda value: f"{value:,.1f}",
            ),
            ("MFU", plan.mfu, got.get("mfu"), lambda value: f"{value:.2f}"),
            (
                "bytes of DeepSpeed's collectives per rank and step",
                plan.bytes_per_step,
                got.get("bytes_per_step"),
                size,
            ),
            ("hours of the whole run", plan.hours, got.get("hours"), lambda value: f"{value:.2f}"),
        ]
        return "\n".join(
            f"planned {name} {show(planned)}, got {'?' if seen is None else show(seen)}"
            for name, planned, seen, show in pairs
            if planned == planned  # nothing was planned where the FLOPs are unknown
        )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value != value else value
