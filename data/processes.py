"""How the data path's helper processes start and end: preparing and loading share this."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext

from data.errors import DataError

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
GRACE_S = 120
"""Seconds for which a process goes on after SIGTERM, so that training can finish its step and save."""


UNGUARDED = "every process that a program starts runs its main module again; put calls like prepare(...) below `if __name__ == '__main__':`"


def refuse_to_start_again() -> None:
    """DataError in a child that is still running its parent's main module: without a guard there, it would start children of its own."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise DataError(UNGUARDED)


def forkserver_context() -> ForkServerContext:
    """The forkserver context, its server started with stop signals blocked; its children inherit that.

    Not fork: a fork of a process with torch's and gloo's threads can deadlock. Ctrl-C and Slurm signal every process of a run. Training answers by
    saving, and needs its workers for the step under way: one that dies makes the DataLoader raise before the checkpoint is written. No signal is lost
    here: one that comes meanwhile is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # first, since it unblocks SIGINT and SIGTERM behind our back
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


def live_and_die_with_parent(worker: int = 0) -> None:
    """To be called first in a child: it leaves when told to, some time after SIGTERM, and at once when the parent is gone.

    SIGTERM is let through as a deadline, since the DataLoader ends with it a worker that does not leave by itself. A child whose parent was killed
    would wait for ever to hand over its last batch, and keep the fork server alive with it; a thread of its own watches for that.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
