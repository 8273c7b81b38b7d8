"""`tools/plan.py train`: plan a recipe and print the plan."""

from __future__ import annotations

import json
from collections.abc import Sequence

from allinone.common.errors import ConfigError, InputError
from allinone.common.tables import markdown_table, plain_table
from allinone.engine.planning.hardware import USUAL_NETWORK, find_device, find_network
from allinone.pretrain.train import parse
from allinone.tools.planning.options import TrainPlan
from allinone.tools.planning.train_plan import as_json, make_plan
from allinone.tools.planning.train_tables import as_text


def plan_train(options: TrainPlan, recipe_options: Sequence[str]) -> int:
    """Plan a recipe with its options, print and draw; returns the exit code.

    Args:
        options: Options of the planner.
        recipe_options: Command line options of the recipe.
    """
    try:
        device = find_device(options.device)
        network = find_network(options.network or USUAL_NETWORK.get(options.device, "ib-hdr"))
    except ValueError as error:
        raise InputError(f"{error}; see --device, --network") from error
    config, _ = parse([options.recipe, *recipe_options], prog="tools/plan.py train")
    try:
        config.model_config()
        plan = make_plan(
            options.recipe,
            config,
            options.gpus,
            device,
            network,
            options.mfu,
            options.pue,
            recipe_options,
        )
    except InputError:
        raise
    except (ConfigError, ValueError) as error:
        raise InputError(str(error)) from error
    if options.picture:
        from allinone.tools.planning.scaling_figure import draw_scaling

        draw_scaling(options.picture, options.recipe, config, device, options.mfu)
    if options.json:
        print(json.dumps(as_json(plan)))
        return 0
    print(as_text(plan, config, markdown_table if options.markdown else plain_table))
    if options.picture:
        print(f"\nscaling: {options.picture}")
    return 0
