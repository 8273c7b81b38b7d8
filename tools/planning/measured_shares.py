"""Shares of a GPU's peak rates that a step reached, from the report of `make gpu-check`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from allinone.common.errors import InputError
from allinone.engine.planning.hardware import Device, card_named
from allinone.engine.planning.operations import totals
from allinone.model import AllInOneConfig
from allinone.pretrain.objectives.config import ObjectiveConfig
from allinone.pretrain.step_counts import Mode, Pass

MODES: tuple[Mode, ...] = ("eager", "compiled")
"""Names of checks of the speed stage, which trains on full captions without word-patch alignment,
and of the planner's counts of the same step."""


class SpeedReport(Protocol):
    """The part of a gpu_report.json that is read (tools/reporting/gpu_report.py)."""

    @property
    def device(self) -> str:
        """Name of the card."""

    @property
    def date(self) -> str:
        """ISO 8601."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the check."""

    @property
    def stages(self) -> Sequence[Any]:
        """Its stages, each with checks."""


def with_measured_shares(device: Device, report: SpeedReport) -> Device:
    """A device with the shares that follow from the traces of a report.

    A share is what was counted, FLOPs or bytes, over the time that the kernels of the kind took and
    the data sheet's rate.

    Args:
        device: The device to plan for.
        report: What `make gpu-check` wrote.

    Raises:
        InputError: The report is one of another card, or has no trace.
    """
    card = card_named(report.device, device.memory)
    if card is None or card.product != device.product:
        known = f"give --device {card.name}" if card else "its card is not a planning device"
        raise InputError(
            f"--measured: this is a report of {report.device}, but --device is {device.name};"
            f" {known}"
        )
    size, clips = report.options["size"], report.options["micro_batch"]
    model = AllInOneConfig.from_size(size)
    step = Pass(model, ObjectiveConfig(), model.num_frames)
    counted: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    for check in (check for stage in report.stages for check in stage.checks):
        kinds = check.values.get("trace", {}).get("kinds", {})
        for mode in MODES:
            if check.name == mode and kinds:
                found = totals(step.operations(clips, mode))
                counted["GEMM"] += found["GEMM"].flops
                counted["attention"] += found["attention"].flops
                counted["memory"] += found["memory-bound"].bytes
                seconds["GEMM"] += kinds.get("GEMM", 0.0) / 1e3
                seconds["attention"] += kinds.get("attention", 0.0) / 1e3
                names = ("memory-bound", "copies")
                seconds["memory"] += sum(kinds.get(name, 0.0) for name in names) / 1e3
    if not all(seconds[kind] for kind in ("GEMM", "attention", "memory")):
        raise InputError(
            "--measured: the report has no trace of a training step; run `make gpu-check` with the"
            " stage speed"
        )
    return replace(
        device,
        gemm_share=counted["GEMM"] / seconds["GEMM"] / device.rate,
        attention_share=counted["attention"] / seconds["attention"] / device.rate,
        memory_share=counted["memory"] / seconds["memory"] / device.bandwidth,
        shares_from=f"measured on {report.date[:10]}",
    )
