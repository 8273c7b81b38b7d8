"""The training loop: fetch, forward, backward, step; log, evaluate, save when it is time."""

from __future__ import annotations

import json
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from allinone.common.atomic_io import write_atomic
from allinone.common.errors import ConfigError
from allinone.common.formatting import count, duration
from allinone.engine import ds_config
from allinone.engine.anomaly.report import AnomalyReporter
from allinone.engine.checkpoint import manager, reshard
from allinone.engine.checkpoint.best import BestCheckpoint, Selection
from allinone.engine.config import TrainConfig, every
from allinone.engine.distributed import launch, topology
from allinone.engine.distributed.collectives import (
    all_gather_object,
    collective_timeout_s,
    run_on_rank0,
)
from allinone.engine.distributed.signals import (
    SignalSync,
    Stopped,
    StopSignals,
    TooManySkippedError,
)
from allinone.engine.distributed.watchdog import Watchdog
from allinone.engine.monitoring.accumulator import MetricAccumulator
from allinone.engine.monitoring.peak_flops import peak_rate
from allinone.engine.monitoring.run_logger import RunLogger, memory_bytes
from allinone.engine.monitoring.straggler import Stopwatch
from allinone.engine.objective import Objective, StepModule, seed_of
from allinone.engine.optim.adamw import (
    SkippingAdamW,
    import_muon,
    learning_rate,
    outcome,
    parameter_groups,
)
from allinone.engine.planning.estimate import Activations, RunEstimate, plan_run


class Data(Protocol):
    """What the loop asks of a stream of batches (data.TrainStream)."""

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Any]: ...

    def describe(self) -> str: ...


Evaluate = Callable[[nn.Module, torch.device], Mapping[str, float]]
Pictures = Callable[[Any], Mapping[str, NDArray[np.uint8]]]


OTHERS = frozenset({"bad_clips", "cache", "results", "predictions", "slurm"})
"""What may stand in the folder of a run before it begins."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    step: int
    checkpoint: Path | None
    evaluation: Mapping[str, float]


class Trainer:
    """One training run in the folder `out`; the same run started again continues.

    `run_config` is everything that the run depends on, JSON-able: saved with every checkpoint and
    compared at resume. `flops_per_sample` are training FLOPs, all passes, forward and backward, FMA
    = 2. Parameters whose name holds one of `head_patterns` learn at `head_lr_mult` times the rate.
    With `select`, the weights of the best evaluation are kept in OUT/best and training may stop
    early. `pictures` draws a training batch for TensorBoard, name → uint8 [H, W, 3]: rank 0's first
    one, and one at every evaluation.
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
        activations: Activations | None = None,
        head_patterns: Sequence[str] = (),
        head_lr_mult: float = 1.0,
        select: Selection | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        self.config, self.data, self.out = config, data, out
        self.run_config, self.evaluate, self.flops_per_sample = (
            run_config,
            evaluate,
            flops_per_sample,
        )
        self.model, self._objective, self._pictures = model, objective, pictures
        self._activations = activations or Activations()
        self._heads, self._head_lr_mult, self._best = (
            tuple(head_patterns),
            head_lr_mult,
            BestCheckpoint(select, out),
        )
        self.place, self.device = launch.start(
            config.device, collective_timeout_s(config.hang_timeout_s)
        )
        self.layout = topology.start(
            config.tensor_parallel, collective_timeout_s(config.hang_timeout_s)
        )
        self.accumulation = config.accumulation(self.layout.data_world)
        self._ds_config = ds_config.resolve(
            config, self.layout.data_world, self.device.type == "cpu"
        )
        self._peak = peak_rate(self.device, ds_config.precision(self._ds_config))
        self.step = 0
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._saved_at = 0
        self._tally = MetricAccumulator()
        self._forward = Stopwatch(self.device)
        self._damaged: list[str] = []
        self._monitor: RunLogger | None = None

    def train(self) -> RunResult:
        """Train to the last step. Raises Stopped after a signal (saved), TooManySkipped,
        CheckpointError, ConfigError."""
        signals, watchdog = (
            StopSignals(),
            Watchdog(self.config.hang_timeout_s, self.place.rank, self.place.world),
        )
        self._alive = partial(watchdog.alive, starting=True)  # for what opens the data anew
        try:
            self._prepare()
            if self._best.exhausted or (
                self.step >= self.config.steps and not self._evaluation_is_due()
            ):
                self._say(f"{self.out} is done: step {self.step} of {self.config.steps}")
                return RunResult(
                    self.step, run_on_rank0(lambda: manager.newest_complete(self.out)[0]), {}
                )
            return self._train_to_the_end(signals, watchdog)
        finally:
            watchdog.stop()
            signals.restore()
            if self._monitor:
                reason = sys.exception()
                self._monitor.close(self.step, isinstance(reason, Stopped), reason)

    def _prepare(self) -> None:
        run_on_rank0(self._claim_folder)
        self._start_engine()
        self._resume()
        self._agreement = SignalSync(self.config.hang_timeout_s)
        if self.step < self.config.steps or self._evaluation_is_due():
            facts = self._describe()
            self._say(facts)
            self._open_monitor(facts)

    def _train_to_the_end(self, signals: StopSignals, watchdog: Watchdog) -> RunResult:
        config = self.config
        batches = self._batches_from(self.step + 1)
        saved: Path | None = None
        results: Mapping[str, float] = {}
        first = self.step + 1
        self._tick = time.perf_counter()
        # killed between the checkpoint that it continues from and the evaluation of the same step
        if self._evaluation_is_due():
            results = self._evaluate()
        while self.step < config.steps and not self._best.exhausted:
            watchdog.alive(f"step {self.step + 1}", starting=self.step + 1 == first)
            self._train_step(batches)
            stop = self._agreement.share(signals.received)
            if every(self.step, config.log_every, config.steps) or stop:
                self._log()
            due = self.evaluate is not None and every(self.step, config.eval_every, config.steps)
            if (
                every(self.step, config.save_every, config.steps) or stop or due
            ):  # an evaluation may outlast the time limit
                watchdog.alive(f"the checkpoint of step {self.step}")
                saved = self._save()
            if stop:
                self._agreement.settle()
                raise Stopped(
                    f"{stop}: saved {saved} at step {self.step}; the same command continues"
                )
            if self._monitor and self._pictures and (due or self.step == first):
                self._monitor.board.pictures(self.step, self._pictures(self._newest))
            if due:
                watchdog.alive(f"the evaluation at step {self.step}")
                results = self._evaluate()
        self._agreement.settle()
        if self._best.exhausted and self.step > self._saved_at:
            saved = self._save()
        if self.place.rank == 0:
            self._planned.write(self.out)
        self._say(self._planned.summary())
        return RunResult(self.step, saved, results)

    def _batches_from(self, step: int) -> Iterator[Any]:
        """This rank's micro-batches from a step (1, 2, …) on."""
        config, layout = self.config, self.layout
        return self.data.batches(
            first=(step - 1) * config.global_batch,
            rank=layout.data_rank,
            world=layout.data_world,
            micro_batch=config.micro_batch,
            device=self.device,
        )

    def _train_step(self, batches: Iterator[Any]) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step + 1) * group["lr_mult"]
        for _ in range(self.accumulation):
            start = time.perf_counter()
            batch = next(batches)
            self._tally.waited_s += time.perf_counter() - start
            torch.manual_seed(seed_of(self.config.seed, batch.first_position))
            with self._planned.counting():
                with self._forward.running():
                    loss, metrics = self._engine(batch)
                self._engine.backward(loss)
                self._engine.step()
            self._tally.add(batch, loss, metrics)
        self._newest = batch
        self.step += 1
        launch.mark_training_started()
        self._tally.end_step(self.step, *outcome(self._engine, self._optimizer, self.device))

    def _claim_folder(self) -> None:
        """Refuse a folder with other content, or with a run whose options differ."""
        marker = self.out / "run.json"
        if marker.exists():
            changes = manager.changed_options(json.loads(marker.read_text()), self.run_config)
            if changes:
                raise ConfigError(
                    f"{self.out} holds a run with other options ({'; '.join(changes)}). Give the"
                    " same options to continue it, or another --out"
                )
        elif self.out.exists() and any(path.name not in OTHERS for path in self.out.iterdir()):
            raise ConfigError(
                f"{self.out} is not empty and holds no run of this program; give another --out"
            )
        write_atomic(marker, json.dumps(self.run_config, indent=1) + "\n")

    def _start_engine(self) -> None:
        import deepspeed

        if self.device.type == "cpu":  # a C++ build of minutes for an op that only inference uses
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        import_muon()
        torch.manual_seed(self.config.seed)
        if self.config.activation_checkpointing:
            if not isinstance(self.model, PreTrainedModel):
                raise ConfigError(
                    f"--activation-checkpointing: {type(self.model).__name__} cannot recompute its"
                    " blocks; switch it off"
                )
            self.model.gradient_checkpointing_enable()
        self._parameters = sum(parameter.numel() for parameter in self.model.parameters())
        mpu = None
        if self.layout.tensor > 1:
            from allinone.engine.distributed import tensor_parallel

            tensor_parallel.divide(self.model, self.layout)
            mpu = tensor_parallel.DeepSpeedView
        if self.config.compile:
            self.model.compile()
        module = StepModule(self.model, self._objective).to(self.device)
        groups = parameter_groups(module, self.config.weight_decay, self._heads, self._head_lr_mult)
        self._holds = reshard.describe(self.model, groups, self._ds_config, self.layout)
        sizes = [[parameter.numel() for parameter in group["params"]] for group in groups]
        self._planned = RunEstimate(
            plan_run(
                self.config,
                self._ds_config,
                sizes,
                self.layout,
                self.device,
                self.flops_per_sample,
                self._activations,
            )
        )
        self._optimizer = SkippingAdamW(
            groups, self.config, deciding=ds_config.clips_itself(self._ds_config)
        )
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self._optimizer,
            config=self._ds_config,
            mpu=mpu,
            dist_init_required=False,
        )
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if getattr(scaler, "raise_error_at_min_scale", False):
            scaler.raise_error_at_min_scale = False  # type: ignore[union-attr]  # how many steps may be skipped, --max-skipped says
        self._planned.count_bytes()
        self._writer = manager.StateWriter(self._engine)
        stage = ds_config.stage(self._ds_config)
        if stage in (
            1,
            2,
        ):  # the optimizer sees partitions; DeepSpeed has the norm of all before the first
            self._optimizer.norm_of = lambda: self._engine.optimizer._global_grad_norm
        elif stage == 0 and self.layout.tensor > 1:  # the optimizer sees this rank's parts
            self._optimizer.norm_of = lambda: tensor_parallel.gradient_norm(
                list(module.parameters()), self.layout
            )

    def _resume(self) -> None:
        folder, notes = run_on_rank0(lambda: manager.newest_for_resume(self.out))
        self._damaged = notes
        for note in notes:
            self._say(f"warning: {note}")
        if folder is None:
            return
        facts, changed = manager.load(self._engine, self.model, folder, self._holds)
        self.step, self.skipped, self._skipped_in_a_row = (
            facts["step"],
            facts["skipped"],
            facts["skipped_in_a_row"],
        )
        self._saved_at = self.step
        self._best.restore(facts.get("best"), self.step)
        self._continue_sums(facts["digest"], facts["bad_clips"])
        moved = f"; its state was divided anew: {changed}" if changed else ""
        self._say(
            f"resumed from {folder}: step {self.step}, {facts['samples']:,} clips seen{moved}"
        )

    def _continue_sums(self, digest: int, bad_clips: int) -> None:
        """Sums over all ranks and past steps live on rank 0 from a checkpoint on, in this process
        as in one that resumes from it."""
        first = self.place.rank == 0
        self._tally.digest, self._tally.bad_clips = (digest, bad_clips) if first else (0, 0)

    def _describe(self) -> str:
        config, place, data_world = self.config, self.place, self.layout.data_world
        assert config.micro_batch * data_world * self.accumulation == config.global_batch
        rate, source = self._peak
        left = (config.steps - self.step) * config.global_batch * self.flops_per_sample
        lines = [
            (
                f"{count(self._parameters)} parameters, {count(self.flops_per_sample)}FLOPs per"
                " clip and step (FMA = 2, all passes, forward and backward)"
            ),
            (
                f"{config.steps:,} steps x {config.global_batch:,} clips = {config.micro_batch} per"
                f" micro-batch x {data_world}"
                f" {'ranks' if self.layout.tensor == 1 else f'groups of {self.layout.tensor} tensor-parallel ranks'}"
                f" x {self.accumulation} accumulated; started by {place.launcher} on"
                f" {self.device.type}, {config.ds_config}"
            ),
            (
                f"peak {count(rate)}FLOP/s per rank ({source}); at half of it the rest takes"
                f" {duration(left / (0.5 * rate * place.world))}"
            ),
        ]
        lines += self._planned.lines()
        lines.append(self.data.describe())
        return "\n".join(lines)

    def _open_monitor(self, facts: str) -> None:
        """Begin the history and TensorBoard on rank 0."""
        hosts = all_gather_object(socket.gethostname())
        self._dossiers = AnomalyReporter(
            self.out, self.config, self._engine, self._ds_config, self._batches_from, self._alive
        )
        if self.place.rank == 0:
            self._planned.write(self.out)
            self._monitor = RunLogger(
                self.out,
                self.config,
                self.step,
                self.place,
                hosts,
                self.flops_per_sample,
                self._peak,
            )
            self._monitor.board.describe(self.run_config, facts, self.step)
            for note in self._damaged:
                self._monitor.event("damaged", self.step, problem=note)

    def _log(self) -> None:
        """The one place where the host waits for the device. Sums over micro-batches, steps and
        ranks since the last time."""
        report = self._tally.collect(memory_bytes(self.device), self._forward.take())
        now = time.perf_counter()
        elapsed, self._tick = now - self._tick, now
        self._count_skips(report.skips)
        self._planned.see(len(report.steps), elapsed, report.memory_bytes)
        if self._monitor:
            self._monitor.log(self.step, report, elapsed, self.skipped)
        self._dossiers.look_into(report, self._tally.kept, self._monitor)
        self._tick += time.perf_counter() - now  # nor are these training time
        if self._skipped_in_a_row > self.config.max_skipped:
            raise TooManySkippedError(
                f"{self._skipped_in_a_row} steps in a row had a non-finite gradient, more than"
                f" --max-skipped {self.config.max_skipped}; lower --lr, or look at the clips named"
                " above"
            )
        self._logged = report

    def _count_skips(self, skips: list[bool]) -> None:
        for skip in skips:
            self.skipped += skip
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if skip else 0

    def _save(self) -> Path:
        if len(self._tally):
            self._log()
        start = time.perf_counter()
        digest, bad_clips = self._logged.digest, self._logged.bad_clips
        facts = self._facts() | {
            "digest": digest,
            "bad_clips": bad_clips,
            "best": self._best.state(),
        }
        folder = manager.save(self._engine, self._writer, self.model, self.out, facts, self._holds)
        self._saved_at = self.step
        self._continue_sums(digest, bad_clips)
        if self.place.rank == 0:
            manager.prune(self.out, self.config.keep_last, self.config.keep_every)
        if self._monitor:
            self._monitor.saved(self.step, folder, time.perf_counter() - start)
        self._tick += time.perf_counter() - start  # writing is no training time
        return folder

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples": self.step * self.config.global_batch,
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "world": self.place.world,
            "code": manager.code_version() if self.place.rank == 0 else {},
            "run": self.run_config,
        }

    def _evaluation_is_due(self) -> bool:
        asked = self.evaluate is not None and every(
            self.step, self.config.eval_every, self.config.steps
        )
        return asked and self._best.lacks(self.step)

    def _evaluate(self) -> Mapping[str, float]:
        assert self.evaluate is not None
        start = time.perf_counter()
        self.model.eval()
        with (
            torch.random.fork_rng(devices=[] if self.device.type == "cpu" else [self.device]),
            torch.no_grad(),
        ):
            results = self.evaluate(self.model, self.device)
        self.model.train()
        seconds = time.perf_counter() - start
        self._tick += seconds  # evaluation is no training time
        if self._monitor:
            self._monitor.evaluation(
                self.step, {k: v for k, v in results.items() if math.isfinite(v)}, seconds
            )
        if self._best.judge(self.step, results):
            manager.save_best(self.model, self._engine.optimizer, self.out, self._facts())
            self._say(str(self._best))
        if self.place.rank == 0:
            self._best.remember()
        return results

    def _say(self, text: str) -> None:
        if self.place.rank == 0:
            print(text, file=sys.stderr if self.config.json else sys.stdout, flush=True)
