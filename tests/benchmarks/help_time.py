#!/usr/bin/env python3
"""Time of every --help against the bound of 0.5 s: python tests/benchmarks/help_time.py"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from allinone.cli import COMMANDS

BOUND_S = 0.5
REPEATS = 3


def main() -> int:
    """Print the median time of each --help; returns 1 if one is over the bound."""
    more = [["train", "demo"], ["finetune", "msrvtt_qa"], ["plan", "train", "demo"]]
    over = 0
    for words in [[], *([name] for name in COMMANDS), *more]:
        seconds = statistics.median(_seconds(words) for _ in range(REPEATS))
        late = seconds > BOUND_S
        over += late
        name = " ".join(["allinone", *words, "--help"])
        print(f"{name:<40} {seconds:5.2f} s of {BOUND_S} s{'  too slow' if late else ''}")
    return 1 if over else 0


def _seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "allinone", *words, "--help"],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
