"""Training time without interruptions."""

from __future__ import annotations

import pytest

from allinone.engine.monitoring import stopwatch
from allinone.engine.monitoring.stopwatch import Stopwatch


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopwatch, "time", made)
    return made


def test_paused_time_is_not_counted(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 3
    with watch.paused():
        clock.now += 50
        with watch.paused():
            clock.now += 7
        clock.now += 9
    clock.now += 2
    assert watch.lap() == 5
    clock.now += 4
    assert watch.lap() == 4


def test_a_lap_within_a_pause_starts_at_its_end(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 3
    with watch.paused():
        clock.now += 10
        assert watch.lap() == 3
        clock.now += 10
    clock.now += 1
    assert watch.lap() == 1


def test_an_error_ends_the_pause(clock: Clock) -> None:
    watch = Stopwatch()
    with pytest.raises(RuntimeError), watch.paused():
        raise RuntimeError
    clock.now += 2
    assert watch.lap() == 2
