"""How a rank ends when it alone has failed, and what a long evaluation tells the watchdog."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from allinone.engine.distributed import launch, watchdog
from allinone.engine.distributed.watchdog import Watchdog, keepalive

ROOT = Path(__file__).parents[2]

FAILING = """
import sys, time
from allinone.common.errors import DataError, LostDataError
from allinone.engine.distributed import launch
from allinone.common.errors import LocalConfigError
launch._waits_for_peers = lambda: True
launch._close_process_group = lambda: time.sleep(600)  # as NCCL's groups do, whose other ranks wait for this one
def run():
    print("working")
    raise {error}
sys.exit(launch.main(run))
"""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ('RuntimeError("CUDA out of memory")', 1, "RuntimeError: CUDA out of memory"),
        ('LostDataError("shard x cannot be opened")', 2, "error: shard x cannot be opened"),
        (
            'launch.mark_training_started() or LostDataError("shard x cannot be opened")',
            1,
            "error: shard x cannot be opened",
        ),
        (
            'launch.mark_training_started() or DataError("too many bad clips")',
            2,
            "error: too many bad clips",
        ),
        ('LocalConfigError("no GPU here")', 2, "error: no GPU here"),
        ('OSError(28, "No space left on device")', 3, "error: [Errno 28] No space left on device"),
    ],
)
def test_a_rank_that_alone_has_failed_says_why_and_ends_though_its_peers_wait(
    error: str, code: int, said: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILING.format(error=error)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1] == said
    assert ended.stdout == "working\n"


def test_groups_that_deepspeed_makes_wait_as_long_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(launch.free_port()))
    try:
        launch.start("cpu", 1830.0)
        assert dist.distributed_c10d._get_default_timeout(dist.Backend.NCCL) == timedelta(
            seconds=1830
        )
    finally:
        dist.destroy_process_group()


def test_batches_of_an_evaluation_are_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
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
