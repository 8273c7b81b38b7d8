#!/usr/bin/env python3
r"""MSR-VTT captions: one caption per test video, scored against its 20 references.

    deepspeed finetune/msrvtt_caption.py --annotations MSRVTT --media MSRVTT/videos \
        --checkpoint all-in-one-base.ckpt --out runs/msrvtt_caption

CIDEr-D, BLEU-4, METEOR and ROUGE-L by the COCO scorer (needs the extra caption-metrics and Java).
The official split: 6,513 videos for training, 497 for validation, 2,990 for the test.

The paper reports no captions; hyper-parameters are those of its question answering, not tuned.
Hardware: 128 clips per step on any number of GPUs. Time on a GPU and scores on the official media
are not measured by us.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import msrvtt
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import CaptionOptions

BENCHMARK = Benchmark(
    name="msrvtt_caption",
    description=__doc__,
    task="captioning",
    load=lambda folder, split, variant: msrvtt.load(
        folder, split, task="retrieval", protocol="full"
    ),
    variants={"": Splits("train", "val", "test")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=20,
        task=CaptionOptions(),
        train=TuneConfig(global_batch=128, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "train_val_videos.zip and test_videos.zip of MSR-VTT (video0.mp4 … video9999.mp4), or"
        " frozen-in-time's MSRVTT.zip"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
