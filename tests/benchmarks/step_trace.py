"""A profiler's trace of a few training steps, summed by kind of work."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

TRACED_STEPS = 3
LONGEST = 12
"""Names that a summary lists."""
KERNELS = (
    ("communication", ("nccl",)),
    ("copies", ("memcpy", "memset")),
    # before GEMM: fmha_cutlassF is attention
    ("attention", ("flash", "fmha", "attention", "sdpa")),
    ("optimizer", ("adam", "multi_tensor_apply")),
    # nvjet: cuBLAS on Hopper; triton_tem: inductor's matrix products
    ("GEMM", ("gemm", "gemv", "nvjet", "cutlass", "xmma", "splitk", "conv", "triton_tem")),
)
"""Kind → parts of the names of CUDA kernels, in lower case; the first that fits counts."""
OPERATORS = (
    ("communication", ("c10d::", "gloo:", "nccl:")),
    ("attention", ("scaled_dot_product", "flash_attention")),
    ("optimizer", ("fused_adam", "optimizer.step")),
    ("GEMM", ("aten::addmm", "aten::mm", "aten::bmm", "mkldnn_convolution", "convolution")),
    ("copies", ("aten::copy_", "aten::clone")),
    ("memory-bound", ("aten::",)),
)
"""The same for operators of a CPU; names that fit nowhere are Python's and DeepSpeed's own."""


class StepTrace:
    """Profiles from its creation until `stop`.

    Args:
        device: Device of the training.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds = 0.0
        activities = [ProfilerActivity.CPU]
        if self.on_gpu:
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.synchronize(device)
        self._device = device
        self.profiler = profile(activities=activities)
        self.profiler.start()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End the trace after the device has finished its work."""
        if self.on_gpu:
            torch.cuda.synchronize(self._device)
        self.seconds = time.perf_counter() - self._start
        self.profiler.stop()


@dataclass(frozen=True)
class TraceSummary:
    """Time of a step by kind of work; all times are milliseconds per step."""

    step_ms: float
    """Wall-clock time, profiling included."""
    kinds: dict[str, float]
    """Kind → time. On a GPU kernels count, and `idle` is the time without any kernel. On a CPU
    operators count, and `other` is what is left of the wall-clock time."""
    attention: dict[str, float]
    """Kernel or operator of attention → time."""
    longest: list[tuple[str, float, float]]
    """(name, time, calls per step) of what takes longest."""
    launches: float
    """Kernels, or operators with time of their own, per step."""


def kind_of(name: str, on_gpu: bool) -> str:
    """Kind of work of a CUDA kernel or a CPU operator."""
    lower = name.lower()
    for kind, parts in KERNELS if on_gpu else OPERATORS:
        if any(part in lower for part in parts):
            return kind
    return "memory-bound" if on_gpu else "other"


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def summarize(trace: StepTrace) -> TraceSummary:
    """Sum a stopped trace by kind."""
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    intervals: list[tuple[float, float]] = []
    wanted = DeviceType.CUDA if trace.on_gpu else DeviceType.CPU
    for event in trace.profiler.events() or ():
        # annotations span the kernels inside them and would count them twice
        if event.device_type != wanted or event.is_user_annotation:
            continue
        # microseconds
        time_us = _device_us(event, intervals) if trace.on_gpu else event.self_cpu_time_total
        spent[event.name] += time_us
        calls[event.name] += 1
    return _summary(trace, spent, calls, covered(intervals))


def _device_us(event: Any, intervals: list[tuple[float, float]]) -> float:
    intervals.append((event.time_range.start, event.time_range.end))
    return event.time_range.end - event.time_range.start


def _summary(
    trace: StepTrace, spent: Counter[str], calls: Counter[str], busy_us: float
) -> TraceSummary:
    def per_step(microseconds: float) -> float:
        return microseconds / 1e3 / TRACED_STEPS

    step_ms = 1e3 * trace.seconds / TRACED_STEPS
    kinds: Counter[str] = Counter()
    for name, microseconds in spent.items():
        kinds[kind_of(name, trace.on_gpu)] += per_step(microseconds)
    if trace.on_gpu:
        kinds["idle"] = max(0.0, step_ms - per_step(busy_us))
    else:
        kinds["other"] = max(0.0, step_ms - sum(kinds.values()) + kinds["other"])
    return TraceSummary(
        step_ms=step_ms,
        kinds=dict(kinds.most_common()),
        attention={
            name: per_step(microseconds)
            for name, microseconds in spent.most_common()
            if kind_of(name, trace.on_gpu) == "attention"
        },
        longest=[
            (name, per_step(microseconds), calls[name] / TRACED_STEPS)
            for name, microseconds in spent.most_common(LONGEST)
        ],
        launches=sum(calls[name] for name in spent if spent[name]) / TRACED_STEPS,
    )
