"""Ends a process that hangs, and says where."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time

from allinone.engine.distributed.heartbeat import Heartbeat

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
