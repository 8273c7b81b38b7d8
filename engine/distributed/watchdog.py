"""Ends a process that hangs and reports rank, activity, stack and unresponsive ranks."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time

from allinone.common.exit_codes import ExitCode
from allinone.engine.distributed.heartbeat import HeartbeatMonitor

GRACE_S = 30.0
"""Delay after the watchdog's deadline of two last resorts: the time-out of collectives, which would
end a waiting rank without naming the one it waits for, and faulthandler's timer, which needs no
Python thread and so works when the interpreter's lock is held."""
SUSPENDED_S = 5.0
"""A watchdog that wakes up this much later than planned was suspended with its process (SIGSTOP, a
frozen container) or could not get the interpreter's lock. Its deadline is moved by that time,
because an overdue activity then says nothing about other ranks."""
STARTUP_S = 180.0
"""Minimum time limit from the start to the end of the first step, where a rank imports modules,
reads a checkpoint and opens data, however small --hang-timeout-s is."""

_watchdogs: list[Watchdog] = []
"""Watchdogs of the runs in this process, newest last."""


def keepalive() -> None:
    """Restart the time limit of the current activity; call it after every batch of a long one."""
    if _watchdogs:
        _watchdogs[-1].keepalive()


class Watchdog:
    """Ends the process when an activity exceeds its time limit.

    Args:
        timeout_s: Time limit of an activity, seconds (--hang-timeout-s).
        rank: This process's rank.
        world: Number of ranks.
    """

    def __init__(self, timeout_s: float, rank: int, world: int) -> None:
        self._timeout_s, self._rank = timeout_s, rank
        self._activity, self._deadline = "start", float("inf")
        self._heartbeats = HeartbeatMonitor(lambda: self._activity) if world > 1 else None
        self._stopped = threading.Event()
        self._reporting = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        # before the thread, which reads the deadline
        self.begin("start", starting=True)
        self._thread.start()
        _watchdogs.append(self)

    def begin(self, activity: str, starting: bool = False) -> None:
        """Announce the next activity and restart the time limit.

        Args:
            activity: Shown in the report of a hang, for example "step 7".
            starting: Allow at least STARTUP_S.
        """
        self._limit_s = max(self._timeout_s, STARTUP_S) if starting else self._timeout_s
        # monotonic: an NTP correction of the wall clock must not end a run
        self._activity, self._deadline = activity, time.monotonic() + self._limit_s
        # its C thread needs no interpreter lock: it fires even if the watchdog's thread cannot run
        faulthandler.dump_traceback_later(self._limit_s + GRACE_S, exit=True)

    def keepalive(self) -> None:
        """Restart the time limit of the current activity."""
        self.begin(self._activity)

    def stop(self) -> None:
        """End the supervision.

        If a hang is being reported, wait for the report, which ends the process. The peer that this
        rank waited for may have left in the meantime, but the report is still needed in full, and
        its exit code shows which ranks were waiting.
        """
        if self._reporting:
            self._thread.join()
        self._stopped.set()
        if self in _watchdogs:
            _watchdogs.remove(self)
        faulthandler.cancel_dump_traceback_later()
        if self._heartbeats:
            self._heartbeats.stop()

    def _watch(self) -> None:
        period = min(1.0, self._timeout_s / 10)
        last_check = time.monotonic()
        while not self._stopped.wait(period):
            delay, last_check = time.monotonic() - last_check - period, time.monotonic()
            if delay > SUSPENDED_S:
                self._deadline += delay
                self._print(f"{self._name()} was suspended for {delay:.0f} s")
            if last_check > self._deadline:
                self._reporting = True
                self._report_hang()
                # sys.exit would end this thread only: the main thread is blocked
                os._exit(ExitCode.HANG)

    def _report_hang(self) -> None:
        limit = f"{self._limit_s:g} s"
        if self._limit_s == self._timeout_s:
            limit = f"--hang-timeout-s {self._timeout_s:g}"
        self._print(
            f"error: {self._name()} hangs: {self._activity} did not finish within {limit}. A rank"
            " inside a collective waits for a rank that reports another location, or none:"
        )
        faulthandler.dump_traceback(all_threads=True)
        if self._heartbeats:
            found = self._heartbeats.find_unresponsive()
            self._print(f"error: rank {self._rank} checked all heartbeats: {found}")

    def _name(self) -> str:
        return f"rank {self._rank} on {socket.gethostname()} (pid {os.getpid()})"

    @staticmethod
    def _print(text: str) -> None:
        # not through logging: the thread that hangs may hold the lock of a log handler
        print(text, file=sys.stderr, flush=True)
