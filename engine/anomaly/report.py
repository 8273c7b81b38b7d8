"""A dossier on a step that went wrong, and the same micro-batches computed again.

OUT/dossiers/step-00000013/dossier.json is written in two goes, each atomic: first what was seen,
then `replay_step`. A machine that dies in the second go leaves the first, and the step is not tried
again. Nothing but the run's seed and a position is needed to make a batch and its random numbers
again. docs/monitoring.md lists the fields.

The re-run happens on the logging step that found the fault. A skipped step leaves the weights
bit-equal, so they are those of the step exactly unless a later step of the interval moved them;
`weights.updates_since` counts those. --log-every 1 makes every dossier exact.
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

from allinone.common.atomic_io import publish_dir, write_atomic
from allinone.engine import ds_config
from allinone.engine.anomaly.detector import Anomaly, AnomalyDetector
from allinone.engine.anomaly.replay import ReplayContext, means_of, over_ranks, replay_step, sums_of
from allinone.engine.config import TrainConfig
from allinone.engine.distributed import topology
from allinone.engine.distributed.collectives import run_on_rank0
from allinone.engine.monitoring.accumulator import IntervalMetrics, MicroBatchRecord
from allinone.engine.monitoring.run_logger import RunLogger, finite
from allinone.engine.objective import seed_of
from allinone.engine.optim.adamw import learning_rate

PER_INTERVAL = 2
"""Dossiers per logging interval: the third bad step in a row tells nothing new."""


def folder_of(out: Path, step: int) -> Path:
    """Where the dossier of a step lies."""
    return out / "dossiers" / f"step-{step:08d}"


def anomaly_reports(out: Path) -> list[Path]:
    """All dossiers of a run, oldest step first."""
    return sorted((out / "dossiers").glob("step-*/dossier.json"))


class AnomalyReporter:
    """Looks at every logging interval of a run and writes a dossier where a step went wrong."""

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        engine: Any,
        ds: dict[str, Any],
        batches_from: Callable[[int], Iterator[Any]],
        alive: Callable[[str], None],
    ) -> None:
        """`engine` is DeepSpeed's, `ds` its options; `batches_from` makes this rank's micro-batches
        from a step on anew; `alive` tells the watchdog."""
        self._out, self._config, self._engine, self._batches_from, self._alive = (
            out,
            config,
            engine,
            batches_from,
            alive,
        )
        self._whole_gradients = ds_config.stage(ds) < 3 and topology.current().tensor == 1
        self._suspicion = AnomalyDetector(
            config.spike_deviations, loss_scaling=ds_config.precision(ds) == "fp16"
        )

    def look_into(
        self,
        report: IntervalMetrics,
        kept: Mapping[int, Sequence[MicroBatchRecord]],
        monitor: RunLogger | None,
    ) -> None:
        """Collective. `kept` are this rank's micro-batches of the interval; `monitor` is rank
        0's."""
        if not self._config.max_dossiers:
            return
        for suspect in self._suspicion.suspects(report)[:PER_INTERVAL]:
            if not run_on_rank0(partial(self._has_room, suspect.step)):
                continue
            self._alive(f"the dossier on step {suspect.step}")
            dossier = write(self._out, suspect, kept[suspect.step], self._scene(suspect, report))
            if monitor:
                self._tell(monitor, report.steps[-1], dossier)

    def _has_room(self, step: int) -> bool:
        """One dossier per step, --max-dossiers per run."""
        return (
            not folder_of(self._out, step).exists()
            and len(anomaly_reports(self._out)) < self._config.max_dossiers
        )

    def _scene(self, suspect: Anomaly, report: IntervalMetrics) -> ReplayContext:
        device = next(self._engine.module.parameters()).device
        moved = [
            step
            for step, skip in zip(report.steps, report.skips, strict=True)
            if not skip and step >= suspect.step
        ]
        return ReplayContext(
            module=self._engine.module,
            batches_from=self._batches_from,
            seed=self._config.seed,
            lr=learning_rate(self._config, suspect.step),
            updates_since=len(moved),
            whole_gradients=self._whole_gradients,
            device=(
                str(device)
                if device.type == "cpu"
                else f"{device} {torch.cuda.get_device_name(device)}"
            ),
        )

    def _tell(self, monitor: RunLogger, step: int, dossier: dict[str, Any]) -> None:
        path, verdict = folder_of(self._out, dossier["step"]), dossier["rerun"]["verdict"]
        monitor.event(
            "dossier",
            step,
            of_step=dossier["step"],
            path=str(path),
            reason=dossier["reason"],
            verdict=verdict,
        )
        monitor.board.notes(
            dossier["step"],
            "run/dossiers",
            [f"step {dossier['step']}: {dossier['reason']}", verdict],
        )
        monitor.say(
            f"warning: step {dossier['step']}: {dossier['reason']}; {verdict} (dossier: {path})"
        )


def write(
    out: Path, suspect: Anomaly, kept: Sequence[MicroBatchRecord], scene: ReplayContext
) -> dict[str, Any]:
    """Write what was seen, compute the step again, add the verdict. Collective; returns the
    dossier."""
    mine: dict[str, Any] = {
        "rank": dist.get_rank(),
        "host": socket.gethostname(),
        "device": scene.device,
        "micro_batches": [
            {
                "position": micro.position,
                "seed": seed_of(scene.seed, micro.position),
                "clips": list(micro.clips),
                "loss": float(micro.loss),
                "metrics": means_of([micro.metrics]),
            }
            for micro in kept
        ],
    }
    ranks = topology.of_data_ranks(mine)
    dossier: dict[str, Any] = {
        "step": suspect.step,
        "reason": suspect.reason,
        "value": suspect.value,
        "usual": suspect.usual,
        "time": time.time(),
        "lr": scene.lr,
        "seed": scene.seed,
        "loss": (
            sum(m["loss"] for r in ranks for m in r["micro_batches"])
            / sum(len(r["micro_batches"]) for r in ranks)
        ),
        "objectives": over_ranks(sums_of([micro.metrics for micro in kept])),
        "ranks": ranks,
        "rerun": None,
    }
    folder = folder_of(out, suspect.step)
    run_on_rank0(
        lambda: publish_dir(folder, lambda inside: _store(inside / "dossier.json", dossier))
    )
    start = time.perf_counter()
    again = replay_step(suspect, kept, scene, dossier)
    dossier["rerun"] = {**again, "seconds": time.perf_counter() - start}
    run_on_rank0(lambda: _store(folder / "dossier.json", dossier))
    return dossier


def _store(path: Path, dossier: dict[str, Any]) -> None:
    write_atomic(path, json.dumps(finite(dossier), indent=1) + "\n")
