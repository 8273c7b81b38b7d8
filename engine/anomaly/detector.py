"""When is a step worth a dossier? Non-finite ones always; finite ones by a robust rule that no
single outlier can move."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from allinone.engine.monitoring.accumulator import IntervalMetrics

WINDOW = 200
"""Steps whose values say what is usual."""
ENOUGH = 30
"""Steps that must have been seen before a value can be unusual; also after a restart, which begins
with an empty window."""
SCALE = 1.4826
"""MAD x this = standard deviation of a normal distribution."""
FLOOR = 0.05
"""The deviation is never taken for smaller than this share of the median: a curve without noise has
no MAD."""


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


@dataclass(frozen=True)
class Anomaly:
    """One step to be looked into."""

    step: int
    reason: str
    """loss not finite, gradient not finite, loss spike or gradient spike."""
    value: float
    """Loss or gradient norm; nan where not finite."""
    usual: dict[str, float]
    """Of a spike: median, mad (of a gradient norm: of its logarithm), deviations (how many the
    value lies above the median), threshold."""


class SpikeRule:
    """A value is a spike if it lies more than `threshold` deviations above the median of the last
    `WINDOW` finite values.

    One deviation is 1.4826 x the median absolute deviation, at least 5 % of the median. Spikes
    enter the window too: after a lasting change of level the rule gets used to it. `threshold` 0
    finds none. With `multiplicative`, logarithms are judged: gradient norms of a healthy run
    scatter by factors, and four times the median is nothing unusual in small batches.
    """

    def __init__(self, threshold: float, multiplicative: bool = False) -> None:
        self._threshold = threshold
        self._multiplicative = multiplicative
        self._window: deque[float] = deque(maxlen=WINDOW)

    def judge(self, value: float) -> dict[str, float] | None:
        """What is usual, if `value` is a spike; then it joins the window."""
        value = _log(value) if self._multiplicative else value
        if not math.isfinite(value):
            return None
        found = None
        if self._threshold and len(self._window) >= ENOUGH:
            median = statistics.median(self._window)
            mad = statistics.median(abs(other - median) for other in self._window)
            deviation = max(SCALE * mad, FLOOR * (1.0 if self._multiplicative else abs(median)))
            if value - median > self._threshold * deviation:
                found = {
                    "median": math.exp(median) if self._multiplicative else median,
                    "mad": mad,
                    "deviations": (value - median) / deviation if deviation else math.inf,
                    "threshold": self._threshold,
                }
        self._window.append(value)
        return found


class AnomalyDetector:
    """Goes through the steps of each logging interval; the same on every rank, since reports
    are."""

    def __init__(self, threshold: float, loss_scaling: bool) -> None:
        self._loss, self._norm = SpikeRule(threshold), SpikeRule(threshold, multiplicative=True)
        self._loss_scaling = loss_scaling
        """fp16 finds its loss scale by gradients that overflow: those are no faults."""

    def suspects(self, report: IntervalMetrics) -> list[Anomaly]:
        """At most one reason per step."""
        finite_loss = {skipped.step: skipped.loss_finite for skipped in report.skipped}
        found = []
        for step, loss, norm in zip(report.steps, report.losses, report.norms, strict=True):
            loss_spike, norm_spike = self._loss.judge(loss), self._norm.judge(norm)
            if step in finite_loss or not math.isfinite(loss):
                if not finite_loss.get(step, False):
                    found.append(Anomaly(step, "loss not finite", math.nan, {}))
                elif not self._loss_scaling:
                    found.append(Anomaly(step, "gradient not finite", math.nan, {}))
            elif loss_spike:
                found.append(Anomaly(step, "loss spike", loss, loss_spike))
            elif norm_spike:
                found.append(Anomaly(step, "gradient spike", norm, norm_spike))
        return found
