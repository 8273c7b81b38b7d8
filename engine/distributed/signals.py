"""Signals, skipped steps, hangs, and decisions that all ranks must share."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

from allinone.common.errors import AllInOneError
from allinone.common.exit_codes import ExitCode
from allinone.engine.distributed.heartbeat import Heartbeat

T = TypeVar("T")

EXIT_HANG = 5
GRACE_S = 30.0
"""So much later than a watchdog come the time-out of collectives, which would end a waiting rank
without a word on which one it waits for, and faulthandler's own timer, which needs no Python thread
to run, for a hang that holds the interpreter's lock."""
STOOD_STILL_S = 5.0
"""A watchdog that looks so much later than it meant to was stopped with its whole process (SIGSTOP,
a frozen container), or kept from the interpreter: what it then finds overdue is no sign that others
hang."""
START_S = 180.0
"""Starting, up to the end of the first step, has at least so long, however short --hang-timeout-s
is: it imports, reads a checkpoint, opens data."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def collective_timeout_s(hang_timeout_s: float) -> float:
    """Time-out of collectives: later than any watchdog's."""
    return max(hang_timeout_s, START_S) + GRACE_S


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


def run_on_rank0(action: Callable[[], T]) -> T:
    """Result of `action` on rank 0, given to every rank. Its error is raised on every rank, so that
    none waits for one that has left."""
    import torch.distributed as dist

    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = action()
        except (ValueError, RuntimeError, OSError) as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def all_gather_object(value: T) -> list[T]:
    """The value of every rank, in their order; collective."""
    import torch.distributed as dist

    everywhere: list[Any] = [value]
    if dist.get_world_size() > 1:
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, value)
    return everywhere


_watchdogs: list[Watchdog] = []
"""Of the runs of this process, the newest last."""


def keepalive() -> None:
    """A part of a long evaluation is done: the time that the watchdog allows for it starts anew."""
    if _watchdogs:
        _watchdogs[-1].again()


class Watchdog:
    """Ends the process if nothing finishes within the time-out, whatever it waits for, and says on
    which rank, in what, where in the code, and which ranks give no sign of life."""

    def __init__(self, timeout_s: float, rank: int, world: int) -> None:
        self._timeout_s, self._rank = timeout_s, rank
        self._doing, self._deadline = "start", float("inf")
        self._roll_call = Heartbeat(lambda: self._doing) if world > 1 else None
        self._ended = threading.Event()
        self._reporting = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.alive("start", starting=True)
        self._thread.start()
        _watchdogs.append(self)

    def alive(self, doing: str, starting: bool = False) -> None:
        """Something has finished; start the time anew for what comes next. What is `starting` has
        at least START_S."""
        self._allowed_s = max(self._timeout_s, START_S) if starting else self._timeout_s
        self._doing, self._deadline = doing, time.monotonic() + self._allowed_s
        faulthandler.dump_traceback_later(self._allowed_s + GRACE_S, exit=True)

    def again(self) -> None:
        """A part of what was announced has finished."""
        self.alive(self._doing)

    def stop(self) -> None:
        """The run has ended. A hang that is being reported ends the process itself, also where a
        peer that left has freed this rank meanwhile: the report is wanted whole, and the exit code
        says who waited."""
        if self._reporting:
            self._thread.join()
        self._ended.set()
        if self in _watchdogs:
            _watchdogs.remove(self)
        faulthandler.cancel_dump_traceback_later()
        if self._roll_call:
            self._roll_call.stop()

    def _watch(self) -> None:
        period = min(1.0, self._timeout_s / 10)
        looked = time.monotonic()
        while not self._ended.wait(period):
            late, looked = time.monotonic() - looked - period, time.monotonic()
            if late > STOOD_STILL_S:
                self._deadline += late
                print(
                    f"rank {self._rank} on {socket.gethostname()} (pid {os.getpid()}) stood still"
                    f" for {late:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            if looked > self._deadline:
                self._reporting = True
                host = socket.gethostname()
                allowed = (
                    f"--hang-timeout-s {self._timeout_s:g}"
                    if self._allowed_s == self._timeout_s
                    else f"{self._allowed_s:g} s"
                )
                print(
                    f"error: rank {self._rank} on {host} (pid {os.getpid()}) hangs: {self._doing}"
                    f" did not finish within {allowed}. Ranks that wait in a collective wait for"
                    " one that shows another place, or none:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                if self._roll_call:
                    print(
                        f"error: rank {self._rank} called the roll: {self._roll_call.missing()}",
                        file=sys.stderr,
                        flush=True,
                    )
                os._exit(EXIT_HANG)
