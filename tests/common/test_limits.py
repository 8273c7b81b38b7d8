"""Limits of the system are named, with what to change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from allinone.common.limits import explain
from tests.forked import ROOT


def limited(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A shell command with the Python of this test as $0 and words as arguments."""
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("limit", [16, 40])
def test_too_few_open_files_end_in_one_line(tmp_path: Path, limit: int) -> None:
    train = '"$0" pretrain/train.py demo --data "$1" --val none --out "$1"/run'
    ended = limited(f"ulimit -n {limit}; {train}", str(tmp_path))
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ulimit -n 4096" in ended.stderr


def test_a_soft_limit_is_raised(tmp_path: Path) -> None:
    program = (
        "import resource; from allinone.common.limits import raise_file_limit;"
        " raise_file_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    ended = limited('ulimit -Sn 40; "$0" -c "$1"', program)
    assert int(ended.stdout) >= 64, ended.stderr


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to write to file </torch_17_4>: No space left on device (28)"),
        RuntimeError("DataLoader worker (pid 5) is killed by signal: Bus error."),
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode"),
    ],
)
def test_a_full_shared_memory_is_named(error: Exception) -> None:
    assert "/dev/shm" in explain(error)
    assert "--workers 0" in explain(error)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "/data/x"), RuntimeError("CUDA error")]
)
def test_other_errors_are_not_explained(error: Exception) -> None:
    assert explain(error) == ""
