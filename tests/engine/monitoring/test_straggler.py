"""Slow ranks."""

from __future__ import annotations

from allinone.engine.monitoring.straggler import Slowest, StragglerAlarm, slowest, spread


def test_the_slowest_rank_is_compared_with_the_others() -> None:
    assert slowest([1.0, 4.0, 2.0], ["a", "b", "c"]) == Slowest(1, "b", 4.0, 4.0 / 1.5)
    assert slowest([1.0], ["a"]) is None
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}


def test_a_straggler_is_reported_once_until_it_recovers() -> None:
    lag, fine = Slowest(3, "node7", 0.5, 2.0), Slowest(3, "node7", 0.5, 1.1)
    alarm = StragglerAlarm(1.5)
    said = [alarm.check(found, step_s=1.0) for found in (lag, lag, lag, fine, lag, lag)]
    assert [text is not None for text in said] == [False, True, False, False, False, True]
    assert "rank 3 on node7" in str(said[1])
    tiny = StragglerAlarm(1.5)
    assert [tiny.check(lag, step_s=10.0) for _ in range(3)] == [None] * 3, (
        "a quarter of a second in ten is no matter"
    )
    assert [StragglerAlarm(0).check(lag, step_s=1.0)] == [None]
