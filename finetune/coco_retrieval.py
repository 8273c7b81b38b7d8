#!/usr/bin/env python3
"""COCO image-text retrieval on Karpathy's split: 5,000 test images with all their captions, or the
mean over five folds of 1,000.

    deepspeed finetune/coco_retrieval.py --annotations karpathy --media coco --checkpoint base.ckpt --out runs/coco
    … --variant 1k: COCO 1K, --folds 5

Hardware of the published values: 256 images per step, 50 epochs (about 22,100 steps), contrast and
rank head with 15 negatives. Time on a GPU is not measured by us. The paper configures COCO and
reports no figure. All captions of an image count: 25,010 in the test split.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.engine.distributed import launch
from allinone.finetune.annotations import karpathy
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.run import fine_tune, parse
from allinone.finetune.tasks.retrieval import Retrieval, RetrievalOptions

BENCHMARK = Benchmark(
    name="coco_retrieval",
    protocol=Retrieval,
    load=lambda folder, split, variant: karpathy.load(folder, split, dataset="coco"),
    variants=dict.fromkeys(("5k", "1k"), Splits("train", "val", "test")),
    config=FinetuneConfig(
        frames=1,
        max_text_len=40,
        epochs=50,
        task=RetrievalOptions(rank=1.0, matching=0.5),
        train=TuneConfig(global_batch=256, micro_batch=8, lr=3e-4, warmup=0.1),
    ),
    archives="train2014.zip and val2014.zip of COCO (images.cocodataset.org)",
)


def with_folds(config: FinetuneConfig) -> FinetuneConfig:
    """The options of a variant: 1k is the mean over five folds."""
    assert isinstance(config.task, RetrievalOptions)
    return replace(config, task=replace(config.task, folds=5)) if config.variant == "1k" else config


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    config = parse(
        benchmark, launch.without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    )
    return launch.main(lambda: fine_tune(benchmark, with_folds(config)))


if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
