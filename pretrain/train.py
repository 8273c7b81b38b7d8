#!/usr/bin/env python3
"""Pre-train All-in-one: `python pretrain/train.py RECIPE [--options]`.

Starts under plain python, torchrun, deepspeed and srun. The same command with the same --out
resumes a run. `python pretrain/train.py RECIPE --help` lists every option with the recipe's value.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.access import require_writable
from allinone.common.command_line import parse as parse_options
from allinone.common.command_line import pick, run_command
from allinone.common.console import setup_logging
from allinone.common.earlier_runs import log_kept, parse_for_run
from allinone.common.errors import ConfigError
from allinone.engine.distributed import launch
from allinone.pretrain.config import VAL_OF_DATA, PretrainConfig
from allinone.pretrain.own_data import require_places
from allinone.pretrain.recipes import RECIPES

log = logging.getLogger("allinone.pretrain.train")  # not __name__, which is __main__ in a script

PROG = "pretrain/train.py"
DESCRIPTION = "Pre-train All-in-one. The same command with the same --out resumes a run."


def parse(argv: Sequence[str], prog: str = PROG) -> tuple[PretrainConfig, list[str]]:
    """Read a recipe and options, without importing torch.

    Without a recipe, --config FILE gives all options: `train.py --config runs/demo/run.json`.

    Returns:
        The options, and those that keep an earlier version's value (`parse_for_run`).

    Raises:
        SystemExit: After --help, --version, --print-config and after wrong options.
        InputError: --config names an unusable file.
    """
    argv = _with_value_of_val(argv)
    if argv and argv[0].partition("=")[0] in ("--config", "--print-config"):
        return parse_for_run(
            lambda default: parse_options(default, argv, prog=prog), PretrainConfig
        )
    lines = {name: text for name, (text, _) in RECIPES.items()}
    name = pick(lines, argv, prog=prog, kind="recipe", description=DESCRIPTION)
    help_line, recipe = RECIPES[name]
    return parse_for_run(
        lambda default: parse_options(
            default, argv[1:], prog=f"{prog} {name}", description=help_line
        ),
        recipe,
    )


def _with_value_of_val(argv: Sequence[str]) -> list[str]:
    """The arguments, where a --val without a value gets the one that it means."""
    words: list[str] = []
    for word, following in zip(argv, [*argv, "--"][1:], strict=True):
        bare = word == "--val" and following.startswith("--")
        words += [word, VAL_OF_DATA] if bare else [word]
    return words


def _require_own_out(recipe: str, config: PretrainConfig) -> None:
    """ConfigError if other data would go into the folder of the demo's run."""
    known = RECIPES.get(recipe, ("", None))[1]
    if recipe == "demo" and known and config.data != known.data and config.out == known.out:
        raise ConfigError(
            f"--data {' '.join(config.data)} is not the demo's: give --out, the folder of the run,"
            " for example --out runs/mine",
            hint="the recipe own fits clips of your own better: 224 px, 40 tokens",
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry, alone or as one rank of many; returns the exit code."""
    arguments = launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(arguments))


def _run(argv: Sequence[str]) -> int:
    config, kept = parse(argv)
    # refuses a missing choice before torch is loaded
    config.model.initial_weights(f"recipe {argv[0]}" if argv[0] in RECIPES else "this run")
    require_places(config)
    _require_own_out(argv[0], config)
    rank = launch.find_rank_info(os.environ).rank
    require_writable(config.out)  # before the seconds in which torch is imported
    train = config.train
    setup_logging(terminal=rank == 0, quiet=train.quiet, verbose=train.verbose, stderr=train.json)
    log_kept(config.out, kept)
    launch.prepare_environment()  # before torch and DeepSpeed are imported: they read it once
    log.info("loading PyTorch and DeepSpeed (about 10 s) …")
    from allinone.pretrain.run import pretrain

    return launch.main(lambda: pretrain(config), train)


if __name__ == "__main__":
    sys.exit(main())
