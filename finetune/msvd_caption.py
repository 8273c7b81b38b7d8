#!/usr/bin/env python3
r"""MSVD captions: one caption per test clip, scored against all its references (about 40).

    deepspeed finetune/msvd_caption.py --annotations msvd_data --media YouTubeClips \
        --checkpoint all-in-one-base.ckpt --out runs/msvd_caption

CIDEr-D, BLEU-4, METEOR and ROUGE-L by the COCO scorer (needs the extra caption-metrics and Java).
The split of captioning and retrieval, 1,200 / 100 / 670 clips; that of MSVD-QA is another one.

The paper reports no captions; hyper-parameters are those of its question answering, not tuned.
Hardware: 128 clips per step on any number of GPUs. Time on a GPU and scores on the official media
are not measured by us.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import msvd
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import CaptionOptions

BENCHMARK = Benchmark(
    name="msvd_caption",
    description=__doc__,
    task="captioning",
    load=lambda folder, split, variant: msvd.load(folder, split, task="retrieval"),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=20,
        task=CaptionOptions(),
        train=TuneConfig(global_batch=128, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives="YouTubeClips.tar of MSVD (UT Austin), 1,970 .avi files",
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
