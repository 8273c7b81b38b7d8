#!/usr/bin/env python3
"""Measures training speed without the data path.

    python tests/benchmarks/train_step.py [--size tiny] [--micro-batch 8] [--steps 8]

Runs the real loop (forward, backward, DeepSpeed, AdamW; MLM + VTM) on one synthetic batch and
prints clips/s and the share that training FLOPs have of the rate of a plain matrix product,
measured on the same machine just before and just after. FMA = 2; attention and the heads count,
tokens of the last block that nobody reads do not; the patch projection has no gradient of its
input. Median over the steps after the first two. Works on a CPU and,
with CUDA, on a GPU (use --ds-config zero1_bf16 there).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from allinone.engine.distributed import launch

launch.prepare_environment()  # before torch's and DeepSpeed's imports

import torch

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.formatting import count
from allinone.data.loading.batch import Batch
from allinone.engine import Trainer
from allinone.engine.config import TrainConfig
from allinone.engine.planning.peak_flops import measured_matmul_rate, peak_rate
from allinone.model import AllInOneConfig, AllInOneForPreTraining
from allinone.pretrain.cost import sample_flops
from allinone.pretrain.objectives import ObjectiveConfig, PretrainObjective

WARM_STEPS = 2


class RepeatedBatch:
    """Repeats one micro-batch that is already on the device; 15 % of its tokens are masked."""

    def __init__(self, config: AllInOneConfig) -> None:
        self.config = config
        self.masked = round(0.15 * (config.max_text_len - 2))

    def describe(self) -> str:
        return "one synthetic batch"

    def batches(
        self, *, first: int, rank: int, world: int, micro_batch: int, device: torch.device
    ) -> Iterator[Batch]:
        config, length = self.config, self.config.max_text_len
        ids = torch.randint(1000, config.vocab_size, (micro_batch, length), device=device)
        positions = (
            (torch.arange(micro_batch)[:, None] * length + torch.arange(1, 1 + self.masked))
            .flatten()
            .to(device)
        )
        labels = torch.full_like(ids, -100)
        labels.view(-1)[positions] = ids.view(-1)[positions]
        pixels = torch.randn(
            micro_batch, config.num_frames, 3, config.image_size, config.image_size, device=device
        )
        names = ("",) * micro_batch
        owner = torch.zeros(micro_batch, dtype=torch.long, device=device)
        batch = Batch(
            pixels,
            ids,
            torch.ones_like(ids),
            ids,
            labels,
            positions,
            owner,
            ("synthetic",),
            names,
            names,
            first,
        )
        while True:
            yield batch


def training_flops(config: AllInOneConfig, objective: ObjectiveConfig, masked: int) -> float:
    """FLOPs of one clip's training step, as they are executed."""
    return sum(sample_flops(config, objective, config.num_frames, masked).values())


@dataclass(frozen=True)
class StepOptions:
    """Options of the measurement."""

    size: str = "tiny"
    """Model size, a key of model.SIZES."""
    micro_batch: int = 8
    """Clips per step."""
    steps: int = 8
    """Optimizer steps; the first two warm up and are not measured."""
    ds_config: str = "zero1_fp32"
    """Name in ds_configs/; use zero1_bf16 on a GPU."""
    passes: Literal["joint", "separate"] = "joint"
    """MLM and VTM in one forward pass or in two."""
    compile: bool = False
    """Compile the model with torch.compile."""
    checkpointing: bool = False
    """Recompute each block in the backward pass."""

    def __post_init__(self) -> None:
        if self.steps <= WARM_STEPS:
            raise InputError(
                f"--steps must be more than the {WARM_STEPS} that warm up, got {self.steps}"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = launch.without_launcher_arguments(sys.argv[1:] if argv is None else list(argv))
    return run_command(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    options = parse(StepOptions, arguments, prog="train_step.py")
    return launch.main(lambda: measure(options))


def measure(args: StepOptions) -> None:
    """Train on one synthetic batch and print speed and FLOP rate."""
    config = AllInOneConfig.from_size(args.size)
    data = RepeatedBatch(config)
    objective = ObjectiveConfig(passes=args.passes)
    per_clip = training_flops(config, objective, data.masked)
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(
            TrainConfig(
                steps=args.steps,
                global_batch=args.micro_batch,
                micro_batch=args.micro_batch,
                ds_config=args.ds_config,
                activation_checkpointing=args.checkpointing,
                compile=args.compile,
                log_every=1,
                save_every=args.steps,
            ),
            model=AllInOneForPreTraining(config),
            objective=PretrainObjective(objective),
            data=data,
            run_config={},
            out=Path(folder) / "run",
            flops_per_sample=per_clip,
        )
        rate, source = peak_rate(run.device, "fp32")
        threads = torch.get_num_threads()
        run.train()
        lines = (Path(folder) / "run" / "history.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "metrics" in row]
    if run.device.type == "cpu":
        # a shared machine's rate varies: show both, and compare with the larger one
        measured_matmul_rate.cache_clear()
        after = measured_matmul_rate()
        source = (
            f"{source}, {count(rate)}FLOP/s before and {count(after)}FLOP/s after the run,"
            f" {threads} threads"
        )
        rate = max(rate, after)
    speed = statistics.median(row["samples_per_s"] for row in rows[WARM_STEPS:])
    memory = max(row["memory_bytes"] for row in rows)
    print(
        f"\n{args.size}, {config.num_frames} frames, {config.image_size} px, {config.max_text_len}"
        f" tokens, MLM + VTM, {args.ds_config}, ",
        end="",
    )
    print(
        f"micro-batch {args.micro_batch}: {speed:.2f} clips/s, {count(per_clip)}FLOPs per clip,"
        f" {memory / 2**30:.2f} GiB"
    )
    print(
        f"{count(speed * per_clip)}FLOP/s = {100 * speed * per_clip / rate:.0f} % of"
        f" {count(rate)}FLOP/s ({source})"
    )


if __name__ == "__main__":
    sys.exit(main())
