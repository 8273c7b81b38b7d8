"""Worker processes: whose fault a failure is, and what is tried again."""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from allinone.data.prepare.encode import Encoding
from allinone.data.prepare.pool import ProbePool
from allinone.data.prepare.probe import Limits
from allinone.data.prepare.worker import ClipTask, worker
from tests.data.media import write_video


def test_a_full_disk_does_not_make_a_clip_bad(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4")

    def task(target: Path) -> ClipTask:
        return ClipTask(
            (video,), 0, None, "mp4", encoding=Encoding("h264", None, 12), target=target
        )

    pool = ProbePool(1, Limits(), worker)
    with contextlib.closing(pool):
        assert [reason for _, reason, _ in pool.map([task(tmp_path / "good")])] == [None]
        with pytest.raises(OSError, match="No space left"):
            list(pool.map([task(Path("/dev/full"))]))


def dying(pipe: Connection, limits: Limits) -> None:
    """Answer a task (path, times); the process kills itself on the first `times` attempts."""
    while (task := pipe.recv()) is not None:
        path, times = task
        with path.open("a") as file:
            file.write("x")
        if path.stat().st_size <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send((None, times))


def test_a_clip_whose_process_was_killed_is_tried_once_more(tmp_path: Path) -> None:
    pool = ProbePool(2, Limits(), dying)
    with contextlib.closing(pool):
        found = {
            number: reason
            for number, reason, _ in pool.map(
                [(tmp_path / str(times), times) for times in (0, 1, 2, 0, 1)]
            )
        }
    assert found[0] == found[1] == found[3] is None
    assert found[2] == "killed"
