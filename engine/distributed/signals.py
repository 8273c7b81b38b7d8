"""Signals, and the errors with which a run ends on all ranks."""

from __future__ import annotations

import signal
from datetime import timedelta
from types import FrameType
from typing import Any

from allinone.common.errors import AllInOneError
from allinone.common.exit_codes import ExitCode
from allinone.engine.distributed.collectives import collective_timeout_s

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(AllInOneError):  # noqa: N818 - not an error: the run was asked to leave and has saved
    """The run left after a signal; the same command continues it."""

    exit_code = ExitCode.REQUEUE


class TooManySkippedError(AllInOneError, RuntimeError):
    """More steps in a row than --max-skipped had a non-finite gradient."""

    exit_code = ExitCode.NON_FINITE


class StopSignals:
    """Remembers SIGTERM, SIGUSR1 and SIGINT for the loop, which looks between two steps. A second
    SIGINT ends at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class SignalSync:
    """Tells every rank about a signal that any rank got, one step later, without waiting for the
    device or for slower ranks.

    The exchange runs over a group of its own between hosts (gloo), beside the next step; NCCL would
    put it on the device and make the host wait there.
    """

    _NAMES = (None, *(number.name for number in SIGNALS))

    def __init__(self, timeout_s: float) -> None:
        import torch.distributed as dist

        self._dist = dist
        self._pending: tuple[Any, Any] | None = None
        several = dist.get_world_size() > 1
        self._group = (
            dist.new_group(
                backend="gloo", timeout=timedelta(seconds=collective_timeout_s(timeout_s))
            )
            if several
            else None
        )

    def share(self, received: str | None) -> str | None:
        """Call once per step on every rank: what was received up to the step before, the same on
        all."""
        import torch

        if self._group is None:
            return received
        before = self.settle()
        code = torch.tensor(self._NAMES.index(received))
        self._pending = (
            self._dist.all_reduce(code, self._dist.ReduceOp.MAX, group=self._group, async_op=True),
            code,
        )
        return before

    def settle(self) -> str | None:
        """Wait for the exchange that is under way; no later one may be open when the process group
        closes."""
        if self._pending is None:
            return None
        work, code = self._pending
        work.wait()
        self._pending = None
        return self._NAMES[int(code)]
