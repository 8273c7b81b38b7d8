"""Benchmarks whose result is the mean over official folds (HMDB51, UCF101): one run per fold in
OUT/fold-N, and one result over all of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allinone.engine.distributed.collectives import run_on_rank0
from allinone.finetune.benchmark import FOLDS, Benchmark
from allinone.finetune.config import FinetuneConfig
from allinone.finetune.evaluation import metrics, summaries
from allinone.finetune.evaluation.official_counts import with_official_count
from allinone.finetune.evaluation.results import (
    PREDICTIONS,
    EvaluationResult,
    read_predictions,
    write_result,
)
from allinone.finetune.evaluation.table import table

log = logging.getLogger(__name__)

MEAN = "mean"
"""Variant that trains and evaluates all folds; the other variants are single folds."""


def mean_of_folds(
    benchmark: Benchmark,
    config: FinetuneConfig,
    run: Callable[[Benchmark, FinetuneConfig], EvaluationResult],
) -> EvaluationResult:
    """Fine-tune and evaluate every fold, and write the mean into OUT.

    Args:
        benchmark: Its variants other than MEAN are the folds.
        config: Options. With --eval-only, a --checkpoint that holds fold-N folders provides the
            weights of each fold.
        run: Runs one fold, resuming what OUT/fold-N holds.
    """
    folds = [variant for variant in benchmark.variants if variant != MEAN]
    results = {fold: run(benchmark, _config_of_fold(config, fold)) for fold in folds}
    return run_on_rank0(lambda: _publish(config, results))


def _folder(fold: str) -> str:
    return FOLDS.replace("*", fold)


def _config_of_fold(config: FinetuneConfig, fold: str) -> FinetuneConfig:
    # each fold was trained without its own test clips: another fold's weights would leak
    own = config.checkpoint / _folder(fold)
    weights = own if config.eval_only and own.is_dir() else config.checkpoint
    return replace(config, variant=fold, out=config.out / _folder(fold), checkpoint=weights)


def _publish(config: FinetuneConfig, results: Mapping[str, EvaluationResult]) -> EvaluationResult:
    first = next(iter(results.values()))
    kept = ("roll", "fine_tuned_on")
    mean = replace(
        first,
        variant=MEAN,
        scores=summaries.action_scores(
            [_hits(config.out / _folder(fold), result) for fold, result in results.items()]
        ),
        items=sum(result.items for result in results.values()),
        missing=tuple(missing for result in results.values() for missing in result.missing),
        checkpoint=str(config.checkpoint if config.eval_only else config.out),
        checkpoint_sha256=_common_hash(results),
        details={
            **{name: first.details[name] for name in kept if name in first.details},
            "folds": {
                fold: {name: score.value for name, score in result.scores.items()}
                for fold, result in results.items()
            },
        },
        settings=config.as_json(),
    )
    mean = with_official_count(mean)
    path = write_result(config.out, mean)
    log.info("%s", table(mean))
    log.info("wrote %s, the mean over %d folds", path, len(results))
    return mean


def _common_hash(results: Mapping[str, EvaluationResult]) -> str:
    """Hash of the weights; of several checkpoints, the hash of their hashes."""
    hashes = sorted({result.checkpoint_sha256 for result in results.values()})
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _hits(out: Path, result: EvaluationResult) -> dict[int, NDArray[np.float64]]:
    """K → hits of a fold's items, from its predictions."""
    rows = list(read_predictions(out / PREDICTIONS / f"{result.name}.jsonl").values())
    return {
        k: np.array([row["measures"][f"top{k}"] for row in rows])
        for k in metrics.TOPS
        if f"top{k}" in rows[0]["measures"]
    }
