"""The trainer: one loop of steps; everything else takes part by callbacks (engine/callbacks)."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from allinone.common import run_lock
from allinone.common.formatting import count, duration
from allinone.engine import ds_config, resume
from allinone.engine.callbacks.alarms import (
    AnomalyCallback,
    SkippedStepsCallback,
    StragglerCallback,
)
from allinone.engine.callbacks.base import Callback, Due, Interval
from allinone.engine.callbacks.checkpoint import CheckpointCallback
from allinone.engine.callbacks.evaluation import EvaluationCallback
from allinone.engine.callbacks.garbage import GarbageCallback
from allinone.engine.callbacks.loggers import TensorBoardCallback, TrackerCallback
from allinone.engine.callbacks.reporting import (
    HistoryCallback,
    PlanCallback,
    ProgressCallback,
)
from allinone.engine.checkpoint import manager, reshard
from allinone.engine.checkpoint.best import Selection
from allinone.engine.checkpoint.manifest import newest_complete
from allinone.engine.checkpoint.weight_average import describe_average
from allinone.engine.config import TrainConfig, every
from allinone.engine.distributed import launch, topology
from allinone.engine.distributed.collectives import (
    all_gather_object,
    collective_timeout_s,
    run_on_rank0,
)
from allinone.engine.distributed.signals import RunInterrupted, SignalSync, StopSignals
from allinone.engine.distributed.watchdog import Watchdog
from allinone.engine.monitoring.accumulator import MetricAccumulator
from allinone.engine.monitoring.history import RecordBuilder, memory_bytes
from allinone.engine.monitoring.loggers import require_installed
from allinone.engine.monitoring.stopwatch import Stopwatch
from allinone.engine.objective import ObjectiveFn, seed_of
from allinone.engine.optim.adamw import LrScale
from allinone.engine.planning.memory import Activations
from allinone.engine.planning.peak_flops import peak_rate
from allinone.engine.planning.step_time import CountedSteps
from allinone.engine.run_spec import Data, Evaluate, Pictures, RunSpec
from allinone.engine.state import TrainState
from allinone.engine.step_batches import StepBatches
from allinone.engine.training_engine import TrainingEngine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    step: int
    checkpoint: Path | None
    evaluation: Mapping[str, float]


class Trainer:
    """One training run; the same run started again in the same folder continues.

    Args:
        config: Training options.
        model: The model; equal on all ranks.
        objective: Computes the loss of a micro-batch.
        data: The stream of batches.
        run_config: Everything that the run depends on, as JSON values; saved with every checkpoint
            and compared when a run is resumed.
        out: The run's folder.
        evaluate: (model, device) → name → value; called every --eval-every steps and at the end.
        flops_per_sample: Training FLOPs per clip: all passes, forward and backward, FMA = 2.
        flops_at: The same of a step by its number (1, 2, ...), where steps differ; its average is
            `flops_per_sample`.
        activations: Bytes that autograd keeps per micro-batch, for the plan.
        counted: Operations of the steps, for the plan; None: its MFU is assumed.
        head_patterns: Parameters whose name contains one of these are heads.
        head_lr_mult: Multiplier of the learning rate of heads.
        lr_scale: Further multiplier by parameter name, such as layer-wise decay; None: 1.
        select: Keep the weights of the best evaluation in OUT/best, and stop early if it says so.
        pictures: Draws a training batch for TensorBoard, name → uint8 [H, W, 3].
        chance: Name of a score of `evaluate` → its expectation for a model that guesses, for the
            log. Read after each evaluation, which may fill it.

    Raises:
        ConfigError: Options contradict each other, the ranks or the machine.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: nn.Module,
        objective: ObjectiveFn,
        data: Data,
        run_config: Mapping[str, Any],
        out: Path,
        evaluate: Evaluate | None = None,
        flops_per_sample: float = 0.0,
        flops_at: Callable[[int], float] | None = None,
        activations: Activations | None = None,
        counted: CountedSteps | None = None,
        head_patterns: Sequence[str] = (),
        head_lr_mult: float = 1.0,
        lr_scale: LrScale | None = None,
        select: Selection | None = None,
        pictures: Pictures | None = None,
        chance: Mapping[str, float] | None = None,
    ) -> None:
        self.config = config
        self.spec = RunSpec(
            model=model,
            objective=objective,
            data=data,
            run_config=run_config,
            out=out,
            flops_per_sample=flops_per_sample,
            activations=activations or Activations(),
            head_patterns=tuple(head_patterns),
            head_lr_mult=head_lr_mult,
            lr_scale=lr_scale,
            counted=counted,
        )
        timeout_s = collective_timeout_s(config.hang_timeout_s)
        self.rank_info, self.device = launch.start(config.device, timeout_s)
        launch.set_up_logging(config)
        run_on_rank0(lambda: require_installed(config.log_to))
        self.layout = topology.start(config.tensor_parallel, timeout_s)
        on_cpu = self.device.type == "cpu"
        self.ds_config = ds_config.resolve(config, self.layout.data_world, on_cpu)
        if self.uses_tf32:
            # 10 bits of mantissa in matrix products, 8 times the rate on an A100
            torch.set_float32_matmul_precision("high")
        peak = peak_rate(self.device, ds_config.precision(self.ds_config))
        hosts = all_gather_object(socket.gethostname())
        self.records = RecordBuilder(config, hosts, flops_per_sample, peak, flops_at)
        self.accumulator = MetricAccumulator()
        self.stopwatch = Stopwatch()
        self.evaluation = EvaluationCallback(evaluate, select, out)
        self.state = TrainState()
        self.evaluation.initialize(self.state)
        self.callbacks: tuple[Callback, ...] = (
            HistoryCallback(),  # first: it records the events of all others
            GarbageCallback(),
            StragglerCallback(config.straggler_ratio),
            ProgressCallback({} if chance is None else chance),
            CheckpointCallback(),  # before pictures and evaluation, which may fail or take long
            PlanCallback(),  # after the last checkpoint, which ends an interval
            *(
                TensorBoardCallback(pictures)
                if name == "tensorboard"
                else TrackerCallback(name, pictures)
                for name in dict.fromkeys(config.log_to)
            ),
            AnomalyCallback(),
            SkippedStepsCallback(),  # may end the run: after everything that reports
            self.evaluation,
        )
        self.result = RunResult(0, None, {})

    engine: TrainingEngine
    watchdog: Watchdog

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.state.step

    @property
    def uses_tf32(self) -> bool:
        """Whether matrix products of fp32 run in TF32."""
        return self.device.type == "cuda" and ds_config.precision(self.ds_config) == "fp32"

    @property
    def is_rank0(self) -> bool:
        """Whether this rank writes what a run has once."""
        return self.rank_info.rank == 0

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and step."""
        return self.config.accumulation(self.layout.data_world)

    def train(self) -> RunResult:
        """Train to the last step.

        Raises:
            RunInterrupted: A signal asked for it; a checkpoint was saved.
            TooManySkippedError: Too many steps in a row had a non-finite gradient.
            CheckpointError: A checkpoint could not be read or written.
            ConfigError: The folder holds something else, or a run with other options or of other
                data; or another process uses it.
        """
        # before the minutes of preparation: a signal that arrives in them ends the run after its
        # first steps, with a checkpoint, instead of killing it
        signals = StopSignals()
        rank, world = self.rank_info.rank, self.rank_info.world
        self.watchdog = Watchdog(self.config.hang_timeout_s, rank, world)
        claims = ExitStack()
        try:
            damaged = self._prepare(claims)
            # new_group is collective: created here, where every rank passes
            sync = SignalSync(self.config.hang_timeout_s)
            if self.evaluation.is_done(self.config, self.step):
                log.info("%s is done: step %d of %d", self.spec.out, self.step, self.config.steps)
                newest = run_on_rank0(lambda: newest_complete(self.spec.out)[0])
                return RunResult(self.step, newest, {})
            self._start(damaged)
            self._train_steps(signals, sync)
            return self.result
        finally:
            # first: a hang that is being reported ends the process here, with the report complete
            self.watchdog.stop()
            signals.restore()
            try:
                self._close(sys.exception())
            finally:
                claims.close()

    def _prepare(self, claims: ExitStack) -> Sequence[str]:
        """Claim the folder, build the engine, load the newest checkpoint.

        Args:
            claims: Gets rank 0's claim of the folder.

        Returns:
            A sentence on each damaged checkpoint that was passed over.
        """
        out = self.spec.out
        layout = reshard.identity(self.ds_config, self.layout)
        # one rank decides: ranks that look for themselves may see a network disk differently
        decision = run_on_rank0(lambda: self._claim(layout, claims))
        # only now: a folder that was refused belongs to something else, and stays untouched
        launch.log_rank_to_file(out)
        for problem in decision.damaged:
            log.warning("%s", problem)
        self._start_engine()
        if decision.checkpoint is not None:
            self._resume(decision.checkpoint)
        return decision.damaged

    def _claim(self, layout: Mapping[str, Any], claims: ExitStack) -> resume.Decision:
        """Lock the folder and decide how this start continues. Rank 0 only."""
        out, accept = self.spec.out, self.config.accept_changed_data
        if (foreign := resume.foreign_content(out)) is not None:
            raise foreign
        claims.enter_context(run_lock.claim(out))
        return resume.decide(out, self.spec.run_config, layout, accept_changed=accept)

    def require_lock(self) -> None:
        """ConfigError, on every rank, if another process has taken the folder; collective."""
        run_on_rank0(lambda: run_lock.require(self.spec.out))

    def _start(self, damaged: Sequence[str]) -> None:
        log.info("%s", self.describe())
        # a new one: importing, loading and opening data are not training time
        self.stopwatch = Stopwatch()
        for callback in self.callbacks:
            callback.on_start(self)
        for problem in damaged:
            self.emit("damaged", problem=problem)
        self.evaluation.before_first_step(self)

    def _train_steps(self, signals: StopSignals, sync: SignalSync) -> None:
        first, stop = self.step + 1, None
        batches = self.by_step(self._count_waiting(self.batches_from(first)))
        while self.step < self.config.steps and not self.evaluation.stop_early and not stop:
            self.begin_activity(f"step {self.step + 1}", starting=self.step + 1 == first)
            self._train_step(batches)
            # what the ranks agreed on one step ago, so that all of them stop after the same step
            stop = sync.exchange(signals.received)
            self._end_step(stop, first)
        # the exchange of the last step is open, and must end before the process group does
        sync.finish()
        if stop:
            raise RunInterrupted(
                f"{stop}: saved {self.result.checkpoint} at step {self.step}; the same command"
                " continues"
            )
        for callback in self.callbacks:
            callback.on_end(self)

    def by_step(self, batches: Iterator[Any]) -> StepBatches:
        """This rank's micro-batches, step after step."""
        return StepBatches(
            batches, self.spec.objective, self.accumulation, self.layout, self.device
        )

    def _count_waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            batch = next(batches)
            self.accumulator.waited_s += time.perf_counter() - start
            yield batch

    def _train_step(self, batches: StepBatches) -> None:
        # before the micro-batches, because DeepSpeed updates inside the last one
        self.engine.set_learning_rate(self.step + 1)
        for batch, mean_items in batches.step(last=self.step + 1 == self.config.steps):
            # dropout follows from the position of the clips: a restart does not change it
            torch.manual_seed(seed_of(self.config.seed, batch.first_position))
            loss, metrics = self.engine.train_micro_batch(batch)
            self.accumulator.add(batch, loss, metrics, mean_items)
        self.engine.update_average()
        self.state.step += 1
        # from now on a missing file means a fault of the node (exit code 1), not a wrong path (2)
        launch.mark_training_started()
        self.accumulator.end_step(self.step, *self.engine.outcome())

    def _end_step(self, stop: str | None, first: int) -> None:
        config, step = self.config, self.step
        scheduled = self.evaluation.is_scheduled(config, step)
        if every(step, config.log_every, config.steps) or stop:
            self.log_interval()
        due = Due(
            # an evaluation may outlast the job's time limit: what was trained is saved before it
            checkpoint=every(step, config.save_every, config.steps) or bool(stop) or scheduled,
            evaluation=scheduled and not stop,
            first=step == first,
            stop=stop,
        )
        for callback in self.callbacks:
            callback.on_step_end(self, due)
        self.result = RunResult(step, self.result.checkpoint, self.result.evaluation)

    def log_interval(self) -> None:
        """Sum metrics over ranks and pass them to the callbacks; collective.

        This and SkippedStepsCallback, every 50 steps, are the only places where the host waits for
        the device. Without steps since the last call nothing happens.
        """
        if not len(self.accumulator):
            return
        forward_s = self.engine.forward_timer.take()
        metrics = self.accumulator.collect(memory_bytes(self.device), forward_s)
        elapsed_s = self.stopwatch.lap()
        with self.stopwatch.paused():
            self.state.add_interval(metrics)
            record = self.records.build(
                self.step, metrics, elapsed_s, self.state.skipped, self.engine.lr_multiples
            )
            for callback in self.callbacks:
                callback.on_interval(self, Interval(metrics, record, elapsed_s))

    def batches_from(self, step: int) -> Iterator[Any]:
        """This rank's micro-batches from a step (1, 2, ...) on."""
        config, layout = self.config, self.layout
        return self.spec.data.batches(
            # follows from the step alone: another layout continues with the same clips
            first=(step - 1) * config.global_batch,
            rank=layout.data_rank,
            world=layout.data_world,
            micro_batch=config.micro_batch,
            device=self.device,
        )

    def begin_activity(self, activity: str, starting: bool = False) -> None:
        """Tell the watchdog what comes next; with `starting` it allows at least STARTUP_S."""
        self.watchdog.begin(activity, starting)

    def emit(self, event: str, **facts: Any) -> None:
        """Report an event to all callbacks."""
        for callback in self.callbacks:
            callback.on_event(self, event, facts)

    def checkpoint_facts(self) -> dict[str, Any]:
        """What run.json of a checkpoint holds besides the totals of the state."""
        return {
            "step": self.step,
            "samples": self.step * self.config.global_batch,
            **self.state.progress(),
            "world": self.rank_info.world,
            # only rank 0 writes run.json: the others need not start git
            "code": manager.code_version() if self.is_rank0 else {},
            "run": self.spec.run_config,
        }

    def continue_totals(self) -> None:
        """Let rank 0 continue the totals over all ranks; the other ranks start at 0."""
        # they are sums over ranks: a second rank that continued them would count them twice
        totals = (self.state.digest, self.state.bad_clips) if self.is_rank0 else (0, 0)
        self.accumulator.set_totals(*totals)

    def _start_engine(self) -> None:
        self.engine = TrainingEngine(
            self.config, self.spec, self.ds_config, self.layout, self.device
        )

    def _resume(self, folder: Path) -> None:
        facts, changed = self.engine.load(folder)
        self.state = TrainState.from_checkpoint(facts)
        self.evaluation.resume(self.state)
        self.continue_totals()
        log.info(
            "resumed from %s: step %d, %s clips seen%s",
            folder,
            self.step,
            f"{facts['samples']:,}",
            f"; its state was resharded: {changed}" if changed else "",
        )

    def describe(self) -> str:
        """The run in a few lines: sizes, steps, rates, plan and data."""
        config, info, layout = self.config, self.rank_info, self.layout
        assert config.micro_batch * layout.data_world * self.accumulation == config.global_batch
        rate, source = self.records.peak
        flops = self.spec.flops_per_sample
        rest_s = (
            (config.steps - self.step) * config.global_batch * flops / (0.5 * rate * info.world)
        )
        ranks = "ranks"
        if layout.tensor > 1:
            ranks = f"groups of {layout.tensor} tensor-parallel ranks"
        lines = [
            (
                f"{count(self.engine.parameters)} parameters, {count(flops)}FLOPs per clip and step"
                " (FMA = 2, all passes, forward and backward)"
            ),
            (
                f"{config.steps:,} steps x {config.global_batch:,} clips = {config.micro_batch} per"
                f" micro-batch x {layout.data_world} {ranks} x {self.accumulation} accumulated;"
                f" started by {info.launcher} on {self.device.type}, {config.ds_config}"
                + ", matrix products in TF32 (NVIDIA_TF32_OVERRIDE=0: fp32)"
                * self.uses_tf32
            ),
            (
                f"peak {count(rate)}FLOP/s per rank ({source}); at half of it the rest takes"
                f" {duration(rest_s)}"
            ),
            *([describe_average(config.ema, config.steps)] if config.ema else []),
            *self.engine.estimate.lines(),
            self.spec.data.describe(),
        ]
        return "\n".join(lines)

    def _close(self, error: BaseException | None) -> None:
        """Let every callback close its files."""
        failure: OSError | None = None
        for callback in self.callbacks:
            try:
                callback.on_close(self, error)
            except OSError as problem:  # with an error, the full disk is probably its reason too
                failure = failure or problem
        if failure is not None and error is None:
            raise failure
