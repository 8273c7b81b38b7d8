"""Ranks of a training as forks of one process that has paid for the imports, with the manners of
srun and torchrun: one that fails takes all down."""

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
"""After the first rank has failed, the others get this long to say something and leave."""
_PR_SET_PDEATHSIG = 1


class RankProcesses:
    """`world` processes that each run `rank_main(rank)`; output goes to `logs`/rank-N.txt.

    Fork before torch has started threads: a fork inherits their locks, not the threads.
    """

    def __init__(self, world: int, logs: Path, rank_main: Callable[[int], int]) -> None:
        from allinone.engine.distributed.launch import free_port

        logs.mkdir(parents=True)
        self.logs, self.started = logs, time.monotonic()
        self.codes: dict[int, int] = {}
        self.ended: dict[int, float] = {}
        """Rank → time.monotonic() at which its end was seen."""
        self.pids: dict[int, int] = {}
        port = str(free_port())
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                place = {
                    "RANK": rank,
                    "WORLD_SIZE": world,
                    "LOCAL_RANK": rank,
                    "LOCAL_WORLD_SIZE": world,
                }
                os.environ.update(
                    {name: str(value) for name, value in place.items()},
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port,
                )
                _become(logs / f"rank-{rank}.txt", partial(rank_main, rank))
            self.pids[rank] = pid

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank, if it is still there."""
        if rank not in self.codes:
            os.kill(self.pids[rank], number)

    def running(self) -> bool:
        """Is any rank left? Collects those that ended."""
        for rank, pid in self.pids.items():
            if rank not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[rank], self.ended[rank] = (
                        os.waitstatus_to_exitcode(status),
                        time.monotonic(),
                    )
        return len(self.codes) < len(self.pids)

    def finish(self, timeout_s: float) -> list[int]:
        """Exit codes in order of ranks, after all have ended: by themselves, `GRACE_S` after a
        failure, or at the time-out."""
        deadline = time.monotonic() + timeout_s
        while self.running():
            if any(self.codes.values()):
                deadline = min(
                    deadline, min(t for r, t in self.ended.items() if self.codes[r]) + GRACE_S
                )
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.01)
        return [self.codes[rank] for rank in sorted(self.codes)]

    def kill(self) -> None:
        """End all that are left, stopped ones too."""
        for rank in self.pids:
            self.signal(rank, signal.SIGKILL)

    def output(self) -> str:
        """What all ranks printed."""
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.logs.glob("rank-*.txt"))
        )


def _become(log: Path, main: Callable[[], int]) -> None:
    """The child's life; never returns. It dies with its parent."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(target, stream)
        # the parent's own streams may lead elsewhere, as under pytest
        sys.stdout, sys.stderr = (
            os.fdopen(stream, "w", buffering=1, encoding="utf-8", closefd=False)
            for stream in (1, 2)
        )
        code = main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 1
    except BaseException:  # noqa: BLE001 - the child must not go on with its parent's program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def preload() -> None:
    """Import what a rank of pretrain/train.py needs, once for all forks."""
    for name in (
        "torch.utils.tensorboard",
        "allinone.data.loading.dali_pipeline",
        "allinone.engine.trainer",
        "allinone.pretrain.train",
        "deepspeed",
    ):
        importlib.import_module(name)
