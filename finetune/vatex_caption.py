#!/usr/bin/env python3
r"""VATEX captions in English: one caption per clip, scored against its ten references.

    deepspeed finetune/vatex_caption.py --annotations vatex --media vatex/videos \
        --checkpoint all-in-one-base.ckpt --out runs/vatex_caption

CIDEr-D, BLEU-4, METEOR and ROUGE-L by the COCO scorer (needs the extra caption-metrics and Java).
25,991 clips for training, 3,000 for validation, 6,000 of the public test; the private test has no
published captions.

The paper reports no captions; hyper-parameters are those of its question answering, not tuned.
Hardware: 128 clips per step on any number of GPUs. Time on a GPU and scores on the official media
are not measured by us.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import vatex
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import CaptionOptions

BENCHMARK = Benchmark(
    name="vatex_caption",
    description=__doc__,
    task="captioning",
    load=lambda folder, split, variant: vatex.load(folder, split, official=True),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=20,
        task=CaptionOptions(),
        train=TuneConfig(global_batch=128, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives="the clips of VATEX, <videoID>.mp4 (YouTube; eric-xw.github.io/vatex-website)",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
