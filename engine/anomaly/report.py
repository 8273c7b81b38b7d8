"""Writes a report on a step that went wrong, and replays the step.

OUT/anomalies/step-00000013/report.json is written twice, each time atomically: first with what was
observed, then with the result of `replay_step`. If the machine dies during the replay, the first
version remains, and the step is not replayed again. Nothing but the run's seed and a position is
needed to recreate a batch and its random numbers. docs/monitoring.md lists the fields.

The replay happens on the logging step that found the anomaly. A skipped step leaves the weights
bit-equal, so they are exactly those of the step unless a later step of the interval changed them;
`weights.updates_since` counts those. --log-every 1 makes the replay of every skipped step exact.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from allinone.common.atomic_io import publish_dir, write_atomic
from allinone.common.formatting import finite
from allinone.common.write_guard import WriteGuard
from allinone.engine import ds_config
from allinone.engine.anomaly.detector import Anomaly, AnomalyDetector
from allinone.engine.anomaly.replay import (
    ReplayContext,
    means_of,
    means_over_ranks,
    replay_step,
    sums_of,
)
from allinone.engine.config import TrainConfig
from allinone.engine.distributed import topology
from allinone.engine.distributed.collectives import run_on_rank0
from allinone.engine.monitoring.accumulator import IntervalMetrics, MicroBatchRecord
from allinone.engine.objective import seed_of
from allinone.engine.optim.schedule import learning_rate

PER_INTERVAL = 2
"""Reports per logging interval: a third bad step in a row adds no information."""
FOLDER, FILE = "anomalies", "report.json"
FORMER_FOLDER, FORMER_FILE = "dossiers", "dossier.json"
"""Names in runs of earlier versions."""


def report_folder(out: Path, step: int) -> Path:
    """Folder of the report on a step."""
    return out / FOLDER / f"step-{step:08d}"


def anomaly_reports(out: Path) -> list[Path]:
    """All reports of a run in order of steps, those of earlier versions too."""
    found = [
        *(out / FOLDER).glob(f"step-*/{FILE}"),
        *(out / FORMER_FOLDER).glob(f"step-*/{FORMER_FILE}"),
    ]
    return sorted(found, key=lambda path: path.parent.name)


class AnomalyReporter:
    """Checks every logging interval of a run and reports its anomalies.

    Args:
        out: The run's folder.
        config: Thresholds and limits.
        module: The module that DeepSpeed drives, without its engine.
        ds: DeepSpeed's options.
        batches_from: Returns this rank's micro-batches from a step on, recreated.
        begin_activity: Tells the watchdog what comes next.
    """

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        *,
        module: nn.Module,
        ds: Mapping[str, Any],
        batches_from: Callable[[int], Iterator[Any]],
        begin_activity: Callable[[str], None],
    ) -> None:
        self._out, self._config, self._module = out, config, module
        self._batches_from, self._begin_activity = batches_from, begin_activity
        # under ZeRO 3 and tensor parallelism a rank holds only parts of a layer
        self._full_gradients = ds_config.stage(ds) < 3 and topology.current().tensor == 1
        self._detector = AnomalyDetector(
            config.spike_deviations, loss_scaling=ds_config.precision(ds) == "fp16"
        )

    def check(
        self, interval: IntervalMetrics, records: Mapping[int, Sequence[MicroBatchRecord]]
    ) -> list[dict[str, Any]]:
        """Report the anomalies of a logging interval; collective.

        Args:
            interval: Metrics over all ranks.
            records: Step → this rank's micro-batches.

        Returns:
            The reports written, equal on all ranks.
        """
        if not self._config.max_anomaly_reports:
            return []
        reports = []
        # the limit applies after the check, because the detector's windows need every step
        warmup = self._config.warmup_steps()
        # in warm-up, losses and gradients change by factors: a spike there is no news
        found = [
            anomaly
            for anomaly in self._detector.check(interval)
            if anomaly.step > warmup or not anomaly.usual
        ]
        for anomaly in found[:PER_INTERVAL]:
            # rank 0 decides: on a network disk, others may not see its last report yet
            if run_on_rank0(partial(self._may_report, anomaly.step)):
                self._begin_activity(f"the replay of step {anomaly.step}")
                context = self._context(anomaly, interval)
                reports.append(write_report(self._out, anomaly, records[anomaly.step], context))
        return reports

    def _may_report(self, step: int) -> bool:
        """One report per step, --max-anomaly-reports per run."""
        reported = anomaly_reports(self._out)
        folder = report_folder(self._out, step)
        if folder.exists() or folder.name in {path.parent.name for path in reported}:
            return False
        return len(reported) < self._config.max_anomaly_reports

    def _context(self, anomaly: Anomaly, interval: IntervalMetrics) -> ReplayContext:
        device = next(self._module.parameters()).device
        updates = [
            step
            for step, skip in zip(interval.steps, interval.skips, strict=True)
            if not skip and step >= anomaly.step
        ]
        name = "" if device.type == "cpu" else f" {torch.cuda.get_device_name(device)}"
        return ReplayContext(
            module=self._module,
            batches_from=self._batches_from,
            seed=self._config.seed,
            lr=learning_rate(self._config, anomaly.step),
            updates_since=len(updates),
            full_gradients=self._full_gradients,
            device=f"{device}{name}",
        )


def write_report(
    out: Path, anomaly: Anomaly, records: Sequence[MicroBatchRecord], context: ReplayContext
) -> dict[str, Any]:
    """Write what was observed, replay the step, add the verdict; collective.

    Args:
        out: The run's folder.
        anomaly: What was found.
        records: This rank's micro-batches of the step.
        context: What the replay needs.

    Returns:
        The report.
    """
    mine: dict[str, Any] = {
        "rank": dist.get_rank(),
        "host": socket.gethostname(),
        "device": context.device,
        "micro_batches": [
            {
                "position": micro.position,
                "seed": seed_of(context.seed, micro.position),
                "clips": list(micro.clips),
                "loss": float(micro.loss),
                "metrics": means_of([micro.metrics]),
            }
            for micro in records
        ],
    }
    # without the repetitions of tensor parallelism, whose ranks read the same clips
    ranks = topology.of_data_ranks(mine)
    losses = [micro["loss"] for rank in ranks for micro in rank["micro_batches"]]
    report: dict[str, Any] = {
        "step": anomaly.step,
        "reason": anomaly.reason,
        "value": anomaly.value,
        "usual": anomaly.usual,
        "time": time.time(),
        "lr": context.lr,
        "seed": context.seed,
        "loss": sum(losses) / len(losses),
        "objectives": means_over_ranks(sums_of([micro.metrics for micro in records])),
        "ranks": ranks,
        "replay": None,
    }
    folder = report_folder(out, anomaly.step)
    # before the replay, which may end the process: then this version remains, and `_may_report`
    # keeps a restart from replaying the step again
    guard = WriteGuard(folder)

    def store() -> None:
        with guard():
            if folder.exists():
                _store(folder / FILE, report)
            else:
                publish_dir(folder, lambda inside: _store(inside / FILE, report))

    run_on_rank0(store)
    start = time.perf_counter()
    replay = replay_step(anomaly, records, context, report)
    report["replay"] = {**replay, "seconds": time.perf_counter() - start}
    run_on_rank0(store)
    return report


def _store(path: Path, report: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(finite(report), indent=1) + "\n")
