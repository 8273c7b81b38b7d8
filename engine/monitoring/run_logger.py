"""What a run tells: progress line or JSON lines, history.jsonl, TensorBoard. Rank 0 only.

OUT/history.jsonl has one JSON object per line, of three kinds; numbers that are not finite are
null. Every line has `step` and `time` (Unix seconds).

- a record, one per logging interval, has `metrics`: means over the interval, all micro-batches and
  ranks. `samples` consumed so far; `lr`; `loss` and `grad_norm` of the newest step, the norm before
  clipping; `samples_per_s`, `step_s`, `mfu`, `eta_s`; `elapsed_s` of the interval without
  checkpoints and evaluations; `data_wait`, the largest share of it that a rank waited for data;
  `own_s` and `wait_s`, own work (waiting and forward pass) and waiting per step as {min, median,
  max} over ranks; `ranks`, the same per rank in a list; `slowest` {rank, host, own_s, ratio to the
  others' median}, null with one rank; `memory_bytes` of the largest rank; `skipped_steps` and
  `bad_clips` since step 0; `skipped`, the interval's skipped steps with their clips; `digest` of
  all clips and choices so far.
- an evaluation has `evaluation` {name: value} and `seconds`.
- an event has `event`: start (host, pid, ranks, hosts, launcher, slurm_job, mfu_convention, steps,
  global_batch, log_every, hang_timeout_s), checkpoint (path, bytes, seconds), damaged (problem),
  straggler (text), dossier (of_step, path, reason, verdict), stop (reason), error (reason), finish.

After a restart, records and evaluations of steps that are run again are cut; events stay: they
happened.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from allinone.common.atomic_io import write_atomic
from allinone.common.formatting import count, duration, size
from allinone.engine.config import TrainConfig
from allinone.engine.distributed.launch import RankInfo
from allinone.engine.monitoring.accumulator import IntervalMetrics
from allinone.engine.monitoring.straggler import StragglerAlarm, slowest, spread
from allinone.engine.monitoring.tensorboard import TensorBoardWriter
from allinone.engine.optim.adamw import learning_rate

HISTORY = "history.jsonl"


class RunLogger:
    """Writes one record per logging step. After a restart, records of steps that are run again are
    cut from the history."""

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        start_step: int,
        place: RankInfo,
        hosts: Sequence[str],
        flops_per_sample: float,
        peak: tuple[float, str],
    ) -> None:
        """`hosts` are those of all ranks; `peak` is a rank's rate in FLOP/s and where the figure
        comes from."""
        self._config, self._hosts, self._flops_per_sample, self._peak = (
            config,
            hosts,
            flops_per_sample,
            peak[0],
        )
        self._alarm = StragglerAlarm(config.straggler_ratio)
        self._history_path = out / HISTORY
        self._cut(start_step)
        self._history = self._history_path.open("a", encoding="utf-8")
        convention = (
            f"FMA = 2, all passes, forward and backward; 1 = {count(peak[0])}FLOP/s per rank:"
            f" {peak[1]}"
        )
        self.board = TensorBoardWriter(out / "tensorboard", start_step, convention)
        self.event(
            "start",
            start_step,
            host=socket.gethostname(),
            pid=os.getpid(),
            ranks=place.world,
            hosts=sorted(set(hosts)),
            launcher=place.launcher,
            slurm_job=os.environ.get("SLURM_JOB_ID"),
            mfu_convention=convention,
            **{
                name: getattr(config, name)
                for name in ("steps", "global_batch", "log_every", "hang_timeout_s")
            },
        )

    def _cut(self, start_step: int) -> None:
        if not self._history_path.exists():
            return
        kept = []
        for line in self._history_path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a killed run
                continue
            if row["step"] <= start_step or "event" in row:
                kept.append(line)
        write_atomic(self._history_path, "".join(f"{line}\n" for line in kept))

    def log(self, step: int, report: IntervalMetrics, elapsed_s: float, skipped_steps: int) -> None:
        """One logging interval: `elapsed_s` seconds without checkpoints and evaluations,
        `skipped_steps` since step 0."""
        record = self._record(step, report, elapsed_s, skipped_steps)
        self._write(record)
        self.board.record(record)
        lag = self._alarm.judge(slowest(record["ranks"]["own_s"], self._hosts), record["step_s"])
        if lag:
            self.event("straggler", step, text=lag)
            self.say(f"warning: {lag}")
        for skipped in record["skipped"]:
            cause = (
                "gradient not finite though the losses are; clips of the step"
                if skipped["loss_finite"]
                else "loss not finite; clips"
            )
            self.say(
                f"warning: step {skipped['step']} skipped, its {cause}:"
                f" {', '.join(skipped['clips'])}"
            )
        if self._config.json:
            print(json.dumps(finite(record)), flush=True)
            return
        losses = "  ".join(
            f"{name.removesuffix('_loss')} {value:.3f}"
            for name, value in record["metrics"].items()
            if name.endswith("_loss")
        )
        line = (
            f"step {step}/{self._config.steps}  {losses}  lr {record['lr']:.1e} "
            f" {record['samples_per_s']:.1f} clips/s  MFU {100 * record['mfu']:.0f} %  data wait"
            f" {100 * record['data_wait']:.1f} %  {size(record['memory_bytes'])}  ETA"
            f" {duration(record['eta_s'])}"
        )
        tail = [f"skipped {record['skipped_steps']}"] * bool(record["skipped_steps"]) + [
            f"bad clips {record['bad_clips']}"
        ] * bool(record["bad_clips"])
        print("  ".join([line, *tail]), flush=True)

    def _record(
        self, step: int, report: IntervalMetrics, elapsed_s: float, skipped_steps: int
    ) -> dict[str, Any]:
        config, steps = self._config, len(report.steps)
        samples_per_s = steps * config.global_batch / elapsed_s
        own_s, wait_s = (
            [round(value / steps, 6) for value in values]
            for values in (report.own_s, report.wait_s)
        )
        last = slowest(own_s, self._hosts)
        return {
            "step": step,
            "samples": step * config.global_batch,
            "metrics": report.metrics,
            "loss": report.losses[-1],
            "lr": learning_rate(config, step),
            "grad_norm": report.norms[-1],
            "samples_per_s": samples_per_s,
            "step_s": elapsed_s / steps,
            "mfu": samples_per_s * self._flops_per_sample / (self._peak * len(self._hosts)),
            "data_wait": max(report.wait_s) / elapsed_s,
            "own_s": spread(own_s),
            "wait_s": spread(wait_s),
            "ranks": {"own_s": own_s, "wait_s": wait_s},
            "slowest": None if last is None else vars(last),
            "memory_bytes": report.memory_bytes,
            "skipped_steps": skipped_steps,
            "skipped": [vars(skipped) for skipped in report.skipped],
            "bad_clips": report.bad_clips,
            "digest": report.digest,
            "eta_s": (config.steps - step) * config.global_batch / samples_per_s,
            "elapsed_s": elapsed_s,
        }

    def saved(self, step: int, folder: Path, seconds: float) -> None:
        """A checkpoint was published."""
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self.event("checkpoint", step, path=str(folder), bytes=written, seconds=seconds)

    def evaluation(self, step: int, results: Mapping[str, float], seconds: float) -> None:
        """Results of one evaluation."""
        self._write({"step": step, "evaluation": dict(results), "seconds": seconds})
        self.board.evaluation(step, results)
        if self._config.json:
            print(json.dumps({"step": step, "evaluation": results}), flush=True)
        else:
            shown = "  ".join(f"{name} {value:.1f}" for name, value in results.items())
            print(f"evaluation at step {step} ({duration(seconds)}): {shown}", flush=True)

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """Something that happened, for the history."""
        self._write({"step": step, "event": kind, **facts})

    def say(self, text: str) -> None:
        """A message for people; to stderr where stdout carries JSON."""
        print(text, file=sys.stderr if self._config.json else sys.stdout, flush=True)

    def close(self, step: int, stopped: bool, reason: BaseException | None) -> None:
        """How the run ended (`stopped`: by a signal, after saving), and flush everything."""
        try:
            kind = "finish" if reason is None else "stop" if stopped else "error"
            self.event(
                kind,
                step,
                **({} if reason is None else {"reason": f"{type(reason).__name__}: {reason}"}),
            )
            self._history.close()
            self.board.close()
        except OSError:
            if reason is None:  # else the disk that is full is most likely the reason itself
                raise

    def _write(self, record: Mapping[str, Any]) -> None:
        self._history.write(json.dumps(finite({**record, "time": round(time.time(), 3)})) + "\n")
        self._history.flush()


def memory_bytes(device: torch.device) -> int:
    """Peak allocated memory of the GPU, or resident memory of the process on a CPU."""
    return (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else psutil.Process().memory_info().rss
    )


def finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
