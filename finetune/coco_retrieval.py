#!/usr/bin/env python3
r"""COCO image-text retrieval on Karpathy's split.

5,000 test images with all their captions, or the mean over five folds of 1,000 images.

    deepspeed finetune/coco_retrieval.py --annotations karpathy --media coco \
        --checkpoint base.ckpt --out runs/coco
    … --variant 1k: COCO 1K, the mean over five folds

Hardware of the published values: 256 images per step, 50 epochs (about 22,100 steps), the sum of
both contrast directions and the rank loss with 15 negatives. Time on a GPU is not measured by us.
The paper configures COCO but reports no number. All captions of an image count: 25,010 in the test
split.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import karpathy
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import RetrievalOptions

BENCHMARK = Benchmark(
    name="coco_retrieval",
    description=__doc__,
    task="retrieval",
    load=lambda folder, split, variant: karpathy.load(folder, split, dataset="coco"),
    variants=dict.fromkeys(("5k", "1k"), Splits("train", "val", "test")),
    variant_options={"1k": {"task.folds": 5}},
    config=FinetuneConfig(
        frames=1,
        max_text_len=40,
        epochs=50,
        task=RetrievalOptions(contrast=2.0, rank=1.0, matching=0.5),
        train=TuneConfig(global_batch=256, micro_batch=8, lr=3e-4, warmup=0.1),
    ),
    archives="train2014.zip and val2014.zip of COCO (images.cocodataset.org)",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
