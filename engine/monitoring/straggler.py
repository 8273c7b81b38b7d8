"""Finds slow ranks by the time that each needs for its own work, without synchronising the device.

A step takes the same time on every rank, because fast ranks wait for slow ones where gradients
are reduced: in the backward pass and in the update. Ranks differ in their own work before that,
which is waiting for data and the forward pass. With ZeRO 3 and with VTC the forward pass contains
collectives too, and the figure is less informative.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SHARE_OF_STEP = 0.1
"""A straggler must cost more than this share of a step: in tiny steps, ratios are noise."""


@dataclass(frozen=True)
class Slowest:
    """The rank with the most own work in a logging interval."""

    rank: int
    host: str
    own_s: float
    """Own work per step, seconds."""
    ratio: float
    """Its own work over the median of the other ranks' own work."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, median and largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def slowest(own_s: Sequence[float], hosts: Sequence[str]) -> Slowest | None:
    """The slowest rank; None if there is only one.

    Args:
        own_s: Own work per step of each rank, seconds.
        hosts: Host name of each rank.
    """
    if len(own_s) < 2:
        return None
    rank = max(range(len(own_s)), key=own_s.__getitem__)
    # without the rank itself: with two ranks, a median that includes it keeps the ratio below 2
    others = statistics.median([value for k, value in enumerate(own_s) if k != rank])
    return Slowest(rank, hosts[rank], own_s[rank], own_s[rank] / others if others > 0 else 1.0)


class StragglerAlarm:
    """Reports a slow rank once, after two logging intervals in a row.

    A rank is slow if its own work exceeds `ratio` times the others' median and the excess costs
    more than SHARE_OF_STEP of a step.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._suspect: int | None = None
        self._reported: int | None = None

    def check(self, found: Slowest | None, step_s: float) -> str | None:
        """Text of a warning, or None.

        Args:
            found: The slowest rank of this logging interval.
            step_s: Time of a complete step, seconds.
        """
        if found is None or not self._is_slow(found, step_s):
            self._suspect = self._reported = None
            return None
        again, self._suspect = self._suspect == found.rank, found.rank
        if not again or self._reported == found.rank:
            return None
        self._reported = found.rank
        return (
            f"rank {found.rank} on {found.host} is a straggler: {found.own_s:.3g} s of own work per"
            f" step, {found.ratio:.1f} times the median of the others, in two logging intervals"
            f" (threshold: {self._ratio:g} times and a tenth of the step; --straggler-ratio)"
        )

    def _is_slow(self, found: Slowest, step_s: float) -> bool:
        excess_s = found.own_s * (1 - 1 / found.ratio)
        return 0 < self._ratio < found.ratio and excess_s >= SHARE_OF_STEP * step_s
