"""history.jsonl: the records, evaluations and events of a run, written by rank 0.

OUT/history.jsonl has one JSON object per line, of three kinds. Every line has `step` and `time`
(Unix seconds); non-finite numbers are null. docs/monitoring.md describes every key.

- A record, one per logging interval, has `metrics`: means over the interval, all micro-batches and
  ranks. `samples` consumed so far; `lr`; `loss` and `grad_norm` of the newest step, the norm before
  clipping; `clip_norm`, the limit of clipping, or 1 without, and `clip_rate`, the share of the
  interval's steps with a larger norm, skipped steps aside; `samples_per_s`, `step_s`, `mfu`,
  `eta_s`; `elapsed_s` of the interval without checkpoints and evaluations; `data_wait`, the largest
  share of it that a rank waited for data; `own_s` and `wait_s`, own work (waiting and forward pass)
  and waiting per step as {min, median, max} over ranks; `ranks`, the same per rank in a list;
  `slowest` {rank, host, own_s, ratio to the others' median}, null with one rank; `memory_bytes` of
  the largest rank; `skipped_steps` and `bad_clips` since step 0; `skipped`, the interval's skipped
  steps with their clips; `digest` of all clips and choices so far.
- An evaluation has `evaluation` {name: value} and `seconds`.
- An event has `event`: start (host, pid, ranks, hosts, launcher, slurm_job, mfu_convention, steps,
  global_batch, log_every, hang_timeout_s), checkpoint (path, bytes, seconds), damaged (problem),
  straggler (text), anomaly_report (of_step, path, reason, verdict; "dossier" in earlier versions),
  stop (reason), error (reason), finish.

After a restart, records and evaluations of steps that are run again are removed; events stay. A
write that failed in its middle leaves a part of a line: readers leave out what is no object.
"""

from __future__ import annotations

import contextlib
import json
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import psutil
import torch

from allinone.common.atomic_io import write_atomic
from allinone.common.formatting import count, finite
from allinone.common.json_text import parse_json
from allinone.engine.config import TrainConfig
from allinone.engine.monitoring.accumulator import IntervalMetrics
from allinone.engine.monitoring.straggler import slowest, spread
from allinone.engine.optim.schedule import learning_rate

log = logging.getLogger(__name__)

HISTORY = "history.jsonl"
KEPT = 1000
"""Lines that wait for a disturbed disk; with more, the oldest are lost."""
REFERENCE_NORM = 1.0
"""Gradient norm that `clip_rate` refers to in a run without clipping.

It is the default of --clip-grad, so that the log shows what clipping would change."""


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history.jsonl, without lines that a killed run or a bad disk has damaged.

    Raises:
        OSError: The file is missing or cannot be read.
    """
    rows = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            rows.append(parse_json(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


class HistoryWriter:
    """Appends lines to history.jsonl.

    A line that cannot be written is kept, up to KEPT of them, and written with the next one. The
    file is opened again after each failure: a network disk may have lost the handle (ESTALE).

    Args:
        folder: The run's folder.
        start_step: Records and evaluations of later steps are removed before the first line.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        self.path = folder / HISTORY
        self._start_step = start_step
        self._truncated = False
        self._unwritten: deque[str] = deque(maxlen=KEPT)
        self._torn = False
        """Whether the file may end in a part of a line."""
        self._file: FileIO | None = None

    def _truncate(self) -> None:
        if not self.path.exists():
            return
        kept, damaged = [], 0
        lines = self.path.read_bytes().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                # from step 0, nothing is kept: the evaluation before the first step is repeated
                keep = 0 <= row["step"] <= (self._start_step or -1) or "event" in row
            except (ValueError, TypeError, LookupError, RecursionError):
                damaged += number < len(lines)  # the last line of a killed run is cut off
                continue
            if keep:
                kept.append(line)
        if damaged:
            log.warning("%s: %d damaged lines are removed", self.path, damaged)
        write_atomic(self.path, b"".join(line + b"\n" for line in kept))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line with the current time; raises OSError if it must wait."""
        self._unwritten.append(json.dumps(finite({**line, "time": round(time.time(), 3)})))
        try:
            self._write_all()
        except OSError:
            self.close()
            raise

    def _write_all(self) -> None:
        if not self._truncated:
            self._truncate()
            self._truncated = True
        if self._file is None:
            self._file = FileIO(self.path, "a")
        text = "\n" * self._torn + "".join(f"{line}\n" for line in self._unwritten)
        # at once: tools/watch.py follows the file while the run writes it
        rest = memoryview(text.encode())
        while rest:
            rest = rest[self._file.write(rest) :]
            self._torn = bool(rest)
        self._unwritten.clear()

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


@dataclass(frozen=True)
class RecordBuilder:
    """Turns interval metrics into the records of history.jsonl."""

    config: TrainConfig
    hosts: Sequence[str]
    """Host name of each rank."""
    flops_per_sample: float
    peak: tuple[float, str]
    """Peak FLOP/s of one rank, and its source."""
    flops_at: Callable[[int], float] | None = None
    """FLOPs per sample of a step, where they differ between steps."""

    @property
    def mfu_convention(self) -> str:
        """What an MFU of 1 means."""
        return (
            f"FMA = 2, all passes, forward and backward; 1 = {count(self.peak[0])}FLOP/s per rank:"
            f" {self.peak[1]}"
        )

    def build(
        self,
        step: int,
        metrics: IntervalMetrics,
        elapsed_s: float,
        skipped_steps: int,
        lr_multiples: Sequence[float] = (1.0,),
    ) -> dict[str, Any]:
        """The record of one logging interval.

        Args:
            step: Its last step.
            metrics: Sums over ranks.
            elapsed_s: Training time of the interval, seconds.
            skipped_steps: Skipped steps since step 0.
            lr_multiples: Of the parameter groups, without repeats.
        """
        rate = learning_rate(self.config, step)
        rates = {f"x{multiple:.4g}": multiple * rate for multiple in lr_multiples}
        config, steps = self.config, len(metrics.steps)
        samples_per_s = steps * config.global_batch / elapsed_s
        # microseconds are enough: every line holds one number per rank
        own_s = [round(value / steps, 6) for value in metrics.own_s]
        wait_s = [round(value / steps, 6) for value in metrics.wait_s]
        last = slowest(own_s, self.hosts)
        flops = self.flops_per_sample
        if self.flops_at is not None:
            flops = statistics.fmean(map(self.flops_at, metrics.steps))
        clip_norm = config.clip_grad or REFERENCE_NORM
        mfu = samples_per_s * flops / (self.peak[0] * len(self.hosts))
        return {
            "step": step,
            "samples": step * config.global_batch,
            "metrics": metrics.metrics,
            "loss": metrics.losses[-1],
            "lr": rate,
            **({"lr_groups": rates} if len(rates) > 1 else {}),
            "grad_norm": metrics.norms[-1],
            "clip_norm": clip_norm,
            "clip_rate": _share_above(clip_norm, metrics),
            "samples_per_s": samples_per_s,
            "step_s": elapsed_s / steps,
            # above 1, the peak was measured too low, on a CPU that others used: it says nothing
            "mfu": mfu if mfu <= 1 else float("nan"),
            "data_wait": max(metrics.wait_s) / elapsed_s,
            "own_s": spread(own_s),
            "wait_s": spread(wait_s),
            "ranks": {"own_s": own_s, "wait_s": wait_s},
            "slowest": None if last is None else vars(last),
            "memory_bytes": metrics.memory_bytes,
            "skipped_steps": skipped_steps,
            "skipped": [vars(skipped) for skipped in metrics.skipped],
            "bad_clips": metrics.bad_clips,
            "digest": metrics.digest,
            "eta_s": (config.steps - step) * config.global_batch / samples_per_s,
            "elapsed_s": elapsed_s,
        }


def _share_above(limit: float, metrics: IntervalMetrics) -> float:
    """Share of the steps, skipped ones aside, whose gradient norm exceeds a limit; else nan."""
    above = [
        norm > limit for norm, skip in zip(metrics.norms, metrics.skips, strict=True) if not skip
    ]
    return sum(above) / len(above) if above else float("nan")


def memory_bytes(device: torch.device) -> int:
    """Peak allocated memory of a GPU, or resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss
