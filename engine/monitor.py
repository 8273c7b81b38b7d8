"""What a run tells: progress line or JSON lines, history.jsonl, TensorBoard. Rank 0 only."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from data.files import write_atomic
from data.units import duration, size


class Monitor:
    """Writes one record per logging step. After a restart, records of steps that are run again are cut from the history."""

    def __init__(self, out: Path, steps: int, start_step: int, as_json: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._steps, self._json = steps, as_json
        self._history_path = out / "history.jsonl"
        self._cut(start_step)
        self._history = self._history_path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start_step + 1)

    def _cut(self, start_step: int) -> None:
        if not self._history_path.exists():
            return
        kept = []
        for line in self._history_path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a killed run
                continue
            if row["step"] <= start_step:
                kept.append(line)
        write_atomic(self._history_path, "".join(f"{line}\n" for line in kept))

    def log(self, record: Mapping[str, Any]) -> None:
        """One record: step, metrics, rates."""
        self._write(record)
        step = record["step"]
        for skipped in record["skipped"]:
            cause = (
                "gradient not finite though the losses are; clips of the step"
                if skipped["loss_finite"]
                else "loss not finite; clips"
            )
            self.say(f"warning: step {skipped['step']} skipped, its {cause}: {', '.join(skipped['clips'])}")
        for name, value in record["metrics"].items():
            self._board.add_scalar(f"train/{name}", value, step)
        for name in ("lr", "grad_norm", "samples_per_s", "mfu", "data_wait", "memory_bytes", "skipped_steps", "bad_clips"):
            self._board.add_scalar(f"run/{name}", record[name], step)
        if self._json:
            print(json.dumps(_finite(record)), flush=True)
            return
        losses = "  ".join(
            f"{name.removesuffix('_loss')} {value:.3f}" for name, value in record["metrics"].items() if name.endswith("_loss")
        )
        line = (
            f"step {step}/{self._steps}  {losses}  lr {record['lr']:.1e}  {record['samples_per_s']:.1f} clips/s  MFU {100 * record['mfu']:.0f} %  "
            f"data wait {100 * record['data_wait']:.1f} %  {size(record['memory_bytes'])}  ETA {duration(record['eta_s'])}"
        )
        tail = [f"skipped {record['skipped_steps']}"] * bool(record["skipped_steps"]) + [
            f"bad clips {record['bad_clips']}"
        ] * bool(record["bad_clips"])
        print("  ".join([line, *tail]), flush=True)

    def evaluation(self, step: int, results: Mapping[str, float], seconds: float) -> None:
        """Results of one evaluation."""
        self._write({"step": step, "evaluation": dict(results), "seconds": seconds})
        for name, value in results.items():
            self._board.add_scalar(f"eval/{name}", value, step)
        if self._json:
            print(json.dumps({"step": step, "evaluation": results}), flush=True)
        else:
            shown = "  ".join(f"{name} {value:.1f}" for name, value in results.items())
            print(f"evaluation at step {step} ({duration(seconds)}): {shown}", flush=True)

    def say(self, text: str) -> None:
        """A message for people; to stderr where stdout carries JSON."""
        print(text, file=sys.stderr if self._json else sys.stdout, flush=True)

    def close(self) -> None:
        """Flush everything."""
        self._history.close()
        self._board.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._history.write(json.dumps(_finite(record)) + "\n")
        self._history.flush()
        self._board.flush()


def memory_bytes(device: torch.device) -> int:
    """Peak allocated memory of the GPU, or resident memory of the process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
