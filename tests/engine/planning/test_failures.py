"""Cost of failures and checkpoints, against a simulation and Young's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from allinone.engine.planning.failures import interval, intervals


def simulate(
    work_s: float, every_s: float, save_s: float, restart_s: float, mean_s: float
) -> float:
    """Mean time of a run of `work_s`, with failures drawn from an exponential distribution."""
    random, total, runs = np.random.default_rng(0), 0.0, 400
    for _ in range(runs):
        done, failure = 0.0, random.exponential(mean_s)
        clock = 0.0
        while done < work_s:
            if failure > clock + every_s + save_s:
                clock += every_s + save_s
                done += every_s
                continue
            clock = failure  # the interval is lost, and restarts fail like steps do
            failure = clock + random.exponential(mean_s)
            while failure < clock + restart_s:
                clock = failure
                failure = clock + random.exponential(mean_s)
            clock += restart_s
        total += clock
    return total / runs


@pytest.mark.parametrize(
    ("every", "restart_s", "mean_s"), [(10, 5, 200), (40, 30, 200), (5, 0, 50)]
)
def test_expected_time_equals_a_simulation(every: int, restart_s: float, mean_s: float) -> None:
    work_s, save_s = 2000.0, 2.0
    found = interval(every, 1.0, save_s, restart_s, mean_s)
    expected = simulate(work_s, float(every), save_s, restart_s, mean_s)
    # the formula also counts the restart that precedes the run (400 runs: 1 % of noise)
    assert work_s * (1 + found.lost_share) == pytest.approx(expected, rel=0.03)


def test_best_interval_is_near_youngs() -> None:
    step_s, save_s, mean_s = 0.1, 2.0, 4e5
    best = min(intervals(1_000_000, step_s, save_s, 300, mean_s), key=lambda each: each.lost_share)
    young = math.sqrt(2 * save_s * mean_s) / step_s
    assert young / 2 < best.steps < young * 2  # of 1, 2 and 5 times a power of ten
    assert best.steps == 10_000


def test_without_failures_only_writing_costs() -> None:
    found = interval(100, 0.5, 2.0, 300, 1e12)
    assert found.saving_share == pytest.approx(0.04)
    assert found.failure_share == pytest.approx(0, abs=1e-6)


def test_intervals_end_where_a_run_would_never_finish() -> None:
    found = intervals(10**6, 1.0, 1.0, 10, 100)
    assert [each.steps for each in found] == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert all(math.isfinite(each.lost_share) for each in found)
