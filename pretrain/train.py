#!/usr/bin/env python3
"""Pre-train All-in-one: `python pretrain/train.py RECIPE [--options]`.

Starts under plain python, torchrun, deepspeed and srun. The same command on the same --out resumes.
`python pretrain/train.py RECIPE --help` lists every option with its default in that recipe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.engine.distributed import launch

# before torch's and DeepSpeed's imports: they read the environment once
launch.prepare_environment()

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch import nn

from allinone.common.errors import ConfigError
from allinone.common.processes import forkserver_context
from allinone.data import CoTrainStream, EvalSet, TrainStream
from allinone.data.loading.batch import Batch, CoBatch
from allinone.engine import RunResult, Trainer
from allinone.engine.command_line import refuse_unknown
from allinone.model import AllInOneForPreTraining
from allinone.model.convert import load_resized
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import run_activations, training_flops_per_sample
from allinone.pretrain.evaluation import embed, retrieval_table
from allinone.pretrain.objectives import PretrainObjective
from allinone.pretrain.recipes import RECIPES


def build_model(config: PretrainConfig) -> AllInOneForPreTraining:
    """A new model, or one whose weights come from --init-from, resized where frames, resolution or
    text length differ; equal on every rank."""
    model_config = config.model_config()
    torch.manual_seed(config.train.seed)
    if config.model.init_from is None:
        return AllInOneForPreTraining(model_config)
    model, report = load_resized(config.model.init_from, model_config)
    if launch.find_rank_info(os.environ).rank == 0:
        print(
            f"weights from {config.model.init_from}: {report}",
            file=sys.stderr if config.train.json else sys.stdout,
            flush=True,
        )
    return model


def make_evaluation(
    config: PretrainConfig,
) -> Callable[[nn.Module, torch.device], dict[str, float]] | None:
    """A function that the loop calls every --eval-every steps, or None without validation sets."""
    specs = config.val_specs()
    if not specs:
        return None
    sets = {
        f"{spec.path.name}_{spec.split}": EvalSet(
            spec, config.clip(config.model_config()), config.loader
        )
        for spec in specs
    }

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(model, AllInOneForPreTraining)
        results: dict[str, float] = {}
        for name, dataset in sets.items():
            embeddings = embed(
                model, dataset, device, batch_size=config.train.micro_batch, limit=config.val_items
            )
            if config.objective.mlm:
                results[f"{name}/mlm_accuracy"] = embeddings.mlm_accuracy
            if config.objective.vtm:
                results[f"{name}/vtm_accuracy"] = embeddings.vtm_accuracy
            if config.objective.vtc:
                table = retrieval_table(embeddings)
                for way in ("text_to_video", "video_to_text"):
                    results.update(
                        {f"{name}/{way}_{metric}": value for metric, value in table[way].items()}
                    )
            results[f"{name}/missing"] = float(len(embeddings.bad))
        return results

    return evaluate


def make_pictures(
    config: PretrainConfig,
) -> Callable[[Batch | CoBatch], dict[str, NDArray[np.uint8]]]:
    """A function that draws up to six samples of a training batch as the model sees them, for
    TensorBoard."""

    def draw(batch: Batch | CoBatch) -> dict[str, NDArray[np.uint8]]:
        from allinone.data.loading.contact_sheet import contact_sheet  # rank 0 alone draws

        parts = (
            {"video": batch.video, "images": batch.images}
            if isinstance(batch, CoBatch)
            else {"video": batch}
        )
        return {
            f"samples/{kind}": np.asarray(
                contact_sheet(
                    part.first(6),
                    config.loader,
                    f"training samples from position {part.first_position:,}",
                )
            )
            for kind, part in parts.items()
            if part is not None
        }

    return draw


def build_data(config: PretrainConfig) -> TrainStream | CoTrainStream:
    """The stream of the mixture, with images beside the video in co-training."""
    clip, seed, cotrain = config.clip(config.model_config()), config.train.seed, config.cotrain
    repeats = (
        launch.find_rank_info(os.environ).rank % config.train.tensor_parallel
    )  # what another rank of its group reads and writes down
    ledger = None if repeats else config.out / "bad_clips"
    video = TrainStream(config.train_specs(), clip, config.loader, seed=seed, ledger=ledger)
    if not cotrain.images:
        return video
    workers = config.loader.workers if cotrain.image_workers is None else cotrain.image_workers
    images = TrainStream(
        config.image_specs(),
        replace(clip, num_frames=1),
        replace(config.loader, workers=workers),
        seed=seed + 1,
        ledger=ledger and ledger / "images",
    )
    return CoTrainStream(
        video,
        images,
        global_batch=config.train.global_batch,
        image_batch=cotrain.image_batch,
        mode=cotrain.image_mode,
        image_share=cotrain.image_share,
    )


def _refuse_without_negatives(config: PretrainConfig) -> None:
    """ValueError where VTM would find no false pair: a micro-batch of one clip trains on true pairs
    only, and says yes to all."""
    train, images = config.train, config.cotrain.image_batch
    if not config.objective.vtm:
        return
    if train.micro_batch < 2:
        raise ValueError(
            "VTM draws its false pairs from the micro-batch: --micro-batch must be at least 2 (or"
            " set --vtm 0)"
        )
    if config.cotrain.images and images * train.micro_batch < 2 * train.global_batch:
        raise ValueError(
            "VTM draws its false pairs from the micro-batch, and that of the images would hold"
            f" --image-batch {images} x --micro-batch {train.micro_batch} / --global-batch"
            f" {train.global_batch} = {images * train.micro_batch / train.global_batch:g} of them,"
            " at least 2 are needed: --image-batch"
            f" {-(-2 * train.global_batch // train.micro_batch)} or more, or a larger --micro-batch"
            " (or --vtm 0)"
        )


def build_run(config: PretrainConfig) -> Trainer:
    """The run of a recipe; ValueError where options contradict each other or the data."""
    _refuse_without_negatives(config)
    if config.loader.workers:
        forkserver_context()  # it imports while this process builds
    return Trainer(
        config.train,
        model=build_model(config),
        objective=PretrainObjective(config.objective),
        data=build_data(config),
        run_config=config.as_json(),
        evaluate=make_evaluation(config),
        flops_per_sample=training_flops_per_sample(config, launch.find_rank_info(os.environ).world),
        activations=run_activations(config),
        pictures=make_pictures(config),
        out=config.out,
    )


def pretrain(config: PretrainConfig) -> RunResult:
    """Run a recipe to its end, resuming what stands in `config.out`. Raises ConfigError for options
    that a user can mend."""
    try:
        run = build_run(config)
    except (
        ValueError
    ) as error:  # while training, a ValueError is a fault of the program and keeps its traceback
        raise ConfigError(str(error)) from error
    return run.train()


def parse(argv: Sequence[str]) -> PretrainConfig:
    """Recipe and options from the command line; exits with the valid names after an unknown one."""
    refuse_unknown(argv, PretrainConfig, "pretrain/train.py")
    recipes = {name: (text, recipe) for name, (text, recipe) in RECIPES.items()}
    return tyro.extras.overridable_config_cli(
        recipes,
        args=list(argv),
        prog="pretrain/train.py",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    config = parse(launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv))
    return launch.main(lambda: pretrain(config))


if __name__ == "__main__":
    sys.exit(main())
