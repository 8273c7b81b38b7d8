#!/usr/bin/env python3
"""Pre-train All-in-one: `python pretrain/train.py RECIPE [--options]`.

Starts under plain python, torchrun, deepspeed and srun. The same command on the same --out resumes. `python pretrain/train.py RECIPE --help` lists
every option with its default in that recipe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine import launch

launch.prepare_environment()  # before torch's and DeepSpeed's imports: they read the environment once

import torch
import tyro
from torch import nn

from data import EvalSet, TrainStream
from engine import Run, RunResult
from engine.config import ConfigError
from model import AllInOneForPreTraining, flops
from model.convert import load_resized
from pretrain.config import PretrainConfig
from pretrain.evaluation import embed, retrieval_table
from pretrain.objectives import PretrainObjective
from pretrain.recipes import RECIPES


def build_model(config: PretrainConfig) -> AllInOneForPreTraining:
    """A new model, or one whose weights come from --init-from, resized where frames, resolution or text length differ; equal on every rank."""
    model_config = config.model.build_config()
    torch.manual_seed(config.train.seed)
    if config.model.init_from is None:
        return AllInOneForPreTraining(model_config)
    model, report = load_resized(config.model.init_from, model_config)
    if launch.find_place(os.environ).rank == 0:
        print(
            f"weights from {config.model.init_from}: {report}", file=sys.stderr if config.train.json else sys.stdout, flush=True
        )
    return model


def training_flops_per_sample(config: PretrainConfig) -> float:
    """FLOPs of one sample's step: all passes, forward and backward (3 x forward), FMA = 2; heads are left out."""
    model_config, objective = config.model.build_config(), config.objective

    def cost(part: flops.Part) -> int:
        return flops.forward_flops(model_config, frames=model_config.num_frames, text_tokens=model_config.max_text_len, part=part)

    forward = objective.joint_passes() * cost("joint")
    if objective.vtc:
        forward += cost("text") + cost("video")
    return 3.0 * forward


def make_evaluation(config: PretrainConfig) -> Callable[[nn.Module, torch.device], dict[str, float]] | None:
    """A function that the loop calls every --eval-every steps, or None without validation sets."""
    specs = config.val_specs()
    if not specs:
        return None
    sets = {
        f"{spec.path.name}_{spec.split}": EvalSet(spec, config.clip(config.model.build_config()), config.loader) for spec in specs
    }

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(model, AllInOneForPreTraining)
        results: dict[str, float] = {}
        for name, dataset in sets.items():
            embeddings = embed(model, dataset, device, batch_size=config.train.micro_batch, limit=config.val_items)
            if config.objective.mlm:
                results[f"{name}/mlm_accuracy"] = embeddings.mlm_accuracy
            if config.objective.vtm:
                results[f"{name}/vtm_accuracy"] = embeddings.vtm_accuracy
            if config.objective.vtc:
                table = retrieval_table(embeddings)
                for way in ("text_to_video", "video_to_text"):
                    results.update({f"{name}/{way}_{metric}": value for metric, value in table[way].items()})
            results[f"{name}/missing"] = float(len(embeddings.bad))
        return results

    return evaluate


def build_run(config: PretrainConfig) -> Run:
    """The run of a recipe; ValueError where options contradict each other or the data."""
    if config.objective.vtm and config.train.micro_batch < 2:
        raise ValueError("VTM draws its false pairs from the micro-batch: --micro-batch must be at least 2 (or set --vtm 0)")
    model_config = config.model.build_config()
    stream = TrainStream(
        config.train_specs(), config.clip(model_config), config.loader, seed=config.train.seed, ledger=config.out / "bad_clips"
    )
    return Run(
        config.train,
        model=build_model(config),
        objective=PretrainObjective(config.objective),
        data=stream,
        run_config=config.as_json(),
        evaluate=make_evaluation(config),
        flops_per_sample=training_flops_per_sample(config),
        out=config.out,
    )


def pretrain(config: PretrainConfig) -> RunResult:
    """Run a recipe to its end, resuming what stands in `config.out`. Raises ConfigError for options that a user can mend."""
    try:
        run = build_run(config)
    except ValueError as error:  # while training, a ValueError is a fault of the program and keeps its traceback
        raise ConfigError(str(error)) from error
    return run.train()


def parse(argv: Sequence[str]) -> PretrainConfig:
    """Recipe and options from the command line; exits with the valid names after an unknown one."""
    recipes = {name: (text, recipe) for name, (text, recipe) in RECIPES.items()}
    return tyro.extras.overridable_config_cli(
        recipes, args=list(argv), prog="pretrain/train.py", config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    config = parse(launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv))
    return launch.main(lambda: pretrain(config))


if __name__ == "__main__":
    sys.exit(main())
