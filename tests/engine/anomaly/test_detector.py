"""The rule that finds spikes."""

from __future__ import annotations

import math
import random

import pytest

from allinone.engine.anomaly.detector import MIN_STEPS, SpikeRule


def test_an_outlier_is_a_spike_but_noise_is_not() -> None:
    noise = random.Random(0)
    rule = SpikeRule(10)
    values = [5 * 0.99**step + noise.gauss(0, 0.1) for step in range(500)]
    assert [step for step, value in enumerate(values) if rule.check(value)] == []
    assert rule.check(values[-1] + 3) is not None
    assert SpikeRule(0).check(1e9) is None
    early = SpikeRule(10)
    assert [early.check(1.0) for _ in range(MIN_STEPS - 1)] + [early.check(99.0)] == [
        None
    ] * MIN_STEPS


def test_gradient_norms_are_compared_by_factors() -> None:
    noise = random.Random(0)
    norms = [math.exp(noise.gauss(1.5, 0.4)) for _ in range(1000)]
    plain, rule = SpikeRule(5), SpikeRule(5, multiplicative=True)
    assert sum(plain.check(norm) is not None for norm in norms) > 0
    assert sum(rule.check(norm) is not None for norm in norms) == 0
    found = rule.check(1000.0)
    assert found is not None
    assert found["median"] == pytest.approx(math.exp(1.5), rel=0.15)


def test_a_new_level_becomes_usual() -> None:
    rule = SpikeRule(10)
    for _ in range(200):
        rule.check(1.0)
    assert sum(rule.check(9.0) is not None for _ in range(400)) <= 101
