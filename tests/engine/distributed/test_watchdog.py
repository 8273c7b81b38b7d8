"""The time limit of activities."""

from __future__ import annotations

import time

import pytest

from allinone.engine.distributed import watchdog
from allinone.engine.distributed.watchdog import Watchdog, keepalive


def test_a_keepalive_restarts_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", ended.append)
    monkeypatch.setattr(watchdog.faulthandler, "dump_traceback_later", lambda *_, **__: None)
    dog = Watchdog(0.6, 0, 1)
    dog.begin("the evaluation at step 5")
    for _ in range(15):  # 1.5 s in all
        time.sleep(0.1)
        keepalive()
    assert not ended
    time.sleep(1.2)
    assert ended
    dog._stopped.set()
    dog.stop()
    keepalive()  # without a watchdog nothing happens
