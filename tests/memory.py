"""Memory of processes, from /proc."""

from __future__ import annotations

from pathlib import Path


def rollup(pid: int, field: str) -> int:
    """A field of /proc/PID/smaps_rollup (Pss, Rss, Private_Dirty, …) in bytes.

    Raises OSError if the process has ended.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
