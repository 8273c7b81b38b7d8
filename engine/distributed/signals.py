"""Stop signals: remembered by one rank, agreed on by all."""

from __future__ import annotations

import signal
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from allinone.common.errors import AllInOneError
from allinone.common.exit_codes import ExitCode
from allinone.engine.distributed.collectives import collective_timeout_s

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class RunInterrupted(AllInOneError):  # noqa: N818 - not an error: the run saved a checkpoint as asked
    """The run ended after a signal; the same command continues it."""

    exit_code = ExitCode.REQUEUE


class StopSignals:
    """Remembers SIGTERM, SIGUSR1, SIGINT and SIGHUP; the training loop checks between two steps.

    A second SIGINT raises KeyboardInterrupt at once. SIGHUP, which the end of an ssh connection
    sends, stays ignored under nohup.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._previous = {
            number: signal.signal(number, self._remember)
            for number in SIGNALS
            if not (ignored and number == signal.SIGHUP)
        }

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # only remember: the handler may run inside a collective, which the other ranks also entered
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def restore(self) -> None:
        """Reinstall the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class SignalSync:
    """Makes every rank learn of a signal that any rank received, one step later.

    The exchange overlaps the next step, so that no rank waits for the device or for a slower rank.
    It uses a gloo group of its own: NCCL would run it on the device and block the host.
    """

    _NAMES = (None, *(number.name for number in SIGNALS))

    def __init__(self, hang_timeout_s: float) -> None:
        self._pending: tuple[Any, Any] | None = None
        self._group: Any = None
        if dist.get_world_size() > 1:
            timeout = timedelta(seconds=collective_timeout_s(hang_timeout_s))
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def exchange(self, received: str | None) -> str | None:
        """Start this step's exchange and return the result of the previous one.

        Every rank must call it once per step.

        Args:
            received: Name of the signal that this rank has received, if any.

        Returns:
            Name of a signal that any rank had received by the previous step; equal on all ranks.
        """
        if self._group is None:
            return received
        # finish the previous exchange first: one is open at a time, in the same order on all ranks
        agreed = self.finish()
        code = torch.tensor(self._NAMES.index(received))
        # MAX over indices: None is 0, so any signal wins, and all ranks agree on the same one
        work = dist.all_reduce(code, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, code)
        return agreed

    def finish(self) -> str | None:
        """Wait for the pending exchange; none may be open when the process group is destroyed."""
        if self._pending is None:
            return None
        work, code = self._pending
        work.wait()
        self._pending = None
        return self._NAMES[int(code)]
