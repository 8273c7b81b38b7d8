"""Builds and runs a pre-training run: model, data, evaluation and trainer of one PretrainConfig."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from allinone.common.errors import ConfigError
from allinone.common.processes import forkserver_context
from allinone.data import CoTrainStream, EvalSet, TrainStream
from allinone.data.captions import caption_lengths
from allinone.data.loading.batch import Batch, CoBatch
from allinone.engine import RunResult, Trainer
from allinone.engine.checkpoint.best import Selection
from allinone.engine.distributed import launch
from allinone.model import AllInOneForPreTraining
from allinone.model.convert import load_resized
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.cost import run_activations, training_cost
from allinone.pretrain.evaluation import chance_scores, evaluate, set_name
from allinone.pretrain.objectives.combined import PretrainObjective
from allinone.pretrain.objectives.registry import active_objectives
from allinone.pretrain.own_data import resolve, suggest_weights
from allinone.pretrain.readers import with_readers
from allinone.pretrain.step_counts import counted_steps

log = logging.getLogger(__name__)

SELECT = "select"
"""Score that selects the best weights, in history.jsonl and TensorBoard."""
SHOWN_SAMPLES = 6
"""Samples of a training batch that TensorBoard shows."""


def pretrain(config: PretrainConfig) -> RunResult:
    """Run a recipe to its end, or resume the run in `config.out`.

    Raises:
        ConfigError: The options contradict each other, the data or the machine.
    """
    suggest_weights(config)
    try:
        config = resolve(config, *_device_and_world(config))
        trainer = build_run(config)
    except ValueError as error:  # a ValueError during training is a bug and keeps its traceback
        raise ConfigError(str(error)) from error
    result = trainer.train()
    log.info(
        "next:\n"
        "  allinone report %s    # a page: curves, scores, clips found by text, masked words\n"
        "  allinone predict --help    # use the model on other media: --checkpoint %s\n"
        "  allinone finetune own --help    # own questions or labels: --checkpoint %s\n"
        "  tensorboard --logdir %s",
        *[config.out] * 4,
    )
    return result


def _device_and_world(config: PretrainConfig) -> tuple[str, int]:
    on_gpu = torch.cuda.is_available() and config.train.device != "cpu"
    return "cuda" if on_gpu else "cpu", launch.find_rank_info(os.environ).world


def build_run(config: PretrainConfig) -> Trainer:
    """Build the trainer of a run; raises ValueError for contradictory options or unusable data."""
    for objective in active_objectives(config.objective):
        objective.check(config)
    run_config = config.as_json()
    if config.loader.readers:
        forkserver_context()  # starts its imports while this process builds the model
    config = with_readers(config)
    model, data = build_model(config), build_data(config)
    lengths = data.text_lengths()
    cost = training_cost(config, launch.find_rank_info(os.environ).world, lengths)
    chance: dict[str, float] = {}
    return Trainer(
        config.train,
        model=model,
        objective=PretrainObjective(
            config.objective, all_patches_from=all_patches_from(config, data)
        ),
        data=data,
        run_config=run_config,
        evaluate=make_evaluation(config, chance),
        chance=chance,
        select=Selection(SELECT) if config.keep_best and config.val_specs() else None,
        flops_per_sample=cost.total,
        flops_at=(lambda step: cost.at(step <= config.kept_steps)) if cost.kept else None,
        activations=run_activations(config),
        counted=counted_steps(config, cost, lengths),
        pictures=make_pictures(config),
        out=config.out,
    )


def all_patches_from(
    config: PretrainConfig, data: TrainStream | CoTrainStream
) -> tuple[float, float]:
    """Positions in the streams of clips and of co-trained images at which --patch-keep ends."""
    if isinstance(data, CoTrainStream):
        return data.positions(config.kept_steps)
    return config.kept_steps * config.train.global_batch, math.inf


def build_model(config: PretrainConfig) -> AllInOneForPreTraining:
    """Build the model, equal on every rank: new, or with the resized weights of --init-from."""
    model_config = config.model_config()
    # before the model is built: all ranks draw the same initial weights
    torch.manual_seed(config.train.seed)
    source = config.model.initial_weights()
    if source is None:
        log.info("initial weights: random, seed %d", config.train.seed)
        return AllInOneForPreTraining(model_config)
    model, report = load_resized(source.path, model_config)
    log.info("initial weights: %s (%s)", source, report)
    return model


def build_data(config: PretrainConfig) -> TrainStream | CoTrainStream:
    """Build the stream of the video mixture, combined with the image mixture in co-training."""
    clip, seed, cotrain = config.clip(config.model_config()), config.train.seed, config.cotrain
    for spec in config.train_specs():
        lengths = caption_lengths(spec.path, spec.split).describe(clip.max_text_len)
        log.info("%s: %s (--max-text-len)", spec.name, lengths)
    # ranks of a tensor-parallel group read the same clips; one of them logs the bad ones
    logs_bad_clips = not launch.repeats(config.train.tensor_parallel)
    bad_clips = config.out / "bad_clips" if logs_bad_clips else None
    video = TrainStream(config.train_specs(), clip, config.loader, seed=seed, bad_clips=bad_clips)
    if not cotrain.images:
        return video
    workers = config.loader.workers if cotrain.image_workers is None else cotrain.image_workers
    images = TrainStream(
        config.image_specs(),
        replace(clip, num_frames=1),
        # as in the original: images are cropped, and RandAugment is for video
        replace(config.loader, workers=workers, geometry="crop", augment="none"),
        seed=seed + 1,
        bad_clips=bad_clips and bad_clips / "images",
    )
    return CoTrainStream(
        video,
        images,
        global_batch=config.train.global_batch,
        image_batch=cotrain.image_batch,
        mode=cotrain.image_mode,
        image_share=cotrain.image_share,
    )


def make_evaluation(
    config: PretrainConfig, chance: dict[str, float] | None = None
) -> Callable[[nn.Module, torch.device], dict[str, float]] | None:
    """Make the function that evaluates all validation sets; None without validation sets.

    Args:
        config: Options of the run.
        chance: Filled by the function: score → its expectation for a model that guesses.
    """
    specs = config.val_specs()
    if not specs:
        return None
    clip = config.clip(config.model_config())
    sets = {set_name(spec): EvalSet(spec, clip, config.loader) for spec in specs}
    objectives = active_objectives(config.objective)

    def evaluate_sets(model: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(model, AllInOneForPreTraining)
        results: dict[str, float] = {}
        for name, dataset in sets.items():
            output = evaluate(
                model,
                dataset,
                device,
                batch_size=config.train.micro_batch,
                limit=config.val_items,
                objectives=objectives,
            )
            for objective in objectives:
                metrics = objective.evaluation_metrics(output)
                results.update({f"{name}/{metric}": value for metric, value in metrics.items()})
                if chance is not None:
                    guessed = chance_scores(objective, metrics, len(output.items))
                    chance.update({f"{name}/{metric}": c for metric, c in guessed.items()})
            results[f"{name}/missing"] = float(len(output.bad))
        return {**_selected(results), **results} if config.keep_best else results

    return evaluate_sets


def _selected(results: Mapping[str, float]) -> dict[str, float]:
    """The score that selects the best weights, of the first validation set; higher is better."""
    first = next(iter(results)).partition("/")[0]
    recalls = [results.get(f"{first}/text_to_video_R@{k}") for k in (1, 5, 10)]
    known = [value for value in recalls if value is not None]
    if not known:  # without a contrastive loss
        known = [value for name, value in results.items() if name.endswith("_accuracy")][:1]
    return {SELECT: float(np.mean(known))} if known else {}


def make_pictures(
    config: PretrainConfig,
) -> Callable[[Batch | CoBatch], dict[str, NDArray[np.uint8]]]:
    """Make the function that draws samples of a training batch, augmented, for TensorBoard."""

    def draw(batch: Batch | CoBatch) -> dict[str, NDArray[np.uint8]]:
        from allinone.data.loading.contact_sheet import contact_sheet  # only rank 0 draws

        parts = (
            {"video": batch.video, "images": batch.images}
            if isinstance(batch, CoBatch)
            else {"video": batch}
        )
        return {
            f"samples/{kind}": np.asarray(
                contact_sheet(
                    part.first(SHOWN_SAMPLES),
                    config.loader,
                    f"training samples from position {part.first_position:,}",
                )
            )
            for kind, part in parts.items()
            if part is not None
        }

    return draw
