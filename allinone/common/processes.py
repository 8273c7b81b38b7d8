"""How the data path's helper processes start and end, for preparing and loading."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

from allinone.common.errors import DataError
from allinone.common.paths import ROOT

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
GRACE_S = 120
"""Seconds that a process lives on after SIGTERM, so that training can finish its step and save."""
TRIM_EVERY_S = 10.0
"""Seconds between two times that a child returns free memory to the system."""
LARGE_BYTES = 1 << 20
"""Larger than a frame of clips prepared with --short-side 256: mapping and unmapping a block costs
one page fault per page."""
_M_MMAP_THRESHOLD = -3
"""Parameter of glibc's mallopt(3)."""
DALI_MODULES = "allinone.data.loading.dali_"
"""Begins the names of modules that load DALI, and perhaps a GPU's driver with it: for the training
process only."""
FREEZE_MODULE = "allinone.common.gc_freeze"
"""Must be imported last."""

UNGUARDED = (
    "every process that a program starts runs its main module again; put calls like prepare(...)"
    " below `if __name__ == '__main__':`"
)


# atexit runs handlers in reverse order. multiprocessing registered its own, which sends SIGTERM and
# then waits for GRACE_S, when it was imported above, so this one runs first.
@atexit.register
def end_readers() -> None:
    """Kill reader processes that are left over at exit.

    If an error ends this process, nothing else stops its readers.
    """
    readers = [child for child in multiprocessing.active_children() if child.daemon]
    if readers:
        # torch's handler reports the death of a DataLoader worker as an error.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for reader in readers:
            reader.kill()


def refuse_to_start_again() -> None:
    """Raise DataError in a child that still runs its parent's main module.

    Without a guard in that module, the child would start children of its own.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise DataError(UNGUARDED)


def forkserver_context() -> ForkServerContext:
    """Start the fork server with stop signals blocked, and return its context.

    Not fork: a fork of a process with torch's and gloo's threads can deadlock.

    Children inherit the blocked signals. Ctrl-C and Slurm signal every process of a run, and
    training answers by saving after the current step, for which it needs its readers: a reader that
    dies makes the DataLoader raise before the checkpoint is written. A signal that arrives here in
    the meantime is delivered afterwards.

    The server imports in the background what this process has imported of the project, and its
    children share those pages. Python 3.11's server alone imports nothing: every child would spend
    seconds on imports, and a quarter of a GiB of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # First, because starting the resource tracker unblocks SIGINT and SIGTERM.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        shared = [
            name
            for name in sys.modules
            if name.split(".")[0] == "allinone" and not name.startswith(DALI_MODULES)
        ]
        multiprocessing.set_forkserver_preload([*shared, FREEZE_MODULE])
        with _pythonpath(ROOT):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def _pythonpath(folder: Path) -> Iterator[None]:
    """Let Python programs started in this block find modules in `folder` first.

    Python 3.11 does not pass this process's sys.path to the fork server.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def live_and_die_with_parent(worker: int = 0) -> None:
    """Set up a child process; call this first in it.

    SIGTERM becomes a deadline of GRACE_S, because the DataLoader sends it to workers that do not
    leave in time. A child whose parent was killed would wait forever to hand over its last batch,
    and keep the fork server alive: a thread watches for the parent's end and then kills the child.
    The same thread returns free memory to the system.

    Args:
        worker: Number of the reader; DataLoader's `worker_init_fn` passes it.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _map_large_blocks()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        while not wait([parent.sentinel], TRIM_EVERY_S):
            _glibc("malloc_trim", 0)
        os.kill(os.getpid(), signal.SIGKILL)


def _map_large_blocks() -> None:
    """Make glibc map blocks of LARGE_BYTES and more, so that freeing them returns their memory.

    Otherwise glibc raises its threshold once it has seen a large block freed, and takes later ones
    from the heap; the frame times of an hour-long video and the bytes of a batch then leave holes
    of tens of MiB in every reader of a node.
    """
    _glibc("mallopt", _M_MMAP_THRESHOLD, LARGE_BYTES)


def _glibc(name: str, *arguments: int) -> None:
    """Call a function of glibc; do nothing with C libraries that lack it."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
