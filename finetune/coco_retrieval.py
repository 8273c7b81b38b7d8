#!/usr/bin/env python3
"""COCO image-text retrieval on Karpathy's split: 5,000 test images with all their captions, or the mean over five folds of 1,000.

    deepspeed finetune/coco_retrieval.py --annotations karpathy --media coco --checkpoint base.ckpt --out runs/coco
    … --variant 1k --folds 5: COCO 1K

Hardware of the published values: 256 images per step, 50 epochs (about 22,100 steps), contrast and rank head with 15 negatives. Time on a GPU is
not measured by us. The paper configures COCO and reports no figure. All captions of an image count: 25,010 in the test split.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not finetune/: its modules would hide others of the same name

from finetune.annotations import karpathy
from finetune.benchmark import Benchmark, Splits
from finetune.config import FinetuneConfig, TuneConfig
from finetune.protocols.retrieval import Retrieval, RetrievalOptions
from finetune.run import main

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

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
