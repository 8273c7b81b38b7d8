#!/usr/bin/env python3
"""Compare the planner with DeepSpeed's live tensors and collectives and with torch's allocator.

    python tests/benchmarks/plan_check.py [--world 1 2 4] [--markdown]

Trains three steps of nano (MLM + VTM) on CPU ranks for every ZeRO stage, precision and number of
ranks, and prints planned and measured bytes. Takes minutes on two cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ.setdefault("OMP_NUM_THREADS", "1")

from allinone.engine.distributed import launch

launch.prepare_environment()  # torch and DeepSpeed read it once, when they are imported

from allinone.common.command_line import parse, run_command
from allinone.common.errors import InputError
from allinone.common.tables import markdown_table, plain_table
from tests.engine.measured import Case, measure
from tests.engine.planned import compare


@dataclass(frozen=True)
class PlanCheckOptions:
    """The cases to compare: every combination of the first three options."""

    world: tuple[int, ...] = (1, 2, 4)
    """Numbers of ranks."""
    stage: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
    """ZeRO stages."""
    precision: tuple[Literal["bf16", "fp32"], ...] = ("bf16", "fp32")
    """Precisions."""
    accumulation: tuple[int, ...] = (1, 2)
    """Micro-batches per step, each with the bucket at the same position of --bucket."""
    bucket: tuple[int, ...] = (0, 1_000_000)
    """Elements of a bucket; 0 uses the value in ds_configs/."""
    every_line: bool = False
    """Print all parts, not only the sums, bytes and peaks."""
    markdown_table: bool = False
    """Print a Markdown table."""

    def __post_init__(self) -> None:
        if len(self.accumulation) != len(self.bucket):
            raise InputError("--accumulation and --bucket need the same number of values")

    def cases(self) -> Iterator[Case]:
        """All combinations."""
        for stage, precision, world in product(self.stage, self.precision, self.world):
            for accumulation, bucket in zip(self.accumulation, self.bucket, strict=True):
                yield Case(stage, precision, world, accumulation=accumulation, bucket=bucket)


def benchmark(options: PlanCheckOptions) -> int:
    """Measure and print all cases; returns the exit code."""
    rows = [["case", "what", "planned MB", "measured MB", "error %"]]
    for case in options.cases():
        lines = [
            line
            for line in compare(case, measure(case))
            if options.every_line
            or line.what.endswith(": all")
            or "bytes" in line.what
            or "peak" in line.what
        ]
        for line in lines:
            planned, measured = f"{line.planned / 1e6:.3f}", f"{line.measured / 1e6:.3f}"
            rows.append([case.name, line.what, planned, measured, f"{100 * line.error:+.2f}"])
        largest = max(abs(100 * line.error) for line in lines)
        print(f"{case.name}: largest error {largest:.2f} %", file=sys.stderr, flush=True)
    print((markdown_table if options.markdown else plain_table)(rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    prog = "tests/benchmarks/plan_check.py"
    return run_command(
        lambda: benchmark(parse(PlanCheckOptions, arguments, prog=prog, description=__doc__ or ""))
    )


if __name__ == "__main__":
    sys.exit(main())
