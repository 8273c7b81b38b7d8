"""Command line of the benchmarks. Options are read before torch is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from allinone.common.access import require_writable
from allinone.common.command_line import parse as parse_options
from allinone.common.command_line import run_command
from allinone.common.console import setup_logging
from allinone.common.earlier_runs import log_kept, parse_for_run
from allinone.engine.distributed import launch
from allinone.finetune.benchmark import Benchmark
from allinone.finetune.config import RENAMED, FinetuneConfig


def parse(
    benchmark: Benchmark, argv: Sequence[str], prog: str = ""
) -> tuple[FinetuneConfig, list[str]]:
    """Read the options of a benchmark.

    Args:
        benchmark: Holds the defaults.
        argv: The arguments, without the program's name.
        prog: Shown in usage and errors; by default the path of the entry script.

    Returns:
        The options, and those that keep an earlier version's value (`parse_for_run`).

    Raises:
        SystemExit: After --help, --version, --print-config and after wrong options.
        InputError: --config names an unusable file.
    """

    def read(default: FinetuneConfig) -> FinetuneConfig:
        config: FinetuneConfig = parse_options(
            default,
            argv,
            prog=prog or f"finetune/{benchmark.name}.py",
            description=benchmark.description,
            renamed=RENAMED,
        )
        return benchmark.with_variant_options(config)

    return parse_for_run(read, benchmark.config)


def main(benchmark: Benchmark, argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Command line entry of a benchmark, alone or as one rank of many; returns the exit code."""
    arguments = launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(benchmark, arguments, prog))


def _run(benchmark: Benchmark, argv: Sequence[str], prog: str) -> int:
    config, kept = parse(benchmark, argv, prog)
    rank = launch.find_rank_info(os.environ).rank
    require_writable(config.out)  # before the seconds in which torch is imported
    train = config.train
    setup_logging(terminal=rank == 0, quiet=train.quiet, verbose=train.verbose, stderr=train.json)
    log_kept(config.out, kept)
    from allinone.finetune.run import run_benchmark  # imports torch and DeepSpeed

    return launch.main(lambda: run_benchmark(benchmark, config), config.train)
