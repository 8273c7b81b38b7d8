"""One process at a time writes a run folder; a dead one does not block it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from allinone.common import run_lock
from allinone.common.errors import ConfigError
from allinone.common.run_lock import LOCK, Holder, RunLock, claim
from tests.forked import ROOT

HOLD = """
import sys, time
from pathlib import Path
from allinone.common.run_lock import claim
claim(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = hold(tmp_path / "run")
    try:
        with pytest.raises(ConfigError, match=f"in use by another process: pid {holder.pid} on"):
            claim(tmp_path / "run")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with claim(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / LOCK).exists()
    assert not list((tmp_path / "run").iterdir())


def test_a_suspended_process_still_holds_its_folder(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    try:
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(ConfigError, match="in use"):
            claim(tmp_path)
    finally:
        holder.kill()
        holder.wait()


def test_a_later_process_with_the_same_pid_is_not_the_holder(tmp_path: Path) -> None:
    me = Holder.me()
    (tmp_path / LOCK).write_text(json.dumps(asdict(replace(me, token="x", started=me.started - 5))))
    claim(tmp_path).release()


def test_one_process_may_claim_twice(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with claim(tmp_path):
        with claim(tmp_path / "link"):
            pass
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Holder:
    """The folder is held by a process on another host; times are shortened."""
    monkeypatch.setattr(run_lock, "BEAT_S", 0.1)
    monkeypatch.setattr(run_lock, "STALE_S", 1.0)
    holder = replace(Holder.me(), host="node07", machine="node07 boot ns", pid=4711, token="theirs")
    (tmp_path / LOCK).write_text(json.dumps(asdict(holder)))
    return holder


def test_a_host_without_a_heartbeat_is_taken_over(tmp_path: Path, elsewhere: Holder) -> None:
    with claim(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] != elsewhere.host


def test_a_host_with_a_heartbeat_is_refused_by_name(tmp_path: Path, elsewhere: Holder) -> None:
    stopped = threading.Event()

    def beat() -> None:
        for number in range(1, 100):
            if stopped.wait(0.1):
                return
            run_lock._write(tmp_path / LOCK, replace(elsewhere, beat=number))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="pid 4711 on node07, since"):
            claim(tmp_path)
    finally:
        stopped.set()
        thread.join()


def test_of_many_starts_after_a_dead_host_one_wins(tmp_path: Path, elsewhere: Holder) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from allinone.common import run_lock\n"
        "run_lock.STALE_S = 1.0\n"
        "try:\n"
        "    run_lock.claim(Path(sys.argv[1]))\n"
        "except ValueError as error:\n"
        "    print('refused', flush=True)\n"
        "else:\n"
        "    print('won', flush=True)\n"
        "    time.sleep(6)\n"
    )
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    said = [start.communicate(timeout=60)[0].strip() for start in starts]
    assert sorted(said) == ["refused"] * 5 + ["won"]


def test_a_holder_that_lost_its_folder_writes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "BEAT_S", 0.05)
    lock: RunLock = claim(tmp_path)
    lock.require()
    other = replace(Holder.me(), host="node08", token="theirs")
    run_lock._write(tmp_path / LOCK, other)
    lock._thread.join(10)
    with pytest.raises(ConfigError, match=r"taken over by pid \d+ on node08"):
        lock.require()
    lock.release()
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "node08", "it is theirs now"


def test_a_lock_that_is_no_json_does_not_block(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("")
    start = time.monotonic()
    claim(tmp_path).release()
    assert time.monotonic() - start < 30
