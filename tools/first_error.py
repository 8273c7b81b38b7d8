#!/usr/bin/env python3
"""Which rank failed first, and its last lines: `tools/first_error.py START/ranks --ranks N`, called
by slurm/lib.sh after every srun.

Reads what slurm/rank.sh wrote: rank-N.exit (time, exit code, node), rank-N.node and rank-N.log.
Prints a summary; where its output is appended to a file, the log of a batch job, it puts it on top
of that file too. The exit code is that of the rank that failed first (137 for one killed by
SIGKILL), 0 if all ended well, 1 if a rank vanished without a word and no other failed.

Plain Python >= 3.9 without the project's packages: it runs on the host, beside the container that
the ranks are in.
"""

from __future__ import annotations

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

EXIT_HANG, EXIT_REQUEUE = 5, 75
"""As engine/distributed/watchdog.py and engine/distributed/launch.py have them; importing those
would import torch on the batch node."""
MEANING = {
    2: "wrong options or data",
    3: "disk",
    4: "too many non-finite steps",
    EXIT_HANG: "a hang",
    EXIT_REQUEUE: "saved after a signal",
}
SAID_BY_RANK_0 = (2, 3, 4)
"""What all ranks find alike is printed by one of them (engine/distributed/launch.py)."""
LAST_LINES = 25
MOST_SUSPECTS = 8
CLOCKS_DIFFER_S = 5.0
LOST_PEER = re.compile(
    r"Connection (reset|closed|refused) by|another rank has left|remote process"
    r" exited|ncclRemoteError|Broken pipe"
)
"""How gloo, NCCL and engine/distributed/launch.py say that another rank went away: whoever says so
is not the cause."""
ENDED_BY_SRUN = 128 + signal.SIGTERM


@dataclass(frozen=True)
class End:
    """How one rank ended."""

    time: float
    """Seconds since 1970 on its node."""
    rank: int
    code: int
    node: str

    def say(self) -> str:
        """137 → killed by SIGKILL; the project's own codes in words."""
        if self.code > 128 and self.code - 128 in {int(number) for number in signal.Signals}:
            return f"killed by {signal.Signals(self.code - 128).name}"
        meaning = MEANING.get(self.code)
        return f"exit code {self.code}{f' ({meaning})' if meaning else ''}"


def read_ends(folder: Path) -> list[End]:
    """The ranks that ended, first one first. A record that was cut off by a kill counts as none."""
    ends = []
    for path in folder.glob("rank-*.exit"):
        words = path.read_text().split()
        if len(words) == 3:
            ends.append(
                End(float(words[0]), int(path.stem.removeprefix("rank-")), int(words[1]), words[2])
            )
    return sorted(ends, key=lambda end: (end.time, end.rank))


def who_failed_first(folder: Path, failed: Sequence[End]) -> End:
    """The first one; but one that lost its peer, or was ended by srun, is passed over for one that
    ended within a few seconds: clocks differ."""

    def is_consequence(end: End) -> bool:
        if (
            end.code == EXIT_HANG
        ):  # its report may quote what the store, or a peer that left meanwhile, said
            return False
        said = "\n".join(last_lines(folder / f"rank-{end.rank}.log", 3))
        return end.code == ENDED_BY_SRUN or LOST_PEER.search(said) is not None

    near = [end for end in failed if end.time - failed[0].time < CLOCKS_DIFFER_S]
    return next((end for end in near if not is_consequence(end)), failed[0])


def last_lines(path: Path, number: int = LAST_LINES) -> list[str]:
    """The end of a log, found without reading all of it."""
    if not path.exists():
        return ["(no log)"]
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64 * 1024))
        return file.read().decode(errors="replace").splitlines()[-number:]


def place_of_main_thread(log: Path) -> str | None:
    """Innermost line of the main thread in the last stack dump of a log: faulthandler prints the
    main thread last."""
    blocks = re.split(
        r"^(?:Current thread|Thread) 0x.*$", "\n".join(last_lines(log, 10_000)), flags=re.MULTILINE
    )
    match = re.search(r'File "(.+)", line (\d+) in (\S+)', blocks[-1]) if len(blocks) > 1 else None
    return f"{match[3]} ({match[1]}:{match[2]})" if match else None


def _reports_hang(log: Path) -> bool:
    """Whether the watchdog of engine/distributed/watchdog.py, or the last resort of faulthandler
    behind it, has spoken: another code may have come first."""
    return any(
        " hangs: " in line or line.startswith("Timeout (") for line in last_lines(log, 10_000)
    )


def suspects_of_hang(folder: Path, ends: Sequence[End], ranks: int) -> list[str]:
    """The ranks that the others waited for: those that did not report the hang, else those that
    hang at another place than most."""
    reported = {
        end.rank
        for end in ends
        if end.code == EXIT_HANG or _reports_hang(folder / f"rank-{end.rank}.log")
    }
    silent = sorted(set(range(ranks)) - reported)
    if silent:
        more = [f"and {len(silent) - MOST_SUSPECTS} more"] if len(silent) > MOST_SUSPECTS else []
        return [
            f"rank {rank} on {node_of(folder, rank)} did not say where: it is stopped, or its node"
            " is lost"
            for rank in silent[:MOST_SUSPECTS]
        ] + more
    places = {rank: place_of_main_thread(folder / f"rank-{rank}.log") for rank in reported}
    common = Counter(places.values()).most_common(1)[0][0] if places else None
    return [
        f"rank {rank} on {node_of(folder, rank)} hangs at {place}, most others at {common}"
        for rank, place in sorted(places.items())
        if place != common
    ]


def node_of(folder: Path, rank: int) -> str:
    """Where a rank was started."""
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
    """(lines for the batch log, exit code of the first failure)."""
    ends = read_ends(folder)
    failed = [end for end in ends if end.code]
    silent = sorted(set(range(ranks)) - {end.rank for end in ends})
    if not failed:
        if not silent:
            return [], 0
        names = ", ".join(f"{rank} on {node_of(folder, rank)}" for rank in silent[:16])
        return [
            f"first error: ranks ended without a word: {names}; a node was lost, or the job was"
            " ended from outside"
        ], 1
    first = who_failed_first(folder, failed)
    speaker = next(
        (end for end in failed if end.rank == 0 and end.code == first.code in SAID_BY_RANK_0), first
    )
    if first.code == EXIT_REQUEUE:
        return [f"ranks {ranges([end.rank for end in failed])} left: {first.say()}"], EXIT_REQUEUE
    when = datetime.fromtimestamp(first.time).strftime("%H:%M:%S")
    of = "its log" if speaker is first else "rank 0's log, which says it for all"
    lines = [
        f"======== first error: rank {first.rank} on {first.node}: {first.say()} at {when}; the end"
        f" of {of}:"
    ]
    if first.code == EXIT_HANG:
        lines[:0] = [f"======== hung: {line}" for line in suspects_of_hang(folder, ends, ranks)]
    lines += [f"  | {line}" for line in last_lines(folder / f"rank-{speaker.rank}.log")]
    others = [end for end in failed if end is not first]
    for kind in sorted({end.say() for end in others}):
        after = [end for end in others if end.say() == kind]
        lines.append(
            f"======== {after[0].time - first.time:+.1f} s: ranks"
            f" {ranges([end.rank for end in after])}: {kind}"
        )
    if silent:
        lines.append(f"======== ended with them by srun: ranks {ranges(silent)}")
    return lines, first.code


def put_on_top(text: str) -> bool:
    """Write `text` before all else in the file that standard output appends to; False if it goes
    elsewhere. Appending goes on at the new end, and only the batch script writes to its job's log
    while this runs."""
    path = Path("/proc/self/fd/1")
    if not path.is_file() or not fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND:
        return False
    with path.open("r+b") as log:
        content = text.encode() + log.read()
        log.seek(0)
        log.write(content)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--ranks", type=int, required=True, help="number of ranks that were started"
    )
    args = parser.parse_args(argv)
    lines, code = summary(args.folder, args.ranks)
    print("\n".join(lines) + "\n" * bool(lines), end="", flush=True)
    if lines and code != EXIT_REQUEUE:
        head = (
            f"======== put on top of this log when the ranks in {args.folder} had ended; the log"
            " begins below\n"
        )
        put_on_top("\n".join([*lines, head]) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
