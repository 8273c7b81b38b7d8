"""How the data path's helper processes start and end: preparing and loading share this."""

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

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
GRACE_S = 120
"""Seconds for which a process goes on after SIGTERM, so that training can finish its step and
save."""
TRIM_EVERY_S = 10.0
"""Seconds between two times that a child gives free memory back."""
LARGE_BYTES = 1 << 20
"""More than a frame of clips prepared with --short-side 256: to map and unmap one costs a fault per
page."""
_M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt(3)."""
GRAPH = "allinone.data.loading.dali_pipeline"
"""Loads DALI, perhaps a GPU's driver with it: for the training process only."""
FREEZE = "allinone.common.gc_freeze"
"""To be imported last."""

UNGUARDED = (
    "every process that a program starts runs its main module again; put calls like prepare(...)"
    " below `if __name__ == '__main__':`"
)


# before multiprocessing's own, which was registered when it was imported: it would send SIGTERM,
# and wait
@atexit.register
def end_readers() -> None:
    """An error of a reader that ends this process leaves readers behind that nobody tells to leave;
    SIGTERM gives them GRACE_S."""
    readers = [child for child in multiprocessing.active_children() if child.daemon]
    if readers:
        signal.signal(
            signal.SIGCHLD, signal.SIG_DFL
        )  # torch's handler calls a reader's end an error
        for reader in readers:
            reader.kill()


def refuse_to_start_again() -> None:
    """DataError in a child that is still running its parent's main module: without a guard there,
    it would start children of its own."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise DataError(UNGUARDED)


def forkserver_context() -> ForkServerContext:
    """The forkserver context, its server started with stop signals blocked; its children inherit
    that.

    Not fork: a fork of a process with torch's and gloo's threads can deadlock. Ctrl-C and Slurm
    signal every process of a run. Training answers by saving, and needs its workers for the step
    under way: one that dies makes the DataLoader raise before the checkpoint is written. No signal
    is lost here: one that comes meanwhile is delivered afterwards.

    The server imports what this process has imported of the project, in the background, and its
    children share those pages. By itself (Python 3.11) it imports nothing: every child would take
    seconds for that, and a quarter of a GiB of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        # first, since it unblocks SIGINT and SIGTERM behind our back
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        shared = [
            name for name in sys.modules if name.split(".")[0] == "allinone" and name != GRAPH
        ]
        multiprocessing.set_forkserver_preload([*shared, FREEZE])
        with _searched_first(ROOT):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def _searched_first(folder: Path) -> Iterator[None]:
    """Python programs started meanwhile find modules in `folder`: the fork server of Python 3.11 is
    not told this process's sys.path."""
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
    """To be called first in a child: it leaves when told to, some time after SIGTERM, and at once
    when the parent is gone.

    SIGTERM is let through as a deadline, since the DataLoader ends with it a worker that does not
    leave by itself. A child whose parent was killed would wait for ever to hand over its last
    batch, and keep the fork server alive with it; a thread of its own watches for that, and keeps
    memory small meanwhile.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _give_large_blocks_back()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        while not wait([parent.sentinel], TRIM_EVERY_S):
            _trim()
        os.kill(os.getpid(), signal.SIGKILL)


def _give_large_blocks_back() -> None:
    """Free blocks of LARGE_BYTES and more go back to the system at once. By itself glibc takes them
    from the heap once it has seen one freed; the tables of an hour-long video and the bytes of a
    batch then leave holes of tens of MiB."""
    _glibc("mallopt", _M_MMAP_THRESHOLD, LARGE_BYTES)


def _trim() -> None:
    """Give free memory back to the system. Buffers of frames that come and go, none like the last,
    leave holes in glibc's heap, which it keeps, in every reader of a node."""
    _glibc("malloc_trim", 0)


def _glibc(name: str, *arguments: int) -> None:
    """Call a function that other C libraries may lack: there nothing is done."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
