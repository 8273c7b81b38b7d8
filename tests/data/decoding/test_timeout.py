"""Native code that hangs is abandoned: its clip is bad, the process continues and can end."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

import allinone.data.decoding.frames
from allinone.common.processes import forkserver_context, live_and_die_with_parent
from allinone.data.decoding.frames import DecodeError, decode_frames
from allinone.data.decoding.timeout import call_with_timeout
from tests.data import media

ROOT = Path(__file__).resolve().parents[3]
LIBC = ctypes.CDLL(None)


def hang(seconds: int = 600) -> None:
    """In native code, as a decoder does: without Python's lock, deaf to exceptions."""
    LIBC.sleep(seconds)


class Stuck(Dataset[str]):
    """What a reader process makes of items that hang."""

    def __getitem__(self, number: int) -> str:
        try:
            return str(call_with_timeout(0.1, hang))
        except TimeoutError:
            return f"{number} left behind"

    def __len__(self) -> int:
        return 3


def test_a_reader_goes_on_and_leaves_with_its_loader() -> None:
    options = {
        "multiprocessing_context": forkserver_context(),
        "worker_init_fn": live_and_die_with_parent,
    }
    loader = DataLoader(Stuck(), batch_size=None, num_workers=1, **options)  # type: ignore[arg-type]
    assert list(loader) == [f"{number} left behind" for number in range(3)]


def test_a_decoder_that_hangs_costs_its_clip_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media.GOOD["h264_closed.mp4"](tmp_path / "clip.mp4")
    content = (tmp_path / "clip.mp4").read_bytes()
    before = decode_frames(content, (3, 20))
    with monkeypatch.context() as patch:
        patch.setattr(allinone.data.decoding.frames, "OVERTIME_S", 0.2)
        patch.setattr(allinone.data.decoding.frames, "_from_start", lambda *_: hang())
        start = time.monotonic()
        with pytest.raises(
            DecodeError, match="hangs in the decoder; given up after --clip-timeout-s"
        ):
            decode_frames(content, (3, 20), timeout_s=0.1)
        assert time.monotonic() - start < 10
    assert np.array_equal(decode_frames(content, (3, 20)), before)


def test_results_errors_and_threads_of_one_caller() -> None:
    threads = [call_with_timeout(5.0, threading.get_ident) for _ in range(3)]
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(5.0, lambda: 1 // 0)
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        call_with_timeout(0.05, lambda: hang(1))
    assert call_with_timeout(5.0, threading.get_ident) != threads[0], (
        "the thread that hangs is not waited for"
    )


def test_a_fork_does_not_wait_for_its_parents_thread() -> None:
    call_with_timeout(5.0, lambda: None)
    child = os.fork()
    if not child:
        os._exit(call_with_timeout(5.0, lambda: 7))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_callers_helper_thread_ends_with_it() -> None:
    before = threading.active_count()
    for _ in range(5):
        caller = threading.Thread(target=lambda: call_with_timeout(5.0, lambda: None))
        caller.start()
        caller.join()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_process_with_a_thread_left_behind_can_end() -> None:
    program = """
import ctypes
from allinone.data.decoding.timeout import call_with_timeout
try:
    call_with_timeout(0.1, lambda: ctypes.CDLL(None).sleep(600))
except TimeoutError:
    print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "went on\n"
