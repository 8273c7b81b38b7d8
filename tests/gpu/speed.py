"""Stage (d): speed and memory of the training step, measured by tests/benchmarks/train_step.py."""

from __future__ import annotations

import gc
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from allinone.common.formatting import size
from tests.benchmarks.train_step import StepOptions, StepResult, measure
from tests.gpu.stage import CheckFn, Found, Settings, Skip

LOG_EVERY = 10
MEMORY_MARGIN = 0.05
"""Share of the planned memory by which the measured one may exceed it."""


def checks(settings: Settings) -> dict[str, CheckFn]:
    """The checks of the stage; the base configuration first, in case time runs out."""
    cases: dict[str, dict[str, Any]] = {
        "eager": {"trace": True},
        "compiled": {"compile": True, "trace": True},
        "eager, WPA": {"wpa": 0.1, "trace": True},
        "compiled, WPA": {"compile": True, "wpa": 0.1, "trace": True},
        "ZeRO 0": {"ds_config": "zero0_bf16"},
        "ZeRO 2": {"ds_config": "zero2_bf16"},
        "ZeRO 3": {"ds_config": "zero3_bf16"},
        "ZeRO 2, optimizer on the host": {"ds_config": "zero2_offload_cpu_bf16"},
        "fp16": {"ds_config": "zero1_fp16"},
    }
    return {name: partial(case, settings, **options) for name, options in cases.items()}


def case(settings: Settings, **options: Any) -> Found:
    """Measure one configuration.

    Args:
        settings: Size, micro-batch and steps.
        **options: Fields of StepOptions that differ from the base configuration.
    """
    chosen = {"ds_config": "zero1_bf16", **options}
    if chosen.get("compile") and not settings.compile:
        raise Skip("nothing is compiled on a CPU without --compile on: it takes minutes")
    if chosen["ds_config"].endswith("fp16") and not settings.on_gpu:
        raise Skip("DeepSpeed does not train in fp16 on a CPU")
    gc.collect()
    if chosen.get("compile"):  # importing the compiler takes seconds
        torch._dynamo.reset()
    before = 0
    if settings.on_gpu:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
    result = measure(
        StepOptions(
            size=settings.size,
            micro_batch=settings.micro_batch,
            steps=settings.steps,
            log_every=min(LOG_EVERY, max(1, settings.steps // 3)),
            device=settings.device,
            **chosen,
        )
    )
    return _found(settings, result, before)


def _found(settings: Settings, result: StepResult, before: int) -> Found:
    """The result in a line; a problem if memory exceeds the plan or a loss is not finite.

    Args:
        settings: Device.
        result: Measurements.
        before: Bytes that the process held before, which earlier cases have left.
    """
    memory = result.memory_bytes - before
    over = settings.on_gpu and memory > (1 + MEMORY_MARGIN) * result.planned_bytes
    finite = all(abs(loss) < float("inf") for loss in result.losses)
    kinds = ", ".join(f"{kind} {time:.1f}" for kind, time in result.trace.get("kinds", {}).items())
    text = (
        f"{result.clips_per_s:.1f} clips/s, {result.step_ms:.1f} ms per step,"
        f" {result.planned_ms:.1f} planned, MFU"
        f" {100 * result.mfu:.1f} % ({100 * result.mfu_without_attention:.1f} % without attention"
        f" products), {size(memory)} of {size(result.planned_bytes)} planned"
    )
    if kinds:
        text += f"; ms by kind: {kinds}"
    if over:
        text = f"more memory than planned: {text}"
    if not finite:
        text = f"a loss is not finite: {text}"
    values = asdict(result) | {"memory_before": before}
    return Found(text, values, problem=over or not finite, measured=True)
