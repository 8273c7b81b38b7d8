"""Benchmarks whose result is the mean over official folds (HMDB51, UCF101): a run per fold in
OUT/fold-N, and one result of them all."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.engine.distributed import launch
from allinone.engine.distributed.collectives import run_on_rank0
from allinone.finetune.benchmark import Benchmark
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.evaluation import metrics
from allinone.finetune.evaluation.results import (
    PREDICTIONS,
    EvaluationResult,
    read_predictions,
    write_result,
)
from allinone.finetune.evaluation.table import table
from allinone.finetune.run import fine_tune, parse

MEAN = "mean"
"""Variant that trains and evaluates all folds; the others are single folds."""


def mean_of_folds(benchmark: Benchmark, config: FinetuneConfig) -> EvaluationResult:
    """Fine-tune and evaluate every fold, resuming what stands in OUT/fold-N, and write their mean
    into OUT.

    With --eval-only, a --checkpoint that holds fold-N folders gives each fold its own.
    """
    folds = [variant for variant in benchmark.variants if variant != MEAN]
    results = {fold: fine_tune(benchmark, _of_fold(config, fold)) for fold in folds}
    return run_on_rank0(lambda: _publish(config, results))


def _folder(fold: str) -> str:
    return f"fold-{fold}"


def _of_fold(config: FinetuneConfig, fold: str) -> FinetuneConfig:
    own = config.checkpoint / _folder(fold)
    weights = own if config.eval_only and own.is_dir() else config.checkpoint
    return replace(config, variant=fold, out=config.out / _folder(fold), checkpoint=weights)


def _publish(config: FinetuneConfig, results: Mapping[str, EvaluationResult]) -> EvaluationResult:
    first = next(iter(results.values()))
    hashes = sorted({result.checkpoint_sha256 for result in results.values()})
    kept = {
        name: first.details[name] for name in ("roll", "fine_tuned_on") if name in first.details
    }
    mean = replace(
        first,
        variant=MEAN,
        scores=metrics.action_scores(
            [_hits(config.out / _folder(fold), result) for fold, result in results.items()]
        ),
        items=sum(result.items for result in results.values()),
        missing=tuple(missing for result in results.values() for missing in result.missing),
        checkpoint=str(config.checkpoint if config.eval_only else config.out),
        # of several checkpoints the hash of their hashes
        checkpoint_sha256=(
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        ),
        details={
            **kept,
            "folds": {
                fold: {name: score.value for name, score in r.scores.items()}
                for fold, r in results.items()
            },
        },
        settings=config.as_json(),
    )
    path = write_result(config.out, mean)
    print(f"{table(mean)}\n{path}: written, the mean over {len(results)} folds", flush=True)
    return mean


def _hits(out: Path, result: EvaluationResult) -> dict[int, NDArray[np.float64]]:
    """K → hits of a fold's items, from its predictions."""
    rows = list(read_predictions(out / PREDICTIONS / f"{result.name}.jsonl").values())
    return {
        k: np.array([row["measures"][f"top{k}"] for row in rows])
        for k in metrics.TOPS
        if f"top{k}" in rows[0]["measures"]
    }


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> int:
    """Command line entry of a benchmark with folds; returns the exit code."""
    config = parse(
        benchmark, launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    )
    run = mean_of_folds if config.variant in ("", MEAN) else fine_tune
    return launch.main(lambda: run(benchmark, config))
