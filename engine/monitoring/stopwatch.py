"""Two clocks of a run: training time without interruptions, and device time of a code region."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Wall-clock time of training, paused during checkpoints, evaluations and step replays."""

    def __init__(self) -> None:
        self._elapsed_s = 0.0
        self._resumed_at = time.perf_counter()
        self._pauses = 0

    def _stop(self) -> None:
        if not self._pauses:
            self._elapsed_s += time.perf_counter() - self._resumed_at

    def lap(self) -> float:
        """Seconds since the previous call or the start, without paused time."""
        self._stop()
        self._resumed_at, seconds, self._elapsed_s = time.perf_counter(), self._elapsed_s, 0.0
        return seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside; pauses may be nested."""
        self._stop()
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            self._resumed_at = time.perf_counter()


class DeviceTimer:
    """Total time of a code region: host time on a CPU, CUDA events on a GPU.

    Events are only read by `take`, so that timing never synchronises the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Time the code inside."""
        if not self._cuda:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        yield
        after.record()
        self._events.append((before, after))

    def take(self) -> float:
        """Seconds since the last call. On a GPU this waits for the last event: log steps only."""
        # events of one stream finish in order: waiting for the last one is enough
        if self._events:
            self._events[-1][1].synchronize()
        milliseconds = sum(before.elapsed_time(after) for before, after in self._events)
        total = self._seconds + milliseconds / 1e3
        self._seconds, self._events = 0.0, []
        return total
