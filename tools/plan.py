#!/usr/bin/env python3
"""Estimate the cost of a model, a training or its data before it starts.

    python tools/plan.py model
    python tools/plan.py model --frames 8 --image-size 384 --markdown
    python tools/plan.py data prepared/webvid --gpus 128 --samples-per-s 2000
    python tools/plan.py train webvid-howto --gpus 128 --device a100-80g

`train` accepts the options of the recipe too: --frames 8, --size large, --mask-prob 0.2, ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.common.command_line import Choice, parse, pick, run_command
from allinone.tools.planning.options import DataPlan, ModelPlan, TrainPlan, split_arguments

PROG = "tools/plan.py"
COMMANDS = {
    "model": Choice("parameters and operations of every model size", ModelPlan),
    "train": Choice("memory, time, energy and best configuration of a recipe on GPUs", TrainPlan),
    "data": Choice("whether prepared data can be loaded as fast as a training needs it", DataPlan),
}
DESCRIPTIONS = {
    "model": "Counts parameters and operations, and shows the paper's numbers for comparison.",
    "train": "Plans a recipe of pretrain/train.py; needs no GPU. Flags that are not listed below"
    " are the recipe's own (--frames 8, --size large, --global-batch 4096, ...).",
    "data": "Measures random clips of a prepared folder on one core of this machine and compares"
    " them with what a training needs per node. Run it on a node of the kind that trains, with the"
    " storage that the training reads. Exit code 1: the data cannot be loaded fast enough.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _run(arguments))


def _run(argv: list[str]) -> int:
    command = pick(COMMANDS, argv, prog=PROG, kind="command", description=__doc__ or "")
    own = argv[1:]
    of_recipe: list[str] = []
    if command == "train":
        own, of_recipe = split_arguments(own)
    options = parse(
        COMMANDS[command].default,
        own,
        prog=f"{PROG} {command}",
        description=DESCRIPTIONS[command],
    )
    # torch is imported below, after parsing, so that --help answers at once
    if isinstance(options, ModelPlan):
        from allinone.tools.planning.model_plan import plan_model

        return plan_model(options)
    if isinstance(options, DataPlan):
        from allinone.tools.planning.data_plan import plan_data

        return plan_data(options)
    from allinone.tools.planning.train_command import plan_train

    measured = None
    if options.measured is not None:
        from allinone.tools.reporting.gpu_report import read

        measured = read(options.measured)
    return plan_train(options, of_recipe, measured)


if __name__ == "__main__":
    sys.exit(main())
