"""Time limits for native code that may never return: the caller continues without the result."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
_Task = tuple[Callable[[], Any], SimpleQueue[Any]]

_local = threading.local()
# A forked child inherits the helper object but not its thread: it must create its own.
os.register_at_fork(after_in_child=lambda: vars(_local).clear())


class _Helper:
    """A thread that runs tasks one after another and ends with the last reference to this."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        threading.Thread(target=_work, args=(self._tasks,), name="timeout", daemon=True).start()

    def __del__(self) -> None:
        self._tasks.put(None)

    def run(self, task: Callable[[], Any], seconds: float) -> tuple[Any, BaseException | None]:
        answer: SimpleQueue[Any] = SimpleQueue()
        self._tasks.put((task, answer))
        return answer.get(timeout=seconds)


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    while (item := tasks.get()) is not None:
        task, answer = item
        try:
            answer.put((task(), None))
        except BaseException as error:  # noqa: BLE001 - handed to the caller, which raises it
            answer.put((None, error))
        # Otherwise megabytes of frames would stay referenced until the next task arrives.
        del item, task, answer


def call_with_timeout(seconds: float, task: Callable[[], ResultT]) -> ResultT:
    """Run `task` in a helper thread of this thread and return its result.

    A thread that hangs in native code cannot be stopped. It is abandoned, with the memory it holds
    and at worst one busy core, until the process ends; the next call starts a new helper. Native
    code that hangs while holding the GIL blocks the caller too.

    Raises:
        TimeoutError: No result within `seconds`.
    """
    if not hasattr(_local, "helper"):
        _local.helper = _Helper()
    try:
        result, error = _local.helper.run(task, seconds)
    except Empty:
        del _local.helper
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        try:
            raise error
        finally:
            del error  # breaks the cycle error → traceback → this frame → error
    return result
