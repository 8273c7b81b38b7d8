"""Reader processes: what each of them reads at the moment, and which of them has died.

The DataLoader does not find out by itself: its processes are children of the fork server, so no
SIGCHLD arrives here, and a process that dies while it hands over a batch leaves half a message in a
pipe, behind which the DataLoader waits for good.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from allinone.common.errors import AllInOneError
from allinone.common.exit_codes import ExitCode
from allinone.common.processes import forkserver_context, live_and_die_with_parent

POLL_S = 0.5
"""Seconds until the watching thread notices that it is no longer needed."""
_IDLE = -1

_slots: Any = None
"""In a reader: (data set, row) of every reader, in memory shared with the training process."""
_own = 0


class ReaderDiedError(AllInOneError):
    """A reader process has died; the same command may succeed on another node.

    Args:
        message: Why, and where.
        clip: The clip that it read; empty if it was between two.
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, clip: str = "") -> None:
        super().__init__(message)
        self.clip = clip


@contextlib.contextmanager
def reading(dataset: int, row: int) -> Iterator[None]:
    """Note in a reader process that the block reads a clip; elsewhere, do nothing.

    Args:
        dataset: Number of the data set in its mixture.
        row: Row of its index.
    """
    if _slots is not None:
        _slots[2 * _own], _slots[2 * _own + 1] = dataset, row
    try:
        yield
    finally:
        if _slots is not None:
            _slots[2 * _own] = _IDLE


def _begin(slots: Any, reader: int) -> None:
    """Set up a reader process; `reader` is its number."""
    global _slots, _own
    _slots, _own = slots, reader
    live_and_die_with_parent(reader)


class ReaderContext(ForkServerContext):
    """A context of multiprocessing for a DataLoader that knows the processes it has started.

    Args:
        workers: Number of reader processes.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._readers: list[ForkServerProcess] = []
        self._death: ReaderDiedError | None = None
        self._lock = threading.Lock()
        self._slots = forkserver_context().RawArray("q", [_IDLE] * (2 * workers))
        self.worker_init_fn = partial(_begin, self._slots)
        """For the DataLoader."""

    def Process(self, *args: Any, **options: Any) -> ForkServerProcess:  # type: ignore[override]  # noqa: N802
        """Create a process, as the DataLoader does for each reader in turn."""
        process = ForkServerProcess(*args, **options)
        self._readers.append(process)
        return process

    def watch(
        self, stopped: threading.Event, name: Callable[[int, int], str], report: Callable[..., Any]
    ) -> None:
        """Report the first death of a reader, from a thread.

        Args:
            stopped: Ends the watching.
            name: (data set, row) → the clip's name.
            report: Takes the ReaderDiedError.
        """
        threading.Thread(
            target=self._watch, args=(stopped, name, report), name="watch", daemon=True
        ).start()

    def _watch(
        self, stopped: threading.Event, name: Callable[[int, int], str], report: Callable[..., Any]
    ) -> None:
        running = {process.sentinel: process for process in self._readers}
        while running and not stopped.is_set():
            for sentinel in wait(list(running), POLL_S):
                del running[sentinel]  # type: ignore[arg-type]
            if (death := self.death(name)) is not None and not stopped.is_set():
                report(death)
                return

    def death(self, name: Callable[[int, int], str]) -> ReaderDiedError | None:
        """Return what is known of a reader that died; None if there is none.

        The other readers are ended: they may wait for a lock that the dead one held.

        Args:
            name: (data set, row) → the clip's name.
        """
        with self._lock:  # two threads ask; the second must not find a reader ended here
            for number, process in enumerate(self._readers):
                if self._death is None and process.exitcode:  # None: it runs; 0: it was finished
                    dataset, row = self._slots[2 * number : 2 * number + 2]
                    clip = "" if dataset < 0 else name(dataset, row)
                    self._death = ReaderDiedError(_message(process, clip), clip)
            if self._death is not None:
                for other in self._readers:
                    if other.pid is not None:  # None: not started yet
                        other.kill()
            return self._death


def _message(process: ForkServerProcess, clip: str) -> str:
    code = process.exitcode or 0
    cause = f"exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            cause = signal.Signals(-code).name
    where = f"while it read {clip}" if clip else "between two clips"
    remedy = "if it happens again at this clip, exclude the clip"
    if code == -signal.SIGKILL:
        remedy = "the kernel kills for lack of memory: use fewer --workers, or more memory"
    elif code == -signal.SIGBUS:
        remedy = "usually /dev/shm is full: enlarge it"
    return f"reader process {process.pid} died ({cause}) {where}; {remedy}"
