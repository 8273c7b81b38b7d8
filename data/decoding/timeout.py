"""Work in native code that may never come back, with a time limit: the caller goes on without
it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
_Task = tuple[Callable[[], Any], SimpleQueue[Any]]

_local = threading.local()
os.register_at_fork(
    after_in_child=lambda: vars(_local).clear()
)  # a fork has its parent's objects, not its threads


class _Helper:
    """A thread that works off one task after another and leaves with the last reference to this."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._tasks,), name="patience", daemon=True).start()

    def __del__(self) -> None:
        self._tasks.put(None)

    def do(self, work: Callable[[], Any], seconds: float) -> tuple[Any, BaseException | None]:
        answer: SimpleQueue[Any] = SimpleQueue()
        self._tasks.put((work, answer))
        return answer.get(timeout=seconds)


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        work, answer = task
        try:
            answer.put((work(), None))
        except BaseException as error:  # noqa: BLE001 - handed to the caller, which raises it
            answer.put((None, error))
        del task, work, answer  # megabytes of frames, until the next task comes


def within(seconds: float, work: Callable[[], ResultT]) -> ResultT:
    """What `work` returns or raises, done in a thread that this thread keeps for that; TimeoutError
    after `seconds`.

    Nothing can stop a thread that hangs in native code. It is left behind, with the memory it holds
    and at worst a core, until the process ends; the next call gets a new one. Native code that
    keeps Python's lock while it hangs holds up this thread as well.
    """
    if not hasattr(_local, "helper"):
        _local.helper = _Helper()
    try:
        result, error = _local.helper.do(work, seconds)
    except Empty:
        del _local.helper
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback holds this frame
    return result
