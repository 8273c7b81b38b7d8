#!/usr/bin/env python3
r"""YouCook2 captions: one sentence per segment of a cooking video, one reference.

    deepspeed finetune/youcook2_caption.py --annotations youcook2 --media youcook2/videos \
        --checkpoint all-in-one-base.ckpt --out runs/youcook2_caption

CIDEr-D, BLEU-4, METEOR and ROUGE-L by the COCO scorer (needs the extra caption-metrics and Java).
Scored on the 3,492 segments of validation, because the test is not public; weights are selected on
5 % of the training videos.

The paper reports no captions; hyper-parameters are those of its question answering, not tuned.
Hardware: 128 clips per step on any number of GPUs. Time on a GPU and scores on the official media
are not measured by us.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from allinone.finetune.annotations import youcook2
from allinone.finetune.benchmark import Benchmark, Splits
from allinone.finetune.command import main
from allinone.finetune.config import FinetuneConfig, TuneConfig
from allinone.finetune.tasks.options import CaptionOptions

BENCHMARK = Benchmark(
    name="youcook2_caption",
    description=__doc__,
    task="captioning",
    load=lambda folder, split, variant, media: youcook2.load(
        folder, split, protocol="all", videos=media
    ),
    reads_media=True,
    variants={"": Splits("train", "held-out", "val")},
    config=FinetuneConfig(
        max_text_len=40,
        epochs=20,
        task=CaptionOptions(),
        train=TuneConfig(global_batch=128, micro_batch=16, lr=1e-4, warmup=0.1),
    ),
    archives=(
        "YouCook2's videos, <subset>/<recipe type>/<id>.mp4 (youcook2.eecs.umich.edu), or all of"
        " them in one folder"
    ),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
