"""Detects loss and gradient anomalies.

Non-finite values always count; finite ones are compared by a robust rule that a single outlier
cannot move.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from allinone.engine.monitoring.accumulator import IntervalMetrics

WINDOW = 200
"""Steps whose values define what is usual."""
MIN_STEPS = 30
"""Steps before any value can be a spike; also after a restart, which starts an empty window."""
MAD_TO_DEVIATION = 1.4826
"""Median absolute deviation x this = standard deviation of a normal distribution."""
MIN_RELATIVE_DEVIATION = 0.05
"""Lower bound of the deviation as a share of the median: a curve without noise has a MAD of 0."""


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True)
class Anomaly:
    """One step with an unusual loss or gradient."""

    step: int
    reason: str
    """loss not finite, gradient not finite, loss spike or gradient spike."""
    value: float
    """Loss or gradient norm; nan if not finite."""
    usual: dict[str, float]
    """For a spike: median, mad (for a gradient norm: of its logarithm), deviations (distance of the
    value from the median) and threshold."""


class SpikeRule:
    """Recognises values far above the median of the last WINDOW finite values.

    One deviation is 1.4826 x the median absolute deviation, at least 5 % of the median. Spikes
    enter the window too, so that the rule adapts to a lasting change of level.

    Args:
        threshold: Deviations above the median from which a value is a spike; 0 finds none.
        multiplicative: Compare logarithms. Gradient norms of a healthy run scatter by factors, and
            four times the median is usual in small batches.
    """

    def __init__(self, threshold: float, multiplicative: bool = False) -> None:
        self._threshold = threshold
        self._multiplicative = multiplicative
        self._window: deque[float] = deque(maxlen=WINDOW)

    def check(self, value: float) -> dict[str, float] | None:
        """What is usual if `value` is a spike, else None; the value then enters the window."""
        # a norm of 0 (nothing was trained) becomes -inf, which is left out below
        value = _log(value) if self._multiplicative else value
        if not math.isfinite(value):
            return None
        found = None
        if self._threshold and len(self._window) >= MIN_STEPS:
            median = statistics.median(self._window)
            mad = statistics.median(abs(other - median) for other in self._window)
            # a difference of logarithms is already relative
            scale = 1.0 if self._multiplicative else abs(median)
            deviation = max(MAD_TO_DEVIATION * mad, MIN_RELATIVE_DEVIATION * scale)
            if value - median > self._threshold * deviation:
                found = {
                    "median": math.exp(median) if self._multiplicative else median,
                    "mad": mad,
                    "deviations": (value - median) / deviation if deviation else math.inf,
                    "threshold": self._threshold,
                }
        # spikes too: after a lasting change of level the rule must stop firing
        self._window.append(value)
        return found


class AnomalyDetector:
    """Checks the steps of each logging interval. The result is the same on every rank.

    Args:
        threshold: Deviations above the median from which a finite value is a spike.
        loss_scaling: Ignore gradients that overflow while the loss is finite: fp16 finds its loss
            scale by them.
    """

    def __init__(self, threshold: float, loss_scaling: bool) -> None:
        self._loss, self._norm = SpikeRule(threshold), SpikeRule(threshold, multiplicative=True)
        self._loss_scaling = loss_scaling

    def check(self, interval: IntervalMetrics) -> list[Anomaly]:
        """The anomalies of an interval, at most one per step."""
        loss_finite = {skipped.step: skipped.loss_finite for skipped in interval.skipped}
        found = []
        for step, loss, norm in zip(interval.steps, interval.losses, interval.norms, strict=True):
            # check both in every step, even if one decides: `check` also fills the windows
            loss_spike, norm_spike = self._loss.check(loss), self._norm.check(norm)
            if step in loss_finite or not math.isfinite(loss):
                if not loss_finite.get(step, False):
                    found.append(Anomaly(step, "loss not finite", math.nan, {}))
                elif not self._loss_scaling:
                    found.append(Anomaly(step, "gradient not finite", math.nan, {}))
            elif loss_spike:
                found.append(Anomaly(step, "loss spike", loss, loss_spike))
            elif norm_spike:
                found.append(Anomaly(step, "gradient spike", norm, norm_spike))
        return found
