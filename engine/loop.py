"""The training loop: fetch, forward, backward, step; log, evaluate, save when it is time."""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.units import count, duration
from engine import checkpoint, ds_config, launch
from engine.config import ConfigError, TrainConfig, every
from engine.faults import Stopped, StopSignals, TooManySkipped, Watchdog
from engine.monitor import Monitor, memory_bytes
from engine.objective import Objective, StepModule
from engine.optimizer import SkippingAdamW, learning_rate, parameter_groups
from engine.peak import peak_rate

DIGEST_BITS = 63


class Data(Protocol):
    """What the loop asks of a stream of batches (data.TrainStream)."""

    def batches(self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device) -> Iterator[Any]: ...

    def describe(self) -> str: ...


Evaluate = Callable[[nn.Module, torch.device], Mapping[str, float]]


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    step: int
    checkpoint: Path | None
    evaluation: Mapping[str, float]


def seed_of(seed: int, position: int) -> int:
    """Seed of a micro-batch's random numbers (dropout, VTM pairs): a function of the run's seed and the position of its first clip, so that
    neither the number of ranks nor a restart changes them. splitmix64's finaliser spreads neighbouring positions."""
    z = (seed * 0x9E3779B97F4A7C15 + position + 1) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) >> 1


class Run:
    """One training run in the folder `out`; the same run started again continues.

    `run_config` is everything that the run depends on, JSON-able: saved with every checkpoint and compared at resume. `flops_per_sample` are
    training FLOPs, all passes, forward and backward, FMA = 2.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: nn.Module,
        objective: Objective,
        data: Data,
        run_config: Mapping[str, Any],
        out: Path,
        evaluate: Evaluate | None = None,
        flops_per_sample: float = 0.0,
    ) -> None:
        self.config, self.data, self.out = config, data, out
        self.run_config, self.evaluate, self.flops_per_sample = run_config, evaluate, flops_per_sample
        self.model, self._objective = model, objective
        self.place, self.device = launch.start(config.device, config.hang_timeout_s)
        self.accumulation = config.accumulation(self.place.world)
        self._ds_config = ds_config.resolve(config, self.place.world, self.device.type == "cpu")
        self.step = 0
        self.skipped = 0
        self._digest = 0
        self._bad_clips = 0
        self._sums: dict[str, Tensor] = {}
        self._skips: list[Tensor] = []
        self._recent: deque[tuple[int, list[str]]] = deque(maxlen=config.log_every)
        self._waited = 0.0

    def train(self) -> RunResult:
        """Train to the last step. Raises Stopped after a signal (saved), TooManySkipped, CheckpointError, ConfigError."""
        self._claim_folder()
        self._start_engine()
        self._resume()
        if self.step >= self.config.steps:
            self._say(f"{self.out} is done: step {self.step} of {self.config.steps}")
            return RunResult(self.step, checkpoint.newest_whole(self.out)[0], {})
        self._describe()
        signals, watchdog = StopSignals(), Watchdog(self.config.hang_timeout_s)
        self._monitor = Monitor(self.out, self.config.steps, self.step, self.config.json) if self.place.rank == 0 else None
        batches = self.data.batches(
            first=self.step * self.config.global_batch,
            rank=self.place.rank,
            world=self.place.world,
            micro_batch=self.config.micro_batch,
            device=self.device,
        )
        peak, _ = peak_rate(self.device)
        saved: Path | None = None
        results: Mapping[str, float] = {}
        self._tick = time.perf_counter()
        watchdog.alive()
        try:
            while self.step < self.config.steps:
                self._train_step(batches)
                watchdog.alive()
                stop = self._agreed(signals.received)
                if every(self.step, self.config.log_every, self.config.steps) or stop:
                    self._log(peak)
                if every(self.step, self.config.save_every, self.config.steps) or stop:
                    saved = self._save()
                if stop:
                    raise Stopped(f"{stop}: saved {saved} at step {self.step}; the same command continues")
                if self.evaluate and every(self.step, self.config.eval_every, self.config.steps):
                    results = self._evaluate()
        finally:
            watchdog.stop()
            if self._monitor:
                self._monitor.close()
        return RunResult(self.step, saved, results)

    def _train_step(self, batches: Iterator[Any]) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step + 1) * group["lr_mult"]
        clips: list[str] = []
        for _ in range(self.accumulation):
            start = time.perf_counter()
            batch = next(batches)
            self._waited += time.perf_counter() - start
            torch.manual_seed(seed_of(self.config.seed, batch.first_position))
            loss, metrics = self._engine(batch)
            self._engine.backward(loss)
            self._engine.step()
            self._add(batch, metrics)
            clips += batch.clips
        self.step += 1
        self._recent.append((self.step, clips))
        overflow = getattr(
            self._engine.optimizer, "overflow", None
        )  # DeepSpeed's own verdict, where one of its optimizers wraps ours
        skipped = self._optimizer.last_skipped if overflow is None else torch.tensor(float(overflow))
        if skipped is not None:
            self._skips.append(skipped)

    def _add(self, batch: Any, metrics: Mapping[str, Tensor]) -> None:
        self._digest = (self._digest + batch.digest) % 2**DIGEST_BITS
        self._bad_clips += len(batch.bad)
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def _claim_folder(self) -> None:
        """Refuse a folder with other content, or with a run whose options differ."""
        if self.place.rank == 0:
            self._claim()
        dist.barrier()

    def _claim(self) -> None:
        marker = self.out / "run.json"
        if marker.exists():
            changes = checkpoint.changed_options(json.loads(marker.read_text()), self.run_config)
            if changes:
                raise ConfigError(
                    f"{self.out} holds a run with other options ({'; '.join(changes)}). Give the same options to continue it, or another --out"
                )
        elif self.out.exists() and any(path.name != "bad_clips" for path in self.out.iterdir()):
            raise ConfigError(f"{self.out} is not empty and holds no run of this program; give another --out")
        from data.files import write_atomic

        write_atomic(marker, json.dumps(self.run_config, indent=1) + "\n")

    def _start_engine(self) -> None:
        import deepspeed

        if self.device.type == "cpu":  # a C++ build of minutes for an op that only inference uses
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.manual_seed(self.config.seed)
        if self.config.activation_checkpointing:
            if not hasattr(self.model, "gradient_checkpointing_enable"):
                raise ConfigError(
                    f"--activation-checkpointing: {type(self.model).__name__} cannot recompute its blocks; switch it off"
                )
            self.model.gradient_checkpointing_enable()
        if self.config.compile:
            self.model.compile()
        module = StepModule(self.model, self._objective).to(self.device)
        self._parameters = sum(parameter.numel() for parameter in module.parameters())
        self._optimizer = SkippingAdamW(parameter_groups(module, self.config.weight_decay), self.config)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=self._ds_config, dist_init_required=False
        )

    def _resume(self) -> None:
        folder, notes = checkpoint.newest_whole(self.out)
        for note in notes:
            self._say(f"warning: {note}")
        dist.barrier()
        if folder is not None:
            facts = checkpoint.load(self._engine, folder)
            self.step, self.skipped, self._digest = (
                facts["step"],
                facts["skipped"],
                facts["digest"] if self.place.rank == 0 else 0,
            )
            self._say(f"resumed from {folder}: step {self.step}, {facts['samples']:,} clips seen")

    def _describe(self) -> None:
        config, place = self.config, self.place
        assert config.micro_batch * place.world * self.accumulation == config.global_batch
        rate, source = peak_rate(self.device)
        left = (config.steps - self.step) * config.global_batch * self.flops_per_sample
        lines = [
            f"{count(self._parameters)} parameters, {count(self.flops_per_sample)}FLOPs per clip and step (FMA = 2, all "
            f"passes, forward and backward)",
            f"{config.steps:,} steps x {config.global_batch:,} clips = {config.micro_batch} per micro-batch x {place.world} ranks x "
            f"{self.accumulation} accumulated; started by {place.launcher} on {self.device.type}, {config.ds_config}",
            f"peak {count(rate)}FLOP/s per rank ({source}); at half of it the rest takes {duration(left / (0.5 * rate * place.world))}",
            self.data.describe(),
        ]
        self._say("\n".join(lines))

    def _agreed(self, received: str | None) -> str | None:
        """A signal that any rank got, known to all. Costs one small exchange between hosts per step."""
        if self.place.world == 1:
            return received
        names = (None, "SIGTERM", "SIGUSR1", "SIGINT")
        code = torch.tensor(names.index(received), device=self.device)
        dist.all_reduce(code, dist.ReduceOp.MAX)
        return names[int(code)]

    def _log(self, peak: float) -> None:
        """The one place where the host waits for the device. Sums over micro-batches, steps and ranks since the last time."""
        skips = torch.stack(self._skips).tolist() if self._skips else []
        now = time.perf_counter()
        elapsed = now - self._tick
        steps = len(self._recent)
        host = {
            "digest": self._digest,
            "bad": self._bad_clips,
            "wait": self._waited / elapsed,
            "memory": memory_bytes(self.device),
        }
        sums = {name: value.double().cpu() for name, value in self._sums.items()}
        if self.place.world > 1:
            gathered: list[Any] = [None] * self.place.world
            dist.all_gather_object(gathered, (host, sums))
        else:
            gathered = [(host, sums)]
        samples = steps * self.config.global_batch / elapsed
        self.skipped += int(sum(skips))
        total = {name: sum(part[1][name] for part in gathered) for name in sums}
        norm = self._engine.get_global_grad_norm()
        record = {
            "step": self.step,
            "samples": self.step * self.config.global_batch,
            "metrics": {name: float(value[0] / value[1].clamp(min=1)) for name, value in total.items()},
            "lr": learning_rate(self.config, self.step),
            "grad_norm": float(norm) if norm is not None else float("nan"),
            "samples_per_s": samples,
            "mfu": samples * self.flops_per_sample / (peak * self.place.world),
            "data_wait": max(part[0]["wait"] for part in gathered),
            "memory_bytes": max(part[0]["memory"] for part in gathered),
            "skipped_steps": self.skipped,
            "bad_clips": sum(part[0]["bad"] for part in gathered),
            "digest": sum(part[0]["digest"] for part in gathered) % 2**DIGEST_BITS,
            "eta_s": (self.config.steps - self.step) * self.config.global_batch / samples,
            "elapsed_s": elapsed,
        }
        self._logged_digest = record["digest"]
        if self._monitor:
            self._monitor.log(record)
            for (step, clips), skip in zip(list(self._recent)[-len(skips) :], skips, strict=False):
                if skip:
                    self._monitor.say(
                        f"warning: step {step} skipped, its gradient is not finite; clips of this rank: {', '.join(clips[:8])}"
                    )
        self._sums, self._skips, self._waited, self._tick = {}, [], 0.0, now
        self._recent.clear()
        if self.skipped > self.config.max_skipped:
            raise TooManySkipped(
                f"{self.skipped} steps had a non-finite gradient, more than --max-skipped {self.config.max_skipped}; "
                f"lower --lr, or look at the clips named above"
            )

    def _save(self) -> Path:
        if self._skips or self._sums:
            self._log(peak_rate(self.device)[0])
        facts = {
            "step": self.step,
            "samples": self.step * self.config.global_batch,
            "skipped": self.skipped,
            "digest": self._logged_digest,
            "world": self.place.world,
            "version": importlib.metadata.version("allinone-pretrain"),
            "run": self.run_config,
        }
        if self.place.rank:
            self._digest = 0
        else:
            self._digest = self._logged_digest  # the sum over ranks lives on rank 0 from here on, as after a resume
        folder = checkpoint.save(self._engine, self.model, self.out, facts)
        if self.place.rank == 0:
            checkpoint.prune(self.out, self.config.keep_last, self.config.keep_every)
        return folder

    def _evaluate(self) -> Mapping[str, float]:
        assert self.evaluate is not None
        start = time.perf_counter()
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else None):
            results = self.evaluate(self.model, self.device)
        seconds = time.perf_counter() - start
        self._tick += seconds  # evaluation is no training time
        if self._monitor:
            self._monitor.evaluation(self.step, {k: v for k, v in results.items() if math.isfinite(v)}, seconds)
        return results

    def _say(self, text: str) -> None:
        if self.place.rank == 0:
            import sys

            print(text, file=sys.stderr if self.config.json else sys.stdout, flush=True)
