"""Checks the project on this node's GPUs, stage by stage, and writes a report.

    python -m tests.gpu.check [--out runs/gpu-check]        one node; all its GPUs
    srun --ntasks=16 python -m tests.gpu.check              a rank per task; --out on a shared disk
    python -m tests.gpu.check --device cpu --size nano --micro-batch 2 --steps 4

Stages: (a) the device and its ceilings, (b) numerics, (c) waits of the host, (d) speed and memory,
(e) DALI, (f) stop and resume. Each runs in a process of its own with a time limit; what crashes or
hangs is reported, and the rest runs. What this machine lacks is named and skipped. Exit code: 0 if
nothing failed, else 1.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError, LocalConfigError
from allinone.common.paths import ROOT
from allinone.tools.reporting.gpu_report import BAD, FORMAT, PAGE, REPORT, GpuReport, Stage, write
from tests.gpu.runner import Ranks, context_for, run_stage
from tests.gpu.slurm import SlurmRanks, follow, slurm_ranks
from tests.gpu.stage import Settings, StageSpec

STAGES = (
    StageSpec("device", "(a) device and ceilings", "tests.gpu.device", 20, 20),
    StageSpec("numerics", "(b) numerics", "tests.gpu.numerics", 65, 40),
    StageSpec("sync", "(c) waits of the host", "tests.gpu.sync", 65, 45),
    StageSpec("speed", "(d) speed and memory", "tests.gpu.speed", 90, 70),
    StageSpec("parallel", "(d) several GPUs", "tests.gpu.parallel", 60, 40, ranks=True),
    StageSpec("dali", "(e) DALI and the loader", "tests.gpu.dali", 150, 60),
    StageSpec("resume", "(f) stop and resume", "tests.gpu.resume", 120, 100),
)
"""With one GPU, (a) to (d) have limits of 240 s together; all stages have less than 12 minutes."""


@dataclass(frozen=True)
class CheckOptions:
    """Options of the GPU check."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """What to check; auto takes the GPU if torch sees one."""
    size: str = "base"
    """Model size of the speed, sync and resume stages, a key of model.SIZES."""
    micro_batch: int = 16
    """Clips per rank and step in these stages."""
    steps: int = 30
    """Optimizer steps of each speed measurement, warm-up included."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether to compile; auto compiles on a GPU only, because it takes minutes on a CPU."""
    stages: tuple[str, ...] = tuple(spec.name for spec in STAGES)
    """Stages to run."""
    cpu_ranks: int = 2
    """Ranks of the stage of several GPUs with --device cpu."""
    time_scale: float = 1.0
    """Multiplies all time limits, which are meant for an H100; use 3 on an older card."""
    out: Path = Path("runs/gpu-check")
    """Folder of gpu_report.json and gpu_report.html."""

    def __post_init__(self) -> None:
        known = [spec.name for spec in STAGES]
        for name in self.stages:
            if name not in known:
                raise InputError(f"--stages {name} is unknown; stages: {', '.join(known)}")
        if self.steps < 3:
            raise InputError(f"--steps must be at least 3: two warm up; got {self.steps}")


def find_device(asked: str) -> tuple[str, str, int]:
    """(cuda or cpu, its name in the report, number of GPUs).

    Raises:
        LocalConfigError: A GPU was asked for, and torch sees none.
    """
    if asked != "cpu":
        import torch

        if torch.cuda.is_available():
            return "cuda", torch.cuda.get_device_name(0), torch.cuda.device_count()
        if asked == "cuda":
            raise LocalConfigError(
                f"--device cuda: torch {torch.__version__} sees no GPU; use --device cpu, or a CUDA"
                " build of torch on a machine with a GPU"
            )
    return "cpu", "CPU", 0


def run(options: CheckOptions, specs: Sequence[StageSpec] = STAGES) -> GpuReport:
    """Run the stages and write the report.

    Args:
        options: What to run.
        specs: All stages that there are.

    Returns:
        The report; OUT holds it as JSON and as a page.

    Raises:
        LocalConfigError: The device is missing.
    """
    start, date = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    device, name, gpus = find_device(options.device)
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # children inherit it
    settings = Settings(
        device=device,
        size=options.size,
        micro_batch=options.micro_batch,
        steps=options.steps,
        compile=options.compile == "on" or (options.compile == "auto" and device == "cuda"),
        folder=options.out / "work",
    )
    shutil.rmtree(settings.folder, ignore_errors=True)
    tasks = slurm_ranks(os.environ)
    ranks = (
        SlurmRanks(options.out, tasks[1])
        if tasks
        else Ranks(gpus if device == "cuda" else options.cpu_ranks)
    )
    context = context_for(device)
    stages = []
    try:
        for spec in specs:
            stage = _run_or_skip(spec, options, settings, context, ranks)
            print(_line(stage), flush=True)
            stages.append(stage)
            # after every stage: a job that is killed leaves what it has found
            report = GpuReport(
                FORMAT, date, round(time.monotonic() - start, 1), _shown(options), name,
                _versions(stages), stages,
            )  # fmt: skip
            write(report, options.out)
    finally:
        if isinstance(ranks, SlurmRanks):
            ranks.finish()
        shutil.rmtree(settings.folder, ignore_errors=True)
    return report


def _run_or_skip(
    spec: StageSpec, options: CheckOptions, settings: Settings, context: Any, ranks: Ranks
) -> Stage:
    reason = ""
    if spec.name not in options.stages and spec in STAGES:
        reason = "not among --stages"
    elif spec.ranks and ranks.count < 2:
        reason = "needs two ranks; this machine has one GPU, or --cpu-ranks is 1"
    if reason:
        limit_s = spec.limit_s * options.time_scale
        return Stage(spec.name, spec.title, "skipped", 0.0, limit_s, [], reason)
    own = replace(settings, folder=settings.folder / spec.name)
    stage = run_stage(spec, own, context, ranks, options.time_scale)
    shutil.rmtree(own.folder, ignore_errors=True)
    return stage


def _shown(options: CheckOptions) -> dict[str, Any]:
    """The options that explain results; no path of the machine."""
    names = ("device", "size", "micro_batch", "steps", "compile", "stages", "time_scale")
    return {name: getattr(options, name) for name in names}


def _versions(stages: Sequence[Stage]) -> dict[str, str]:
    """Versions that the device stage has found."""
    for stage in stages:
        for check in stage.checks:
            if "versions" in check.values:
                extra = {k: check.values[k] for k in ("cuda", "driver") if k in check.values}
                return {str(k): str(v) for k, v in (check.values["versions"] | extra).items()}
    return {}


def _line(stage: Stage) -> str:
    lines = [f"{stage.state:10} {stage.title}, {stage.seconds:.0f} s {stage.reason}".rstrip()]
    for check in stage.checks:
        lines.append(f"  {check.state:10} {check.name}: {check.summary}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    options = parse(CheckOptions, argv, prog="python -m tests.gpu.check", description=__doc__ or "")
    tasks = slurm_ranks(os.environ)
    # the children import this folder's modules, also when it is not installed
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if tasks and tasks[0] > 0:
        device = find_device(options.device)[0]
        return follow(options.out, tasks[0], context_for(device), options.time_scale, STAGES)
    report = run(options)
    print(f"{options.out / REPORT}\n{options.out / PAGE}")
    bad = [stage.title for stage in report.stages if stage.state in BAD]
    if bad:
        print(f"not passed: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
