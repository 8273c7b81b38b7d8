#!/usr/bin/env python3
"""Find the rank that failed first and print the end of its log.

    python tools/first_error.py START/ranks --ranks N

slurm/lib.sh calls this after every srun. It reads what slurm/rank.sh wrote: rank-N.exit (time, exit
code, node), rank-N.node and rank-N.log. It prints a summary; if its output is appended to a file,
the log of a batch job, it also inserts the summary at the top of that file. The exit code is that
of the rank that failed first (137 for one killed by SIGKILL), 0 if all ranks ended well, 1 if a
rank disappeared without an exit code and no other rank failed.
"""

from __future__ import annotations

# argparse and not allinone.common.command_line: this runs on the host, next to the container of the
# ranks, with a Python >= 3.9 that has no third-party packages
import argparse
import fcntl
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.exit_codes import ExitCode
from allinone.version import __version__

MEANING = {
    ExitCode.USAGE: "wrong options or data",
    ExitCode.DISK_FULL: "disk",
    ExitCode.NON_FINITE: "too many non-finite steps",
    ExitCode.HANG: "a hang",
    ExitCode.REQUEUE: "saved after a signal",
}
SAID_BY_RANK_0 = (ExitCode.USAGE, ExitCode.DISK_FULL, ExitCode.NON_FINITE)
"""Errors that occur on all ranks alike; only rank 0 prints them (engine/distributed/launch.py)."""
LAST_LINES = 25
MOST_SUSPECTS = 8
CLOCKS_DIFFER_S = 5.0
LOST_PEER = re.compile(
    r"Connection (reset|closed|refused) by|another rank has left|remote process"
    r" exited|ncclRemoteError|Broken pipe"
)
"""Messages of gloo, NCCL and engine/distributed/launch.py about a lost peer: a rank that prints one
is not the cause."""
ENDED_BY_SRUN = 128 + signal.SIGTERM


@dataclass(frozen=True)
class End:
    """The end of one rank."""

    time: float
    """Seconds since 1970 by the clock of its node."""
    rank: int
    code: int
    node: str

    def describe(self) -> str:
        """137 → "killed by SIGKILL"; the project's own codes with their meaning."""
        if self.code > 128 and self.code - 128 in {int(number) for number in signal.Signals}:
            return f"killed by {signal.Signals(self.code - 128).name}"
        if self.code not in MEANING:
            return f"exit code {self.code}"
        return f"exit code {self.code} ({MEANING[ExitCode(self.code)]})"


def read_ends(folder: Path) -> list[End]:
    """The ranks that ended, earliest first. Incomplete records are skipped: srun's kill can
    interrupt their writing."""
    ends = []
    for path in folder.glob("rank-*.exit"):
        words = path.read_text().split()
        if len(words) == 3:
            ends.append(
                End(float(words[0]), int(path.stem.removeprefix("rank-")), int(words[1]), words[2])
            )
    return sorted(ends, key=lambda end: (end.time, end.rank))


def find_first_failure(folder: Path, failed: Sequence[End]) -> End:
    """Find the failure that caused the others.

    Args:
        folder: Holds the logs.
        failed: Ranks that failed, earliest first.

    Returns:
        The earliest failure. If it is only a consequence (a lost peer, or an end by srun), the
        first real failure within CLOCKS_DIFFER_S, because the clocks of the nodes differ.
    """

    def is_consequence(end: End) -> bool:
        """Whether a rank ended because of another one."""
        if end.code == ExitCode.HANG:  # a report of a hang may quote a message about a lost peer
            return False
        lines = "\n".join(last_lines(folder / f"rank-{end.rank}.log", 3))
        return end.code == ENDED_BY_SRUN or LOST_PEER.search(lines) is not None

    near = [end for end in failed if end.time - failed[0].time < CLOCKS_DIFFER_S]
    return next((end for end in near if not is_consequence(end)), failed[0])


def last_lines(path: Path, number: int = LAST_LINES) -> list[str]:
    """The last lines of a log; reads at most its last 64 KiB."""
    if not path.exists():
        return ["(no log)"]
    with path.open("rb") as file:
        # a log of days can be GiB large, and this runs on the batch host
        file.seek(max(0, path.stat().st_size - 64 * 1024))
        return file.read().decode(errors="replace").splitlines()[-number:]


def main_thread_position(log: Path) -> str | None:
    """Innermost frame of the main thread in the last stack dump of a log; faulthandler prints the
    main thread last."""
    content = "\n".join(last_lines(log, 10_000))
    blocks = re.split(r"^(?:Current thread|Thread) 0x.*$", content, flags=re.MULTILINE)
    match = re.search(r'File "(.+)", line (\d+) in (\S+)', blocks[-1]) if len(blocks) > 1 else None
    return f"{match[3]} ({match[1]}:{match[2]})" if match else None


def _reports_hang(log: Path) -> bool:
    """Whether the watchdog (engine/distributed/watchdog.py) or faulthandler behind it has reported
    a hang; the rank may have ended with another code in the meantime."""
    lines = last_lines(log, 10_000)
    return any(" hangs: " in line or line.startswith("Timeout (") for line in lines)


def suspects_of_hang(folder: Path, ends: Sequence[End], ranks: int) -> list[str]:
    """Describe the ranks that the others waited for.

    Args:
        folder: Holds the logs.
        ends: Ranks that ended.
        ranks: Number of ranks.

    Returns:
        The ranks that did not report the hang; if all did, those that hang at a different position
        than most.
    """
    reported = {
        end.rank
        for end in ends
        if end.code == ExitCode.HANG or _reports_hang(folder / f"rank-{end.rank}.log")
    }
    silent = sorted(set(range(ranks)) - reported)
    if silent:
        more = [f"and {len(silent) - MOST_SUSPECTS} more"] if len(silent) > MOST_SUSPECTS else []
        return [
            f"rank {rank} on {node_of(folder, rank)} did not say where: it is stopped, or its node"
            " is lost"
            for rank in silent[:MOST_SUSPECTS]
        ] + more
    positions = {rank: main_thread_position(folder / f"rank-{rank}.log") for rank in reported}
    # in a collective all ranks wait at the same line; the one that is elsewhere did not get there
    common = Counter(positions.values()).most_common(1)[0][0] if positions else None
    return [
        f"rank {rank} on {node_of(folder, rank)} hangs at {position}, most others at {common}"
        for rank, position in sorted(positions.items())
        if position != common
    ]


def node_of(folder: Path, rank: int) -> str:
    """The node of a rank."""
    path = folder / f"rank-{rank}.node"
    return path.read_text().strip() if path.exists() else "an unknown node"


def ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 → 0-2, 5."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def summary(folder: Path, ranks: int) -> tuple[list[str], int]:
    """Summarise the end of all ranks.

    Args:
        folder: Where slurm/rank.sh wrote.
        ranks: Number of ranks that were started.

    Returns:
        (lines for the batch log, exit code of the first failure).
    """
    ends = read_ends(folder)
    failed = [end for end in ends if end.code]
    # slurm/rank.sh writes a record for every rank that ends by itself
    silent = sorted(set(range(ranks)) - {end.rank for end in ends})
    if not failed:
        if not silent:
            return [], 0
        names = ", ".join(f"{rank} on {node_of(folder, rank)}" for rank in silent[:16])
        return [
            f"first error: ranks ended without a record: {names}; a node was lost, or the job was"
            " ended from outside"
        ], 1
    first = find_first_failure(folder, failed)
    if first.code == ExitCode.REQUEUE:
        left = ranges([end.rank for end in failed])
        return [f"ranks {left} left: {first.describe()}"], int(ExitCode.REQUEUE)
    lines = []
    if first.code == ExitCode.HANG:
        lines += [f"======== hung: {line}" for line in suspects_of_hang(folder, ends, ranks)]
    lines += _first_failure(folder, first, failed)
    others = [end for end in failed if end is not first]
    for kind in sorted({end.describe() for end in others}):
        after = [end for end in others if end.describe() == kind]
        lines.append(
            f"======== {after[0].time - first.time:+.1f} s: ranks"
            f" {ranges([end.rank for end in after])}: {kind}"
        )
    if silent:
        lines.append(f"======== ended with them by srun: ranks {ranges(silent)}")
    return lines, first.code


def _first_failure(folder: Path, first: End, failed: Sequence[End]) -> list[str]:
    """The first failure and the end of the log that explains it."""
    speaker, log = first, "its log"
    if first.code in SAID_BY_RANK_0 and first.rank != 0:
        rank_0 = [end for end in failed if end.rank == 0 and end.code == first.code]
        if rank_0:
            speaker, log = rank_0[0], "rank 0's log, which reports it for all ranks"
    # local time, as in the log lines of Slurm
    when = datetime.fromtimestamp(first.time).strftime("%H:%M:%S")
    return [
        f"======== first error: rank {first.rank} on {first.node}: {first.describe()} at {when};"
        f" the end of {log}:",
        *(f"  | {line}" for line in last_lines(folder / f"rank-{speaker.rank}.log")),
    ]


def put_on_top(text: str) -> bool:
    """Insert `text` at the top of the file that standard output appends to.

    Later output is still appended at the new end of the file (O_APPEND), and while this runs only
    the batch script writes to its job's log.

    Returns:
        False, and nothing is written, if standard output is not such a file.
    """
    path = Path("/proc/self/fd/1")
    if not path.is_file() or not fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND:
        return False
    with path.open("r+b") as log:
        content = text.encode() + log.read()
        log.seek(0)
        log.write(content)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code of the first failure."""
    parser = argparse.ArgumentParser(
        prog="tools/first_error.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"allinone {__version__}")
    parser.add_argument("folder", type=Path, help="where slurm/rank.sh wrote")
    parser.add_argument(
        "--ranks", type=int, required=True, help="number of ranks that were started"
    )
    args = parser.parse_args(argv)
    lines, code = summary(args.folder, args.ranks)
    print("\n".join(lines) + "\n" * bool(lines), end="", flush=True)
    if lines and code != ExitCode.REQUEUE:
        head = (
            f"======== added to the top of this log after the ranks in {args.folder} had ended; the"
            " log begins below\n"
        )
        put_on_top("\n".join([*lines, head]) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
