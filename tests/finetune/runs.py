"""Runs benchmark commands quickly: one interpreter imports everything and forks the ranks of each
job.

run_jobs([FinetuneCommand("msrvtt_qa", ["--steps", "2", …], world=2)])  →  [Ended(codes, output)]
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allinone.tools.cluster.rank_server import RankProcesses
from tests.forked import ROOT, rank_env

if TYPE_CHECKING:
    from allinone.engine.objective import Losses
    from allinone.finetune.inputs.batch import TaskBatch

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class FinetuneCommand:
    """One command."""

    benchmark: str
    argv: Sequence[str]
    world: int = 1
    kill_at: int = 0
    """Rank 0 kills itself (SIGKILL) before this step; negative: before this evaluation batch is
    stored."""
    poison: int = -1
    """Position in the order of training whose item makes the loss NaN."""


@dataclass(frozen=True)
class Ended:
    """Exit codes and output of its ranks."""

    codes: list[int]
    output: str


def run_jobs(jobs: Sequence[FinetuneCommand]) -> list[Ended]:
    """Run them in order."""
    line = [sys.executable, "-m", "tests.finetune.runs", json.dumps([asdict(job) for job in jobs])]
    done = subprocess.run(
        line,
        cwd=ROOT,
        env=rank_env(),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S * len(jobs),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [Ended(**ended) for ended in json.loads(done.stdout.splitlines()[-1])]


def _rank(job: FinetuneCommand, rank: int) -> int:
    if rank == 0 and job.kill_at:
        _arm(job.kill_at)
    script = importlib.import_module(f"finetune.{job.benchmark}")
    if job.poison >= 0:
        from allinone.finetune.tasks import task_class

        _poison(task_class(script.BENCHMARK.task), job.poison)
    if not hasattr(script, "BENCHMARK"):  # own.py chooses one by --task
        return int(script.main(list(job.argv)))
    return int(script.main(script.BENCHMARK, list(job.argv)))


def _arm(kill_at: int) -> None:
    from allinone.engine.trainer import Trainer
    from allinone.finetune.evaluation.cache import Cache

    step, put, kept = Trainer._train_step, Cache.put, []

    def killed_step(self: Trainer, batches: object) -> None:
        if self.step + 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, batches)  # type: ignore[arg-type]

    def killed_put(self: Cache, *args: object) -> None:
        if len(kept) + 1 == -kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        kept.append(1)
        put(self, *args)  # type: ignore[arg-type]

    Trainer._train_step, Cache.put = killed_step, killed_put  # type: ignore[method-assign, assignment]


def _poison(task: Any, position: int) -> None:
    loss = task.__call__

    def poisoned(self: object, model: object, batch: TaskBatch) -> Losses:
        losses = loss(self, model, batch)
        held = 0 <= position - batch.first_position < len(batch)
        return replace(losses, total=losses.total * float("nan")) if held else losses

    task.__call__ = poisoned


def _run(job: FinetuneCommand, logs: Path) -> Ended:
    ranks = RankProcesses(job.world, logs, partial(_rank, job))
    return Ended(ranks.finish(TIMEOUT_S), ranks.output())


def _serve(jobs: Sequence[FinetuneCommand]) -> None:
    import tempfile

    import deepspeed  # noqa: F401
    import transformers  # noqa: F401

    import allinone.finetune.run  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        ended = [_run(job, Path(folder) / str(number)) for number, job in enumerate(jobs)]
    print(json.dumps([asdict(one) for one in ended]))


if __name__ == "__main__":
    _serve([FinetuneCommand(**job) for job in json.loads(sys.argv[1])])
