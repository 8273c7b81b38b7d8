"""`tools/plan.py train`: plan a recipe and print the plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from allinone.common.errors import ConfigError, InputError
from allinone.common.formatting import finite
from allinone.common.tables import markdown_table, plain_table
from allinone.data.captions import sample_lengths
from allinone.data.config import DatasetSpec
from allinone.data.index import Index
from allinone.data.throughput import estimate, measure
from allinone.engine.planning.failures import Reliability
from allinone.engine.planning.hardware import (
    CUSTOM,
    Device,
    custom_device,
    find_device,
    find_network,
    usual_network,
)
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import Lengths
from allinone.pretrain.own_data import require_places, resolve
from allinone.pretrain.recipes import RECIPES
from allinone.pretrain.train import parse
from allinone.tools.planning.data_plan import Loading
from allinone.tools.planning.failure_plan import plan_failures
from allinone.tools.planning.measured_shares import SpeedReport, with_measured_shares
from allinone.tools.planning.options import TrainPlan
from allinone.tools.planning.train_plan import Plan, as_json, make_plan
from allinone.tools.planning.train_tables import as_text

CLIPS = 50
"""Clips of --prepared that are measured; `plan.py data` measures more."""


def planned_device(options: TrainPlan, measured: SpeedReport | None = None) -> Device:
    """The GPU of the options; ValueError for an unknown name.

    Args:
        options: Options of the planner.
        measured: The report of --measured.
    """
    if options.device == CUSTOM:
        device = custom_device(options.memory_gb, options.tflops, options.bandwidth)
    else:
        device = find_device(options.device)
    if measured is not None:
        device = with_measured_shares(device, measured)
    return replace(device, gemm_share=options.gemm_share or device.gemm_share)


def _measured_loading(
    prepared: str | None, plan: Plan, config: PretrainConfig, cores: int
) -> Loading | None:
    """What loading the clips of a prepared folder costs; None without one.

    Args:
        prepared: DIR[:SPLIT].
        plan: The planned training.
        config: The recipe with its options.
        cores: CPU cores of a node.
    """
    if prepared is None:
        return None
    try:
        spec = DatasetSpec.parse(prepared)
    except ValueError as error:
        raise InputError(f"--prepared: {error}") from error
    cost = measure(spec, config.clip(config.model_config()), config.loader, CLIPS)
    throughput = estimate(
        cost,
        samples_per_s=plan.chosen.samples_per_s,
        gpus=plan.gpus,
        gpus_per_node=plan.gpus_per_node,
        cores=cores,
        storage_mb_per_s=0.0,
    )
    return Loading(cost, throughput)


def data_lengths(recipe: str, config: PretrainConfig) -> Lengths:
    """Tokens of a sample of the captions of --data and of --images, where the data is at hand.

    Args:
        recipe: Its name.
        config: The recipe with its options.

    Raises:
        DataError: --data or --images was given and is missing or damaged.
    """
    known = RECIPES[recipe][1] if recipe in RECIPES else None
    roles = [(config.train_specs(), known and known.data == config.data)]
    if config.cotrain.images:
        same = known and known.cotrain.images == config.cotrain.images
        roles.append((config.image_specs(), same))
    return [
        None
        # the recipe's own folders need not be on the machine that plans
        if of_recipe and not all(spec.path.is_dir() for spec in specs)
        else sample_lengths(
            [Index(spec.path, spec.split) for spec in specs], [spec.weight for spec in specs]
        )
        for specs, of_recipe in roles
    ]


def plan_train(
    options: TrainPlan, recipe_options: Sequence[str], measured: SpeedReport | None = None
) -> int:
    """Plan a recipe with its options, print and draw; returns the exit code.

    Args:
        options: Options of the planner.
        recipe_options: Command line options of the recipe.
        measured: The report of --measured.
    """
    try:
        device = planned_device(options, measured)
        network = find_network(options.network or usual_network(options.device))
    except ValueError as error:
        raise InputError(f"{error}; see --device, --network") from error
    config, _ = parse([options.recipe, *recipe_options], prog="tools/plan.py train")
    require_places(replace(config, out=Path(options.recipe)))  # a plan writes no run
    config = resolve(config, "cuda", options.gpus)
    try:
        config.model_config()
        plan = make_plan(
            options.recipe,
            config,
            options.gpus,
            device,
            network,
            options.gpus_per_node,
            options.pue,
            recipe_options,
            lengths := data_lengths(options.recipe, config),
        )
    except InputError:
        raise
    except (ConfigError, ValueError) as error:
        raise InputError(str(error)) from error
    if options.picture:
        from allinone.tools.planning.scaling_figure import draw_scaling

        draw_scaling(options.picture, options.recipe, config, device, lengths)
    loading = _measured_loading(options.prepared, plan, config, options.cores)
    failures = plan_failures(
        plan,
        config.train.save_every,
        Reliability(options.failure_gpu_hours, options.restart_s, 1e9 * options.write_gb_per_s),
    )
    if options.json:
        content = as_json(plan) | {
            "loading": asdict(loading) if loading else None,
            "failures": asdict(failures) | {"save_every": failures.best.steps},
        }
        print(json.dumps(finite(content)))
        return 0
    table = markdown_table if options.markdown else plain_table
    print(as_text(plan, config, table, failures, loading))
    if options.picture:
        print(f"\nscaling: {options.picture}")
    return 0
