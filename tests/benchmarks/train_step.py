#!/usr/bin/env python3
"""Measures training speed without the data path.

    python tests/benchmarks/train_step.py [--size tiny] [--micro-batch 8] [--steps 8] [--trace]

Runs the real loop (forward, backward, DeepSpeed, AdamW; MLM + VTM, with --wpa also word-patch
alignment) on one synthetic batch and prints clips/s and the share that training FLOPs have of a
peak rate: on a CPU that of a plain matrix product, measured just before and just after, on a GPU
that of its data sheet. FMA = 2, both passes and the heads count, backward = 2 x forward. Median
over the logging intervals after the first two steps. --trace profiles three more steps and sums
their time by kind. --patch-keep measures the step on a share of the patches and the step on all in
the same run, and prints the ratio. --captions draws the captions of a list. --against runs the
original code's step after every step, in the same process, and prints the ratio; give --wpa 0.1,
which it has, too. tests/gpu/speed.py measures with the same functions.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from allinone.engine.distributed import launch

launch.prepare_environment()  # before torch's and DeepSpeed's imports

import numpy as np
import torch

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.formatting import count
from allinone.data.loading.batch import Batch
from allinone.data.text import Tokenizer, mask_words
from allinone.engine import Trainer
from allinone.engine.callbacks.base import Callback, Due, Interval
from allinone.engine.callbacks.checkpoint import CheckpointCallback
from allinone.engine.config import TrainConfig
from allinone.engine.planning.estimate import element_sizes
from allinone.engine.planning.peak_flops import measured_matmul_rate
from allinone.engine.planning.step_time import CountedSteps
from allinone.model import AllInOneConfig, AllInOneForPreTraining, flops
from allinone.pretrain.cost import MASK_PROB, masked_tokens, model_activations, sample_flops
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective
from allinone.pretrain.step_counts import Pass
from tests.benchmarks.original_step import original_step
from tests.benchmarks.step_trace import TRACED_STEPS, StepTrace, summarize

WARM_STEPS = 2


class RepeatedBatch:
    """Repeats one micro-batch that is already on the device; 15 % of its tokens are masked.

    Args:
        config: The model.
        captions: CSV with a column caption or name, of which captions are drawn; None: captions of
            random words that fill max_text_len.
    """

    def __init__(self, config: AllInOneConfig, captions: Path | None = None) -> None:
        self.config = config
        self.masked = masked_tokens(config)
        self._captions = read_captions(captions) if captions else []

    def describe(self) -> str:
        return "one synthetic batch"

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Batch]:
        batch = self.batch(micro_batch, rank).to(device)
        position = first + rank * micro_batch
        while True:
            # the trainer seeds dropout with the position: a resumed run must continue with it
            yield replace(batch, first_position=position)
            position += world * micro_batch

    def batch(self, clips: int, seed: int) -> Batch:
        """The micro-batch, on the host.

        Args:
            clips: Its number of clips.
            seed: The ranks of a tensor-parallel group need the same clips, so the seed is the data
                rank, and torch's global generator is not used.
        """
        config, length = self.config, self.config.max_text_len
        random = torch.Generator().manual_seed(seed)
        ids = torch.randint(1000, config.vocab_size, (clips, length), generator=random)
        masked = torch.arange(1, 1 + self.masked)
        positions = (torch.arange(clips)[:, None] * length + masked).flatten()
        labels = torch.full_like(ids, -100)
        labels.view(-1)[positions] = ids.view(-1)[positions]
        side = config.image_size
        names = tuple(f"clip {number}" for number in range(clips))
        mask, masked_ids = torch.ones_like(ids), ids
        if self._captions:
            ids, mask, masked_ids, labels = self._texts(clips, seed)
            positions = (labels.flatten() >= 0).nonzero().flatten()
        return Batch(
            pixels=torch.randn(clips, config.num_frames, 3, side, side, generator=random),
            text_ids=ids,
            text_mask=mask,
            mlm_ids=masked_ids,
            mlm_labels=labels,
            mlm_positions=positions,
            dataset_ids=torch.zeros(clips, dtype=torch.long),
            dataset_names=("synthetic",),
            clips=names,
            captions=names,
            first_position=0,
        )

    def _texts(self, clips: int, seed: int) -> list[torch.Tensor]:
        """Ids, mask, ids with masked words and labels of captions, int64 [B, L] each."""
        tokenizer, random = Tokenizer(), np.random.default_rng(seed)
        rows = []
        for caption in random.choice(self._captions, clips):
            ids, mask, words = tokenizer.encode(caption, self.config.max_text_len)
            masked = mask_words(
                ids,
                words,
                MASK_PROB,
                random,
                tokenizer.mask_id,
                tokenizer.first_word_id,
                tokenizer.size,
            )
            rows.append((ids, mask, *masked))
        return [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]


def read_captions(path: Path) -> list[str]:
    """Captions of a list; InputError without a column caption or name."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        column = next(
            (name for name in ("caption", "name") if name in (reader.fieldnames or ())), ""
        )
        if not column:
            raise InputError(f"--captions {path}: there is no column caption or name")
        return [row[column] for row in reader]


@dataclass(frozen=True)
class StepOptions:
    """Options of the measurement."""

    size: str = "tiny"
    """Model size, a key of model.SIZES."""
    micro_batch: int = 8
    """Clips per rank and step."""
    steps: int = 8
    """Optimizer steps; intervals that begin in the first two warm up and are not measured."""
    log_every: int = 1
    """Steps per logging interval. Only these wait for the device: use 10 on a GPU."""
    ds_config: str = "zero1_fp32"
    """Name in ds_configs/; use zero1_bf16 on a GPU."""
    wpa: float = 0.0
    """Weight of word-patch alignment; 0.1 in the original code."""
    passes: Literal["joint", "separate"] = "joint"
    """MLM and VTM in one forward pass or in two."""
    patch_keep: float = 1.0
    """Share of the patches that the step uses; below 1, a step on all patches follows."""
    compile: bool = False
    """Compile the model with torch.compile."""
    checkpointing: bool = False
    """Recompute each block in the backward pass."""
    tensor_parallel: int = 1
    """Ranks that share a model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on."""
    trace: bool = False
    """Profile three more steps and print their time by kind."""
    captions: Path | None = None
    """CSV with a column caption or name whose captions the batch has; None: full captions."""
    against: Path | None = None
    """Folder with the original code, whose training step is measured in the same run."""

    def __post_init__(self) -> None:
        if self.steps < WARM_STEPS + self.log_every:
            raise InputError(
                f"--steps {self.steps} leaves no interval of --log-every {self.log_every} steps"
                f" after the {WARM_STEPS} that warm up; give at least"
                f" {WARM_STEPS + self.log_every}"
            )


@dataclass
class StepResult:
    """What one configuration measured."""

    clips_per_s: float
    """Of all ranks; median over the measured intervals."""
    step_ms: float
    cpu_ms: float
    """Processor time of this rank per step, all threads; unlike step_ms, other programs on a shared
    machine hardly change it."""
    flops_per_clip: float
    """Forward and backward, all passes, attention products counted."""
    mfu: float
    """FLOP/s as a share of the peak of all ranks."""
    mfu_without_attention: float
    """The same without the products queries x keys and weights x values, as the paper counts."""
    peak: str
    """The rate that is 100 %, and its source."""
    memory_bytes: int
    """Highest allocated memory of a rank on a GPU, resident memory of the process on a CPU."""
    planned_bytes: float
    """The planner's figure for the same."""
    planned_ms: float
    """Milliseconds of a step by the planner."""
    losses: list[float]
    """Of the last step of every interval."""
    trace: dict[str, Any] = field(default_factory=dict)
    """Time by kind; empty without --trace."""


class StepProbe(Callback):
    """Collects the intervals after warm-up, then profiles further steps.

    Args:
        options: How many steps.
    """

    def __init__(self, options: StepOptions) -> None:
        self._options = options
        self.records: list[Mapping[str, Any]] = []
        self.losses: list[float] = []
        self.cpu_s: list[float] = []
        self._cpu_before = 0.0
        self.memory_bytes = 0
        self.trace: StepTrace | None = None

    def on_interval(self, trainer: Trainer, interval: Interval) -> None:
        last, before = interval.record["step"], self._cpu_before
        self._cpu_before = time.process_time()
        if last > self._options.steps:  # the profiler slows these down
            return
        self.losses += interval.metrics.losses
        self.memory_bytes = max(self.memory_bytes, interval.record["memory_bytes"])
        if last - len(interval.metrics.steps) >= WARM_STEPS:
            self.records.append(interval.record)
            self.cpu_s.append((self._cpu_before - before) / len(interval.metrics.steps))

    def on_step_end(self, trainer: Trainer, due: Due) -> None:
        if not self._options.trace:
            return
        if trainer.step == self._options.steps:
            self.trace = StepTrace(trainer.device)
        elif self.trace is not None and trainer.step == self._options.steps + TRACED_STEPS:
            self.trace.stop()


def make_trainer(
    options: StepOptions,
    out: Path,
    steps: int,
    data: Any = None,
    checkpoints: bool = False,
) -> Trainer:
    """The real loop.

    Args:
        options: Model and training options.
        out: The run's folder.
        steps: Optimizer steps of the run.
        data: Gives the batches; None: one synthetic batch.
        checkpoints: Save checkpoints every --log-every steps; writing a gigabyte takes as long as a
            measurement.
    """
    # initial weights are drawn here; the trainer seeds only what follows
    torch.manual_seed(0)
    config = AllInOneConfig.from_size(options.size)
    objective = ObjectiveConfig(
        wpa=options.wpa, passes=options.passes, patch_keep=options.patch_keep
    )
    masked, patches = masked_tokens(config), objective.kept_patches(config.num_patches)
    world = launch.find_rank_info(os.environ).world // options.tensor_parallel
    train = TrainConfig(
        steps=steps,
        global_batch=options.micro_batch * world,
        micro_batch=options.micro_batch,
        ds_config=options.ds_config,
        activation_checkpointing=options.checkpointing,
        compile=options.compile,
        tensor_parallel=options.tensor_parallel,
        device=options.device,
        log_every=options.log_every,
        save_every=options.log_every if checkpoints else steps,
        hang_timeout_s=600.0,
    )
    element, mask = element_sizes(train)
    run = Trainer(
        train,
        model=AllInOneForPreTraining(config),
        objective=PretrainObjective(objective),
        data=RepeatedBatch(config, options.captions) if data is None else data,
        run_config={},
        out=out,
        flops_per_sample=sum(
            sample_flops(config, objective, config.num_frames, masked, patches=patches).values()
        ),
        activations=model_activations(
            config,
            objective,
            options.micro_batch,
            element,
            mask,
            options.checkpointing,
            patches=patches,
        ),
        counted=CountedSteps(
            lambda precision, compiled, flash: [
                (
                    1.0,
                    Pass(
                        config, objective, config.num_frames, precision, options.checkpointing
                    ).operations(options.micro_batch, "compiled" if compiled else "eager"),
                )
            ],
            reduce_window=2 / 3 if objective.joint_pass else 1 / 3,
        ),
    )
    if not checkpoints:
        run.callbacks = tuple(
            callback for callback in run.callbacks if not isinstance(callback, CheckpointCallback)
        )
    return run


def attention_flops(config: AllInOneConfig, patches: int) -> float:
    """FLOPs of one clip's attention products in the MLM and VTM passes, forward and backward.

    `patches` of each frame are used.
    """
    with_products, without = (
        flops.forward_flops(
            config,
            frames=config.num_frames,
            text_tokens=config.max_text_len,
            attention_products=products,
            patches=patches,
        )
        for products in (True, False)
    )
    return 3.0 * 2 * (with_products - without)


def measure(options: StepOptions) -> StepResult:
    """Train on one synthetic batch and measure; collective.

    Raises:
        ConfigError: The options contradict each other or the machine.
    """
    probe = StepProbe(options)
    with tempfile.TemporaryDirectory() as folder:
        run = make_trainer(
            options, Path(folder) / "run", options.steps + TRACED_STEPS * options.trace
        )
        run.callbacks = (probe, *run.callbacks)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        run.train()
    rate, source = run.records.peak
    speed = statistics.median(record["samples_per_s"] for record in probe.records)
    per_clip, world = run.spec.flops_per_sample, run.rank_info.world
    if run.device.type == "cpu":
        # a shared machine's rate varies: show both, and compare with the larger one
        measured_matmul_rate.cache_clear()
        after = measured_matmul_rate()
        source = (
            f"{source}, {count(rate)}FLOP/s before and {count(after)}FLOP/s after the run,"
            f" {torch.get_num_threads()} threads"
        )
        rate = max(rate, after)
    config = AllInOneConfig.from_size(options.size)
    patches = ObjectiveConfig(patch_keep=options.patch_keep).kept_patches(config.num_patches)
    without = per_clip - attention_flops(config, patches)
    return StepResult(
        clips_per_s=speed,
        step_ms=1e3 * run.config.global_batch / speed,
        cpu_ms=1e3 * statistics.median(probe.cpu_s),
        flops_per_clip=per_clip,
        mfu=speed * per_clip / (rate * world),
        mfu_without_attention=speed * without / (rate * world),
        peak=f"{count(rate)}FLOP/s per rank, {source}",
        memory_bytes=probe.memory_bytes,
        planned_bytes=run.engine.estimate.plan.memory_bytes,
        planned_ms=1e3 * run.engine.estimate.plan.step_s,
        losses=probe.losses,
        trace=asdict(summarize(probe.trace)) if probe.trace else {},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = launch.without_launcher_arguments(sys.argv[1:] if argv is None else list(argv))
    return run_command(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    options = parse(StepOptions, arguments, prog="train_step.py", description=__doc__ or "")
    if options.against is not None:
        return launch.main(lambda: compare(options))
    return launch.main(lambda: _measure_and_show(options))


def _measure_and_show(options: StepOptions) -> None:
    result = measure(options)
    show(options, result)
    if options.patch_keep < 1:
        full = replace(options, patch_keep=1.0)
        complete = measure(full)
        show(full, complete)
        print(
            f"\n--patch-keep {options.patch_keep:g} against all patches, per step:"
            f" {result.step_ms:,.0f} ms of {complete.step_ms:,.0f}"
            f" ({result.step_ms / complete.step_ms:.2f}), processor time {result.cpu_ms:,.0f} ms of"
            f" {complete.cpu_ms:,.0f} ({result.cpu_ms / complete.cpu_ms:.2f}), FLOPs"
            f" {result.flops_per_clip / complete.flops_per_clip:.2f}"
        )


class AgainstProbe(Callback):
    """Runs another training step after each step, and measures both.

    Args:
        other: The other step.
    """

    def __init__(self, other: Callable[[], None]) -> None:
        self._other = other
        self.ours: list[tuple[float, float]] = []
        """(CPU seconds, seconds) of each step."""
        self.theirs: list[tuple[float, float]] = []

    def on_start(self, trainer: Trainer) -> None:
        self._mark = _clocks()

    def on_step_end(self, trainer: Trainer, due: Due) -> None:
        self.ours.append(self._spent())
        self._other()
        self.theirs.append(self._spent())

    def _spent(self) -> tuple[float, float]:
        before, self._mark = self._mark, _clocks()
        return self._mark[0] - before[0], self._mark[1] - before[1]


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def compare(options: StepOptions) -> None:
    """Run our step and the original's in turn, and print both with their ratio."""
    assert options.against is not None
    config = AllInOneConfig.from_size(options.size)
    data = RepeatedBatch(config, options.captions)
    torch.manual_seed(0)
    batch = data.batch(options.micro_batch, seed=0)
    probe = AgainstProbe(original_step(options.against, options.size, config, batch))
    with tempfile.TemporaryDirectory() as folder:
        run = make_trainer(options, Path(folder) / "run", options.steps, data)
        # first: what other callbacks do belongs to neither step
        run.callbacks = (probe, *run.callbacks)
        run.train()
    cpu = []
    for name, steps in (("this code", probe.ours), ("the original", probe.theirs)):
        spent = [statistics.median(column) for column in zip(*steps[WARM_STEPS:], strict=True)]
        cpu.append(spent[0])
        print(
            f"{name}: {spent[0]:.2f} CPU seconds per step, {options.micro_batch / spent[1]:.2f}"
            f" clips/s, {options.micro_batch / spent[0]:.2f} clips per CPU second"
        )
    print(f"this code trains {cpu[1] / cpu[0]:.2f} times the original's clips per CPU second")


def show(options: StepOptions, result: StepResult) -> None:
    """Print one measurement."""
    config = AllInOneConfig.from_size(options.size)
    objectives = "MLM + VTM" + " + WPA" * bool(options.wpa)
    if options.patch_keep < 1:
        objectives += f", patch-keep {options.patch_keep:g}"
    print(
        f"\n{options.size}, {config.num_frames} frames, {config.image_size} px,"
        f" {config.max_text_len} tokens, {objectives}, {options.ds_config}, micro-batch"
        f" {options.micro_batch}: {result.clips_per_s:.2f} clips/s,"
        f" {count(result.flops_per_clip)}FLOPs per clip, {result.memory_bytes / 2**30:.2f} GiB"
        f" (planned {result.planned_bytes / 2**30:.2f})"
    )
    print(
        f"{count(result.clips_per_s * result.flops_per_clip)}FLOP/s ="
        f" {100 * result.mfu:.0f} % of {result.peak};"
        f" {100 * result.mfu_without_attention:.0f} % without the attention products"
    )
    for kind, milliseconds in result.trace.get("kinds", {}).items():
        print(f"{kind:12} {milliseconds:8.2f} ms per step")
    for name, milliseconds in result.trace.get("attention", {}).items():
        print(f"{milliseconds:8.2f} ms  {name}")


if __name__ == "__main__":
    sys.exit(main())
