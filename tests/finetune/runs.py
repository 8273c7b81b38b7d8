"""Benchmarks' commands as ranks in a second: one interpreter imports everything and forks the ranks of one job after the other.

run_jobs([Job("msrvtt_qa", ["--steps", "2", …], world=2)])    →    [Ended(codes, output)]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Job:
    """One command."""

    benchmark: str
    argv: Sequence[str]
    world: int = 1
    kill_at: int = 0
    """Rank 0 kills itself (SIGKILL) before this step, or, negative, before this evaluation batch is kept."""


@dataclass(frozen=True)
class Ended:
    """How its ranks ended."""

    codes: list[int]
    output: str


def run_jobs(jobs: Sequence[Job]) -> list[Ended]:
    """Run them in order."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "tests.finetune.runs", json.dumps([asdict(job) for job in jobs])]
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=TIMEOUT_S * len(jobs))
    assert done.returncode == 0, done.stdout + done.stderr
    return [Ended(**ended) for ended in json.loads(done.stdout.splitlines()[-1])]


def _rank(job: Job, rank: int, port: int) -> int:
    place = {"RANK": rank, "WORLD_SIZE": job.world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    import importlib

    if rank == 0 and job.kill_at:
        _arm(job.kill_at)
    script = importlib.import_module(f"finetune.{job.benchmark}")
    return int(script.main(script.BENCHMARK, list(job.argv)))


def _arm(kill_at: int) -> None:
    from engine.loop import Run
    from finetune.cache import Cache

    step, put, kept = Run._train_step, Cache.put, []

    def killed_step(self: Run, batches: object) -> None:
        if self.step + 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, batches)  # type: ignore[arg-type]

    def killed_put(self: Cache, *args: object) -> None:
        if len(kept) + 1 == -kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        kept.append(1)
        put(self, *args)  # type: ignore[arg-type]

    Run._train_step, Cache.put = killed_step, killed_put  # type: ignore[method-assign, assignment]


def _run(job: Job, log: Path) -> Ended:
    from engine.launch import free_port

    port, pids = free_port(), []
    for rank in range(job.world):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                file = os.open(log.with_suffix(f".{rank}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1)
                os.dup2(file, 2)
                code = _rank(job, rank, port)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    codes, deadline = {}, time.monotonic() + TIMEOUT_S
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    output = "\n".join(log.with_suffix(f".{rank}").read_text(errors="replace") for rank in range(job.world))
    return Ended([codes[pid] for pid in pids], output)


def _serve(jobs: Sequence[Job]) -> None:
    import tempfile

    import deepspeed  # noqa: F401
    import transformers  # noqa: F401

    import finetune.run  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        ended = [_run(job, Path(folder) / str(number)) for number, job in enumerate(jobs)]
    print(json.dumps([asdict(one) for one in ended]))


if __name__ == "__main__":
    _serve([Job(**job) for job in json.loads(sys.argv[1])])
