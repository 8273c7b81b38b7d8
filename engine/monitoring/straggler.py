"""Which rank is slow: time that each needs for its own work, measured without waiting for the
device.

A step takes the same time on every rank, since the fast ones wait for the slow one where gradients
are summed: in the backward pass and in the update. What tells ranks apart is their own work before
that: waiting for data and the forward pass. With ZeRO 3, and with VTC, ranks wait for each other in
the forward pass too, and the figure says less.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

SHARE_OF_STEP = 0.1
"""A straggler must cost more than this share of a step: in tiny steps, ratios are noise."""


class Stopwatch:
    """Adds up times of a piece of code: host times on a CPU, CUDA events on a GPU, which are read
    when the device has come to rest anyway."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Time what is done inside."""
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
        """Seconds since the last call. On a GPU the last event is waited for: to be called on
        logging steps only."""
        if self._events:
            self._events[-1][1].synchronize()
        total = (
            self._seconds + sum(before.elapsed_time(after) for before, after in self._events) / 1e3
        )
        self._seconds, self._events = 0.0, []
        return total


@dataclass(frozen=True)
class Slowest:
    """The rank with the most own work in an interval."""

    rank: int
    host: str
    own_s: float
    """Its own work per step, seconds."""
    ratio: float
    """Its own work over the median of the other ranks' own work."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def slowest(own_s: Sequence[float], hosts: Sequence[str]) -> Slowest | None:
    """The slowest rank; None where there is only one."""
    if len(own_s) < 2:
        return None
    rank = max(range(len(own_s)), key=own_s.__getitem__)
    others = statistics.median([value for k, value in enumerate(own_s) if k != rank])
    return Slowest(rank, hosts[rank], own_s[rank], own_s[rank] / others if others > 0 else 1.0)


class StragglerAlarm:
    """Says once that a rank lags: two logging intervals in a row above `ratio` and above a tenth of
    the step's time."""

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._suspect: int | None = None
        self._named: int | None = None

    def judge(self, found: Slowest | None, step_s: float) -> str | None:
        """A warning, or None. `step_s` is the time of a whole step."""
        slow = found is not None and self._ratio > 0 and found.ratio > self._ratio
        if (
            found is None
            or not slow
            or found.own_s * (1 - 1 / found.ratio) < SHARE_OF_STEP * step_s
        ):
            self._suspect = self._named = None
            return None
        again, self._suspect = self._suspect == found.rank, found.rank
        if not again or self._named == found.rank:
            return None
        self._named = found.rank
        return (
            f"rank {found.rank} on {found.host} lags: {found.own_s:.3g} s of own work per step,"
            f" {found.ratio:.1f} times the median of the others, in two logging intervals (warned"
            f" of above {self._ratio:g} times and a tenth of the step; --straggler-ratio)"
        )
