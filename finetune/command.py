"""Command line of the benchmarks. Options are read before torch is imported."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from allinone.common.access import require_writable
from allinone.common.command_line import parse as parse_options
from allinone.common.command_line import run_command
from allinone.common.console import setup_logging
from allinone.common.earlier_runs import log_kept, parse_for_run
from allinone.engine.distributed import launch
from allinone.finetune.benchmark import FOLDS, Benchmark
from allinone.finetune.config import RENAMED, FinetuneConfig

log = logging.getLogger(__name__)


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

    def read(default: FinetuneConfig, argv: Sequence[str] = argv) -> FinetuneConfig:
        config: FinetuneConfig = parse_options(
            default,
            argv,
            prog=prog or f"finetune/{benchmark.name}.py",
            description=benchmark.description,
            renamed=RENAMED,
        )
        return config

    def read_variant(default: FinetuneConfig) -> FinetuneConfig:
        return read(benchmark.defaults(default, _variant(read, default, argv)))

    reader = read_variant if benchmark.variant_options else read
    return parse_for_run(reader, benchmark.config, parts=FOLDS if benchmark.averages_folds else "")


def _variant(
    read: Callable[[FinetuneConfig, Sequence[str]], FinetuneConfig],
    default: FinetuneConfig,
    argv: Sequence[str],
) -> str:
    """The variant that flags or --config choose, which decides about the other defaults.

    Args:
        read: Reads the options given as its second argument, over the defaults.
        default: Defaults that do not depend on the variant.
        argv: All arguments.
    """
    if not {"-h", "--help", "--version"}.isdisjoint(argv):
        return ""
    # quiet: warnings and errors come again when the options are read with the variant's defaults
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return read(default, [word for word in argv if word != "--print-config"]).variant
        except SystemExit:
            return ""


def main(benchmark: Benchmark, argv: Sequence[str] | None = None, prog: str = "") -> int:
    """Command line entry of a benchmark, alone or as one rank of many.

    Args:
        benchmark: The benchmark.
        argv: Arguments without the program's name; None: those of this process.
        prog: Shown in usage and errors.

    Returns:
        The exit code.
    """
    arguments = launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(benchmark, arguments, prog))


def _run(benchmark: Benchmark, argv: Sequence[str], prog: str) -> int:
    config, kept = parse(benchmark, argv, prog)
    rank = launch.find_rank_info(os.environ).rank
    require_writable(config.out)  # before the seconds in which torch is imported
    train = config.train
    setup_logging(terminal=rank == 0, quiet=train.quiet, verbose=train.verbose, stderr=train.json)
    log_kept(config.out, kept)
    log.info("loading PyTorch and DeepSpeed (about 10 s) …")
    from allinone.finetune.run import run_benchmark  # imports torch and DeepSpeed

    return launch.main(lambda: run_benchmark(benchmark, config), config.train)
