"""The check under srun: task 0 runs everything, the other tasks join the stages of several ranks.

The tasks meet in a folder on a disk that all of them see. Task 0 writes attempt-N.json before it
starts its rank of attempt N, and attempt-N.end afterwards; a task whose rank fails writes
attempt-N.failed-RANK. The ranks find each other as in training, by Slurm's variables.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from allinone.common.atomic_io import write_atomic
from tests.gpu.runner import POLL_S, Ranks, stop
from tests.gpu.stage import Settings, StageSpec, work

FINISHED = "finished"
LIFETIME_S = 900.0
"""A task without news from task 0 for this long ends itself; longer than all stages together."""


def slurm_ranks(env: Mapping[str, str]) -> tuple[int, int] | None:
    """(number of this task, number of tasks) of a job step with several tasks, else None."""
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    return (int(env["SLURM_PROCID"]), tasks) if tasks > 1 and "SLURM_STEP_ID" in env else None


def meeting_folder(out: Path) -> Path:
    """Where the tasks of this job step meet; another step has another one."""
    return out / f"ranks-{os.environ['SLURM_JOB_ID']}-{os.environ['SLURM_STEP_ID']}"


class SlurmRanks(Ranks):
    """Task 0's view of the other tasks.

    Args:
        out: The shared folder of the report.
        count: Tasks of the job step.
    """

    def __init__(self, out: Path, count: int) -> None:
        super().__init__(count)
        self._folder = meeting_folder(out)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._attempt = 0
        self._shared = False

    def environments(self, spec: StageSpec) -> list[Mapping[str, str] | None]:
        """This task's rank keeps srun's variables; a stage of one rank must not see them."""
        return [None] if spec.ranks else [{}]

    def begin(self, spec: StageSpec, done: Sequence[str], settings: Settings) -> None:
        self._shared = spec.ranks
        if self._shared:
            self._attempt += 1
            content = {"stage": spec.name, "done": list(done)}
            content["settings"] = {**vars(settings), "folder": str(settings.folder)}
            write_atomic(self._folder / f"attempt-{self._attempt}.json", json.dumps(content))

    def failure(self) -> str:
        if not self._shared:
            return ""
        failed = sorted(self._folder.glob(f"attempt-{self._attempt}.failed-*"))
        return ", ".join(path.read_text(encoding="utf-8") for path in failed)

    def end(self) -> None:
        if self._shared:
            write_atomic(self._folder / f"attempt-{self._attempt}.end", "")

    def finish(self) -> None:
        """Let the other tasks end."""
        write_atomic(self._folder / FINISHED, "")


def follow(
    out: Path,
    rank: int,
    context: BaseContext,
    time_scale: float,
    specs: Sequence[StageSpec],
) -> int:
    """Take part in the stages of several ranks, as task `rank`; returns the exit code.

    Args:
        out: The shared folder of the report.
        rank: Number of this task, above 0.
        context: How children start.
        time_scale: Multiplies the time limits.
        specs: All stages that there are.
    """
    folder, attempt = meeting_folder(out), 1
    deadline = time.monotonic() + LIFETIME_S * time_scale
    while time.monotonic() < deadline:
        path = folder / f"attempt-{attempt}.json"
        if path.exists():
            _join(json.loads(path.read_text(encoding="utf-8")), path, rank, context, specs)
            attempt += 1
        elif (folder / FINISHED).exists():
            return 0
        else:
            time.sleep(5 * POLL_S)
    return 1


def _join(
    content: Mapping[str, Any],
    path: Path,
    rank: int,
    context: BaseContext,
    specs: Sequence[StageSpec],
) -> None:
    """Run this task's rank of one attempt until it ends or task 0 has ended it."""
    spec = next(spec for spec in specs if spec.name == content["stage"])
    own = Path(content["settings"]["folder"]) / f"rank-{rank}"
    own.mkdir(parents=True, exist_ok=True)
    settings = Settings(**{**content["settings"], "folder": own})
    process: BaseProcess = context.Process(  # type: ignore[attr-defined]
        target=work,
        args=(spec, settings, own / f"{path.stem}.jsonl", tuple(content["done"]), None),
    )
    process.start()
    end = path.with_suffix(".end")
    while process.is_alive() and not end.exists():
        time.sleep(POLL_S)
    if process.is_alive():
        stop(process)
    elif process.exitcode:
        failed = path.with_suffix(f".failed-{rank}")
        write_atomic(failed, f"rank {rank} ended with exit code {process.exitcode}")
