#!/usr/bin/env python3
"""The planner against DeepSpeed's live tensors, collectives and torch's allocator: python
tests/benchmarks/plan_check.py [--world 1 2 4] [--markdown]

Trains three steps of nano (MLM + VTM) on CPU ranks for every ZeRO stage, precision and number of
ranks, and prints planned beside measured bytes. --quick takes one step of the list for a look.
Minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ.setdefault("OMP_NUM_THREADS", "1")

from allinone.engine.distributed import launch

launch.prepare_environment()  # before torch's and DeepSpeed's imports

from allinone.common.tables import markdown, plain
from tests.engine.measured import Case, compare, measure


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--world", type=int, nargs="+", default=[1, 2, 4], help="ranks (default: 1 2 4)"
    )
    parser.add_argument(
        "--stage", type=int, nargs="+", default=[0, 1, 2, 3], help="ZeRO stages (default: all)"
    )
    parser.add_argument(
        "--precision", nargs="+", default=["bf16", "fp32"], help="default: bf16 fp32"
    )
    parser.add_argument(
        "--accumulation",
        type=int,
        nargs="+",
        default=[1, 2],
        help="micro-batches per step (default: 1 2)",
    )
    parser.add_argument(
        "--bucket",
        type=int,
        nargs="+",
        default=[0, 1_000_000],
        help="bucket elements, 0: ds_configs/ (default: 0 1000000)",
    )
    parser.add_argument(
        "--every-line",
        action="store_true",
        help="print all parts, not only the sums and the worst part",
    )
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args()
    rows = [["case", "what", "planned MB", "measured MB", "error %"]]
    for stage in args.stage:
        for precision in args.precision:
            for world in args.world:
                for accumulation, bucket in zip(args.accumulation, args.bucket, strict=True):
                    case = Case(stage, precision, world, accumulation=accumulation, bucket=bucket)
                    lines = compare(case, measure(case))
                    shown = [
                        line
                        for line in lines
                        if args.every_line
                        or line.what.endswith(": all")
                        or "bytes" in line.what
                        or "peak" in line.what
                    ]
                    for line in shown:
                        error = f"{100 * line.error:+.2f}"
                        rows.append(
                            [
                                case.name,
                                line.what,
                                f"{line.planned / 1e6:.3f}",
                                f"{line.measured / 1e6:.3f}",
                                error,
                            ]
                        )
                    print(
                        f"{case.name}: worst {max(abs(100 * line.error) for line in shown):.2f} %",
                        file=sys.stderr,
                        flush=True,
                    )
    print((markdown if args.markdown else plain)(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
