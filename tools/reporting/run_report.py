"""The page of any pre-training run: what `make demo` shows, on the run's own validation sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from allinone.common.command_line.config_file import config_from_file
from allinone.common.errors import InputError
from allinone.common.formatting import duration
from allinone.common.json_text import parse_json
from allinone.common.options import flatten
from allinone.data import EvalSet
from allinone.data.config import DatasetSpec
from allinone.engine.checkpoint.layout import RUN
from allinone.engine.monitoring.history import HISTORY, read_history
from allinone.model import AllInOneForPreTraining, parameters_by_part
from allinone.pretrain.config import PretrainConfig
from allinone.pretrain.evaluation import EvaluationOutput, chance_scores, evaluate, set_name
from allinone.pretrain.objectives.registry import active_objectives
from allinone.tools.reporting.pretrain_examples import masked_words, retrieval_examples
from allinone.tools.reporting.pretrain_figures import MaskedWord, RetrievalExample
from allinone.tools.reporting.pretrain_page import RunFacts, write_report

SHOWN_PX = 128
"""Side of the frames on the page."""


@dataclass(frozen=True)
class RunEvaluation:
    """A model's results on validation sets, with examples of the first one."""

    model: AllInOneForPreTraining
    weights: Path
    results: Mapping[str, EvaluationOutput]
    """Name of a set → its results."""
    retrieval: list[RetrievalExample]
    masked: list[MaskedWord]
    train_clips: int
    chance: Mapping[str, float]
    """Score as history.jsonl names it → what guessing gives."""


def is_pretraining_run(path: Path) -> bool:
    """Whether a folder holds a pre-training run."""
    try:
        record = parse_json((path / RUN).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "objective" in record


def evaluate_run(
    model: AllInOneForPreTraining,
    weights: Path,
    config: PretrainConfig,
    sets: Mapping[str, DatasetSpec],
    train: DatasetSpec,
    limit: int | None = None,
) -> RunEvaluation:
    """Evaluate a model and choose examples.

    Args:
        model: On the CPU, in eval mode.
        weights: Where it was loaded from.
        config: Says how the run reads clips.
        sets: Name → validation set; examples are of the first one.
        train: The training set, whose clips are counted.
        limit: Use at most this many items of each set; None or 0 uses all.

    Raises:
        DataError: A set is unfinished or damaged, or lacks the split.
    """
    clip = config.clip(model.config)
    shape = replace(clip, image_size=SHOWN_PX)
    read = {name: EvalSet(spec, clip, config.loader) for name, spec in sets.items()}
    device = torch.device("cpu")
    objectives = active_objectives(config.objective)
    results = {
        name: evaluate(model, one, device, limit=limit, objectives=objectives)
        for name, one in read.items()
    }
    chance = {
        f"{set_name(sets[name])}/{metric}": value
        for name, output in results.items()
        for objective in objectives
        for metric, value in chance_scores(
            objective, objective.evaluation_metrics(output), len(output.items)
        ).items()
    }
    first = next(iter(sets))
    shown = EvalSet(sets[first], shape, config.loader)
    contrastive = "text" in results[first].embedded
    return RunEvaluation(
        model,
        weights,
        results,
        retrieval_examples(results[first], shown, limit=limit) if contrastive else [],
        masked_words(model, read[first], shown, limit=limit) if config.objective.mlm else [],
        len(EvalSet(train, clip, config.loader)),
        chance,
    )


def write_run_page(
    folder: Path,
    evaluation: RunEvaluation,
    config: PretrainConfig,
    history: Path,
    seconds: Mapping[str, float],
    note: str = "",
) -> list[Path]:
    """Write the page of a run.

    Args:
        folder: Gets the files of `pretrain_page.FILES`.
        evaluation: What is shown.
        config: Options of the run.
        history: The run's history.jsonl.
        seconds: Phase → seconds.
        note: A sentence on the validation sets.

    Returns:
        The files, the page first.
    """
    parameters = parameters_by_part(evaluation.model)
    found = evaluation.results
    first = next(iter(found.values()))
    tables = {
        name: value.retrieval_table() for name, value in found.items() if "text" in value.embedded
    }
    results: dict[str, Any] = {
        **tables,
        **{f"{name}_accuracy": first.accuracy(name) for name in first.correct},
        "items": {name: len(value.items) for name, value in found.items()},
        "missing": {name: [vars(clip) for clip in value.bad] for name, value in found.items()},
        "train_clips": evaluation.train_clips,
        "parameters": sum(parameters.values()),
        "seconds": dict(seconds),
    }
    rows = read_history(history)
    run = RunFacts(
        [("Run", str(history.parent)), *_head(evaluation, config, rows, seconds)],
        [(name, json.dumps(value)) for name, value in flatten(config.as_json()).items()],
        {**evaluation.chance, **chance_losses(config, evaluation.model.config.vocab_size, rows)},
    )
    return write_report(
        folder, results, rows, evaluation.retrieval, evaluation.masked, run, note=note
    )


def _head(
    evaluation: RunEvaluation,
    config: PretrainConfig,
    history: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> list[tuple[str, str]]:
    """Model, data, date and seed of a run as (what, text)."""
    model = evaluation.model.config
    parts = parameters_by_part(evaluation.model)
    records = [row for row in history if "metrics" in row]
    date = datetime.fromtimestamp(records[-1]["time"], UTC) if records else None
    items = (f"{name}: {len(value.items):,} clips" for name, value in evaluation.results.items())
    steps = f"{records[-1]['step'] if records else 0:,} of {config.train.steps:,} steps"
    durations = (f"{name} {duration(value)}" for name, value in seconds.items())
    return [
        (
            "Model",
            f"{config.model.size}: {model.num_hidden_layers} blocks of width {model.hidden_size},"
            f" {model.num_frames} frames of {model.image_size} px,"
            f" texts of up to {model.max_text_len} tokens",
        ),
        (
            "Parameters",
            f"{sum(parts.values()):,} ("
            + ", ".join(f"{part} {number:,}" for part, number in parts.items())
            + ")",
        ),
        ("Weights", str(evaluation.weights)),
        ("Training data", f"{', '.join(config.data)}: {evaluation.train_clips:,} clips"),
        ("Held-out data", "; ".join(items)),
        ("Date", f"{date:%Y-%m-%d %H:%M} UTC" if date else "–"),
        ("Training", f"{steps} of {config.train.global_batch:,} clips"),
        ("Time", ", ".join(durations)),
        ("Seed", str(config.train.seed)),
    ]


def chance_losses(
    config: PretrainConfig, words: int, history: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Loss of the history → its value for a model that guesses evenly, nats.

    Args:
        config: Options of the run.
        words: Size of the vocabulary.
        history: Rows of history.jsonl, whose start has the number of ranks.
    """
    starts = [row["ranks"] for row in history if row.get("event") == "start"]
    ranks = (starts or [1])[-1] // config.train.tensor_parallel
    found = {}
    for objective in active_objectives(config.objective):
        loss = objective.chance_loss(words=words, candidates=config.train.micro_batch * ranks)
        if objective.loss_metric is not None and loss is not None:
            found[objective.loss_metric] = loss
    return found


def report_run(
    run: Path, model: AllInOneForPreTraining, weights: Path, limit: int | None = None
) -> list[Path]:
    """Evaluate a run's model and write RUN/report; returns the files.

    Args:
        run: Folder of a pre-training run.
        model: Its model, on the CPU in eval mode.
        weights: Where it was loaded from.
        limit: Use at most this many items of each validation set; None: the run's --val-items.

    Raises:
        InputError: The run has no validation set.
    """
    config: PretrainConfig = config_from_file(run / RUN, PretrainConfig)
    specs = config.val_specs()
    if not specs:
        raise InputError(
            f"{run} has no validation set to show; give the run --val DIR:SPLIT and start it again"
        )
    names = {f"{spec.path.name}/{spec.split}": spec for spec in specs}
    limit = config.val_items if limit is None else limit
    evaluation = evaluate_run(model, weights, config, names, config.train_specs()[0], limit)
    history = run / HISTORY
    seconds = {"train": sum(row.get("elapsed_s") or 0.0 for row in read_history(history))}
    return write_run_page(run / "report", evaluation, config, history, seconds)
