"""tools/first_error.py: the rank that is named, and the summary at the top of a log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from allinone.common.exit_codes import ExitCode
from allinone.engine.distributed import launch
from allinone.tools import first_error
from allinone.tools.first_error import LOST_PEER, summary

ROOT = Path(__file__).resolve().parents[2]
HANG = """\
error: rank {rank} on n (pid 7) hangs: step 9 did not finish within --hang-timeout-s 20
Current thread 0x00007f (most recent call first):
  File "/x/engine/faults.py", line 137 in _watch

Thread 0x00007e (most recent call first):
  File "/x/{place}.py", line 12 in {place}
  File "/x/engine/loop.py", line 150 in _train_step
error: rank {rank} checked the heartbeats: no sign of life from rank 2 on n (pid 9), last in step 9
"""
LEFT = (
    "error: rank {rank}: another rank has left; its own output says why (Connection closed by"
    " peer)\n"
)


def rank(
    folder: Path, number: int, log: str = "", code: int | None = None, after_s: float = 0.0
) -> None:
    """Write the files of slurm/rank.sh for one rank; without a code, it was killed."""
    (folder / f"rank-{number}.log").write_text(log)
    (folder / f"rank-{number}.node").write_text(f"node{number // 2:02d}\n")
    if code is not None:
        (folder / f"rank-{number}.exit").write_text(
            f"{1_700_000_000 + after_s:.3f} {code} node{number // 2:02d}\n"
        )


def test_codes_and_messages_are_those_of_the_engine() -> None:
    """The tool runs where torch is not installed, so it does not import the engine."""
    assert first_error.SAID_BY_RANK_0 == (
        ExitCode.USAGE,
        ExitCode.DISK_FULL,
        ExitCode.NON_FINITE,
    )
    assert all(LOST_PEER.search(text) for text in launch.PEER_GONE)


def test_a_run_that_ended_well_prints_nothing(tmp_path: Path) -> None:
    for number in range(4):
        rank(tmp_path, number, "step 1\n", 0)
    assert summary(tmp_path, 4) == ([], 0)


def test_the_killed_rank_is_named_the_others_are_consequences(tmp_path: Path) -> None:
    rank(tmp_path, 0, "RuntimeError: Read error: Connection reset by peer\n", 1, 0.4)
    rank(tmp_path, 1, "step 7\n", 143, 0.5)
    rank(tmp_path, 2, "step 7\nKilled\n", 137, 0.0)
    rank(tmp_path, 3, "step 7\n")
    lines, code = summary(tmp_path, 4)
    assert code == 137
    assert lines[0].startswith("======== first error: rank 2 on node01: killed by SIGKILL at ")
    assert "  | step 7" in lines
    assert "======== +0.4 s: ranks 0: exit code 1" in lines
    assert lines[-1] == "======== ended with them by srun: ranks 3"


def test_a_lost_peer_is_not_the_first_error_despite_its_clock(
    tmp_path: Path,
) -> None:
    rank(tmp_path, 0, "RuntimeError: Read error: Connection reset by peer\n", 1, 0.0)
    rank(tmp_path, 1, "ZeroDivisionError: division by zero\n", 1, 2.0)
    assert summary(tmp_path, 2)[0][0].startswith(
        "======== first error: rank 1 on node00: exit code 1"
    )


def test_an_error_of_all_ranks_is_shown_from_rank_0(tmp_path: Path) -> None:
    rank(tmp_path, 1, "", 2, 0.0)
    rank(tmp_path, 0, "error: --micro-batch must be at least 2\n", 2, 0.1)
    lines, code = summary(tmp_path, 2)
    assert code == 2
    assert "rank 1 on node00: exit code 2 (wrong options or data)" in lines[0]
    assert lines[1] == "  | error: --micro-batch must be at least 2"


def test_the_rank_that_reports_no_hang_is_the_suspect(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        rank(tmp_path, number, HANG.format(rank=number, place="all_reduce"), 5, number)
    rank(tmp_path, 2, "step 8\n", 143, 12.0)
    lines, code = summary(tmp_path, 4)
    assert code == 5
    assert (
        lines[0]
        == "======== hung: rank 2 on node01 did not say where: it is stopped, or its node is lost"
    )


def test_a_rank_that_reported_the_hang_is_not_a_suspect(tmp_path: Path) -> None:
    """The first rank to leave interrupts the collectives of its peers, and one of them quotes the
    store's error."""
    quoting = (
        HANG.format(rank=0, place="all_reduce") + "does not answer (Connection reset by peer)\n"
    )
    rank(tmp_path, 0, quoting, 5, 0.2)
    for number in (1, 3):
        rank(
            tmp_path,
            number,
            HANG.format(rank=number, place="all_reduce") + LEFT.format(rank=number),
            1,
            0.1,
        )
    rank(tmp_path, 2, "step 8\n")
    lines, code = summary(tmp_path, 4)
    assert code == 5
    assert [line for line in lines if "hung" in line] == [
        "======== hung: rank 2 on node01 did not say where: it is stopped, or its node is lost"
    ]


def test_if_all_ranks_report_the_one_elsewhere_is_the_suspect(tmp_path: Path) -> None:
    for number in range(4):
        rank(
            tmp_path,
            number,
            HANG.format(rank=number, place="read_shard" if number == 3 else "all_reduce"),
            5,
            number,
        )
    assert (
        summary(tmp_path, 4)[0][0]
        == "======== hung: rank 3 on node01 hangs at read_shard (/x/read_shard.py:12), most others"
        " at all_reduce (/x/all_reduce.py:12)"
    )


def test_a_saved_run_is_not_an_error_but_a_silent_rank_is(tmp_path: Path) -> None:
    for number in range(3):
        rank(tmp_path, number, "USR1: saved\n", 75)
    assert summary(tmp_path, 3) == (["ranks 0-2 left: exit code 75 (saved after a signal)"], 75)
    lines, code = summary(tmp_path, 5)
    assert code == 75
    (tmp_path / "other").mkdir()
    rank(tmp_path / "other", 0, "step 3\n")
    lines, code = summary(tmp_path / "other", 1)
    assert code == 1
    assert "0 on node00" in lines[0]


@pytest.mark.parametrize("mode", ["a", "w"])
def test_the_summary_is_added_to_the_top_of_an_appended_log(tmp_path: Path, mode: str) -> None:
    rank(tmp_path, 0, "ZeroDivisionError\n", 1)
    log = tmp_path / "job.log"
    tool = str(ROOT / "tools/first_error.py")
    # -S: without site-packages, as on a host that has none of the project's dependencies
    command = [sys.executable, "-I", "-S", tool, str(tmp_path), "--ranks", "1"]
    with log.open(mode) as output:
        output.write("before\n")
        output.flush()
        assert subprocess.run(command, stdout=output, check=False).returncode == 1
        output.write("after\n")
    lines = log.read_text().splitlines()
    assert lines[-1] == "after"
    assert lines.count("before") == 1
    assert lines[0].startswith("======== first error: rank 0") == (mode == "a")
