"""Processes that can be killed: a clip that hangs or crashes the decoder costs only itself."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from allinone.common.errors import DataError
from allinone.common.processes import UNGUARDED, forkserver_context, live_and_die_with_parent

STARTING_S = 300.0
"""Time limit for a process to become ready, seconds: it imports modules, possibly from a slow
network disk."""


class TimeLimit(Protocol):
    """What the pool needs to know about probe.Limits."""

    @property
    def timeout_s(self) -> float:
        """Seconds per task."""


Target = Callable[[Connection, Any], None]
"""Main function of a process: receives tasks from the pipe until None and answers each with
(reason or None, detail or result)."""


def answer_tasks(pipe: Connection, answer: Callable[[Any], tuple[Any, Any]]) -> None:
    """Main loop of a decoding process, for targets of ProbePool.

    Args:
        pipe: Gives tasks until None, and takes the answers.
        answer: Task → (reason or None, detail or result).
    """
    import av

    live_and_die_with_parent()
    # bad clips are reported through the pipe; FFmpeg's own lines would repeat that
    av.logging.set_level(av.logging.PANIC)
    while (task := pipe.recv()) is not None:
        pipe.send(answer(task))


def _serve(target: Target, pipe: Connection, limits: TimeLimit) -> None:
    pipe.send("ready")  # the main module has been imported
    target(pipe, limits)


# Not concurrent.futures: one process that dies breaks its pool, and a task that hangs cannot be
# stopped.
class _Worker:
    """One process and the task that it works on."""

    def __init__(self, target: Target, limits: TimeLimit) -> None:
        self._target = target
        self._limits = limits
        self._context = forkserver_context()
        self.number: int | None = None
        """Number of the task; None if the process is idle."""
        self.task: Any = None
        self.deadline = 0.0
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(self._target, theirs, self._limits), daemon=True
        )
        self._process.start()
        # the child must hold the only other end, or its death would not read as EOF here
        theirs.close()
        self.ready = False

    def _set_deadline(self) -> None:
        self.deadline = time.monotonic() + (self._limits.timeout_s if self.ready else STARTING_S)

    def send(self, number: int, task: Any) -> None:
        """Begin a task."""
        self.number = number
        self.task = task  # kept to be sent again if the process is killed
        self._set_deadline()
        # if the process is dead, `receive` reports it
        with contextlib.suppress(ConnectionError):
            self.pipe.send(task)

    def confirm_ready(self) -> None:
        """Read the first message of a new process; raises DataError if it has died instead."""
        try:
            self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(1)
            raise DataError(
                "a decoding process ended before it could work (exit code"
                f" {self._process.exitcode}); its own message is above. In a program of your own:"
                f" {UNGUARDED}"
            ) from error
        # the task's time begins now: imports do not count
        self.ready = True
        self._set_deadline()

    def receive(self) -> tuple[Any, Any] | None:
        """The answer to the task; None if the process died of SIGKILL, and is replaced."""
        try:
            answer: tuple[Any, Any] = self.pipe.recv()
        except (EOFError, ConnectionError):
            # the exit code is known only after join
            self._process.join(5)
            killed = self._process.exitcode == -signal.SIGKILL
            self._restart()
            return None if killed else ("decoder_crashed", "the decoding process died on this clip")
        return answer

    def time_out(self) -> tuple[str, str]:
        """The answer to a task that took too long: its process is killed and replaced."""
        if not self.ready:
            raise DataError(
                f"a decoding process was not ready after {STARTING_S:.0f} s; use fewer --workers,"
                " or a faster disk"
            )
        self._restart()
        return "timeout", f"not decoded within --timeout-s {self._limits.timeout_s:g}"

    def _restart(self) -> None:
        self.kill()
        self._start()

    def kill(self) -> None:
        """End the process."""
        # SIGTERM would only set a deadline, and native code that hangs runs no Python handler.
        self._process.kill()
        self._process.join()


class ProbePool:
    """Processes that work on tasks in parallel.

    A process that hangs or dies is killed and replaced, and its task is reported as bad. A task
    whose process was killed from outside, for example by the kernel for lack of memory, is tried
    once more.

    Args:
        workers: Number of processes, at least one.
        limits: Holds the time limit of a task, and is handed to `target`.
        target: Main function of the processes, at the top level of a module.
    """

    def __init__(self, workers: int, limits: TimeLimit, target: Target) -> None:
        self._workers = [_Worker(target, limits) for _ in range(max(1, workers))]

    def map(self, tasks: Iterable[Any]) -> Iterator[tuple[int, str | None, Any]]:
        """Work on all tasks.

        Args:
            tasks: Taken one by one, as processes become free.

        Yields:
            (number of the task, reason or None, detail or result), in the order of completion.

        Raises:
            DataError: A process died, or was too slow, before it could work; the clip is not bad.
            OSError: The storage failed in a process; this says nothing about the clip.
        """
        numbered = enumerate(tasks)
        retries: deque[tuple[int, Any]] = deque()
        killed: set[int] = set()
        while True:
            for worker in self._workers:
                if worker.number is None:
                    following = retries.popleft() if retries else next(numbered, None)
                    if following is None:
                        break
                    worker.send(*following)
            busy = [worker for worker in self._workers if worker.number is not None]
            if not busy:
                return
            limit = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
            readable = set(wait([worker.pipe for worker in busy], timeout=limit))
            for worker in busy:
                if worker.pipe in readable and not worker.ready:
                    worker.confirm_ready()
                    continue
                if worker.pipe in readable:
                    answer = worker.receive()
                elif time.monotonic() >= worker.deadline:
                    answer = worker.time_out()
                else:
                    continue
                number, worker.number = worker.number, None
                assert number is not None
                if answer is None and number not in killed:
                    killed.add(number)
                    retries.append((number, worker.task))
                    continue
                reason, result = answer or (
                    "killed",
                    "the decoding process was killed twice, out of memory? Use fewer --workers,"
                    " then --retry killed",
                )
                if isinstance(result, OSError):
                    raise result
                yield number, reason, result

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.kill()
