"""Signals, skipped steps and hangs."""

from __future__ import annotations

import faulthandler
import signal
from types import FrameType


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to leave and has saved
    """The run left after a signal; the same command continues it."""


class TooManySkipped(RuntimeError):  # noqa: N818 - says what happened
    """More steps than --max-skipped had a non-finite gradient."""


class StopSignals:
    """Remembers SIGTERM, SIGUSR1 and SIGINT; the loop looks between two steps. A second SIGINT ends at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


class Watchdog:
    """Prints every thread's stack and ends the process if no step finishes within the time-out, whatever it waits for."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def alive(self) -> None:
        """A step has finished: start the time anew."""
        faulthandler.dump_traceback_later(self._timeout_s, exit=True)

    def stop(self) -> None:
        """The run has ended."""
        faulthandler.cancel_dump_traceback_later()
