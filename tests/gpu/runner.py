"""Runs one stage in child processes, with a time limit, and continues after a crash or a hang."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from allinone.engine.distributed.launch import free_port
from allinone.tools.reporting.gpu_report import Check, Stage, state_of
from tests.gpu.stage import Settings, StageSpec, work

POLL_S = 0.1
LOG_CHARACTERS = 6000
"""Of a bad stage's output, in the report."""


def context_for(device: str) -> BaseContext:
    """How children start.

    On a CPU they are forks of a process that has imported torch once. With CUDA every child is a
    new process: the driver does not survive a fork.
    """
    if device == "cuda":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.gpu.preload"])
    return context


@dataclass
class Progress:
    """What a child has written so far."""

    planned: list[str]
    checks: list[Check]
    running: str = ""
    """The check that has begun and not ended."""
    since: float = 0.0
    """time.monotonic() at which that was noticed."""

    @classmethod
    def read(cls, path: Path) -> Progress:
        """Read the lines of a progress file; none if the child has not come that far."""
        found = cls([], [])
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
                    found._add(json.loads(line))
        return found

    def _add(self, line: Mapping[str, Any]) -> None:
        if "planned" in line:
            self.planned = line["planned"]
        elif "began" in line:
            self.running = line["began"]
        else:
            self.checks.append(Check(**line["check"]))
            self.running = ""


class Ranks:
    """The launcher variables of every child of an attempt, and what other tasks of srun report.

    Args:
        count: Processes of a stage that runs on all GPUs.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def environments(self, spec: StageSpec) -> list[Mapping[str, str] | None]:
        """One per child that this process starts."""
        if not spec.ranks:
            return [{}]
        port = str(free_port())
        shared = {
            "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        return [
            {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(self.count)
        ]

    def begin(self, spec: StageSpec, done: Sequence[str], settings: Settings) -> None:
        """Called before the children of an attempt start."""

    def failure(self) -> str:
        """What is known about ranks of other processes that have failed; "" if nothing."""
        return ""

    def end(self) -> None:
        """Called after the children of an attempt have ended."""


def stop(process: BaseProcess) -> None:
    """End a child and everything that it started; its log says where it was."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGABRT)
    process.join(3.0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join(5.0)


def run_stage(
    spec: StageSpec,
    settings: Settings,
    context: BaseContext,
    ranks: Ranks,
    time_scale: float = 1.0,
) -> Stage:
    """Run a stage, again after every crash and hang with the checks that are left.

    Args:
        spec: The stage.
        settings: For its checks; its folder is deleted by the caller.
        context: How children start.
        ranks: The processes of a stage that runs on all GPUs.
        time_scale: Multiplies the time limits.

    Returns:
        The stage's part of the report.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    limit_s = spec.limit_s * time_scale
    checks: list[Check] = []
    reasons: list[str] = []
    attempt = 0
    while True:
        attempt += 1
        path = settings.folder / f"progress-{attempt}.jsonl"
        reason, state, progress = _attempt(
            spec, settings, context, ranks, path, [check.name for check in checks],
            start + limit_s, spec.check_s * time_scale,
        )  # fmt: skip
        checks += progress.checks
        if not reason:
            break
        reasons.append(reason)
        if progress.running:
            checks.append(Check(progress.running, state, reason))  # type: ignore[arg-type]
        left = [name for name in progress.planned if name not in {check.name for check in checks}]
        # without a running check nothing is known that could be left out of the next attempt
        if not progress.running or not left or time.monotonic() >= start + limit_s:
            checks += [
                Check(name, "not run", "the stage ended before it: " + reason) for name in left
            ]
            break
    if not checks:
        overall = "crashed" if not reasons else state
    else:
        overall = state_of(checks)
    if reasons and overall in ("passed", "skipped"):
        overall = state  # the process failed after its last check
    return Stage(
        spec.name,
        spec.title,
        overall,  # type: ignore[arg-type]
        round(time.monotonic() - start, 1),
        limit_s,
        checks,
        "; ".join(reasons),
        _log(settings.folder) if overall not in ("passed", "skipped") else "",
    )


def _attempt(
    spec: StageSpec,
    settings: Settings,
    context: BaseContext,
    ranks: Ranks,
    path: Path,
    done: Sequence[str],
    deadline: float,
    check_s: float,
) -> tuple[str, str, Progress]:
    """Start the children once; returns (why they did not end well, state, progress)."""
    ranks.begin(spec, done, settings)
    processes = []
    for rank, environment in enumerate(ranks.environments(spec)):
        own = path if rank == 0 else path.with_name(f"{path.stem}-rank-{rank}.jsonl")
        process = context.Process(  # type: ignore[attr-defined]
            target=work, args=(spec, settings, own, tuple(done), environment)
        )
        process.start()
        processes.append(process)
    reason, state = _wait(processes, path, ranks, deadline, check_s)
    for process in processes:
        if reason or process.is_alive():
            stop(process)
    ranks.end()
    return reason, state, Progress.read(path)


def _wait(
    processes: Sequence[BaseProcess], path: Path, ranks: Ranks, deadline: float, check_s: float
) -> tuple[str, str]:
    """Wait until all children have ended; ("", "") if they did so well."""
    ended, changed = 0, time.monotonic()
    while any(process.is_alive() for process in processes):
        time.sleep(POLL_S)
        for rank, process in enumerate(processes):
            if process.exitcode:
                where = f"rank {rank}" if len(processes) > 1 else "the process"
                return f"{where} ended with {_exit(process.exitcode)}", "crashed"
        if failure := ranks.failure():
            return failure, "crashed"
        now = time.monotonic()
        if (count := len(Progress.read(path).checks)) != ended:
            ended, changed = count, now
        if now > deadline:
            return "the time limit of the stage", "timed out"
        if now > changed + check_s:
            return f"no result within the limit of {check_s:.0f} s", "timed out"
    codes = [process.exitcode for process in processes]
    bad = next((code for code in codes if code), 0)
    return (f"the process ended with {_exit(bad)}", "crashed") if bad else ("", "")


def _exit(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _log(folder: Path) -> str:
    texts = [
        f"{path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-LOG_CHARACTERS:]}"
        for path in sorted(folder.glob("progress-*.log"))
    ]
    return "\n".join(texts)[-2 * LOG_CHARACTERS :]
