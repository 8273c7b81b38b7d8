"""Starts the ranks of a training as forks of one process that has already imported torch.

As under srun and torchrun, a rank that fails ends all others.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

GRACE_S = 5.0
"""Seconds that the other ranks have to report and exit after the first rank has failed."""
_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h: the signal that a process gets when its parent dies."""


class RankProcesses:
    """Processes that each run `rank_main(rank)`.

    Create them before torch has started threads: a fork inherits the locks of threads, but not the
    threads.

    Args:
        world: Number of ranks.
        logs: New folder; the output of rank N goes to rank-N.txt in it.
        rank_main: Returns the exit code of a rank.
    """

    def __init__(self, world: int, logs: Path, rank_main: Callable[[int], int]) -> None:
        from allinone.engine.distributed.launch import free_port

        logs.mkdir(parents=True)
        self.logs = logs
        self.started = time.monotonic()
        self.codes: dict[int, int] = {}
        """Rank → exit code, for ranks that have ended."""
        self.ended: dict[int, float] = {}
        """Rank → time.monotonic() at which its end was noticed."""
        self.pids: dict[int, int] = {}
        port = str(free_port())
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                variables = {
                    "RANK": rank,
                    "WORLD_SIZE": world,
                    "LOCAL_RANK": rank,
                    "LOCAL_WORLD_SIZE": world,
                }
                os.environ.update(
                    {name: str(value) for name, value in variables.items()},
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port,
                )
                _become(logs / f"rank-{rank}.txt", partial(rank_main, rank))
            self.pids[rank] = pid

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank, if it is still running."""
        # a rank without exit code has not been waited for, so its number is not reused
        if rank not in self.codes:
            os.kill(self.pids[rank], number)

    def running(self) -> bool:
        """Whether any rank is running; collects the exit codes of those that ended."""
        for rank, pid in self.pids.items():
            if rank not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
                    self.ended[rank] = time.monotonic()
        return len(self.codes) < len(self.pids)

    def finish(self, timeout_s: float) -> list[int]:
        """Wait until all ranks have ended; returns their exit codes, in order of ranks.

        Ranks that are still running `GRACE_S` after the first failure, or at the time-out, are
        killed.
        """
        deadline = time.monotonic() + timeout_s
        while self.running():
            if any(self.codes.values()):
                failure = min(end for rank, end in self.ended.items() if self.codes[rank])
                deadline = min(deadline, failure + GRACE_S)
            if time.monotonic() > deadline:
                self.kill()
            # polled, because waitpid has no time-out; 10 ms is the resolution of `ended`
            time.sleep(0.01)
        return [self.codes[rank] for rank in sorted(self.codes)]

    def kill(self) -> None:
        """Kill all running ranks, also those that were stopped by SIGSTOP."""
        for rank in self.pids:
            self.signal(rank, signal.SIGKILL)

    def output(self) -> str:
        """The output of all ranks."""
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.logs.glob("rank-*.txt"))
        )


def _become(log: Path, main: Callable[[], int]) -> None:
    """Turn a forked child into a rank, which also dies when its parent dies; never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(target, stream)
        # the parent's sys.stdout may not write to descriptor 1, for example under pytest
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
        code = main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:  # noqa: BLE001 - the child must not continue its parent's program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # not sys.exit: the parent's handlers at exit must not run in the fork


def preload() -> None:
    """Import the modules of pretrain/train.py once, for all forks."""
    for name in (
        "torch.utils.tensorboard",
        "allinone.data.loading.dali_pipeline",
        "allinone.engine.trainer",
        "allinone.pretrain.run",
        "deepspeed",
    ):
        importlib.import_module(name)
